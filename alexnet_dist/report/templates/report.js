"use strict";
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const darkness = matchMedia("(prefers-color-scheme: dark)");
  const stillness = matchMedia("(prefers-reduced-motion: reduce)");
  const paper = matchMedia("print"); // is always light
  const coarse = matchMedia("(pointer: coarse)").matches;
  const DASHES = { solid: "solid", dash: "7px,3px", faint: "solid", chance: "dot" };
  const FRAME_MS = 450;

  const settings = {
    displaylogo: false,
    responsive: true,
    showSendToCloud: false, // a button that sends the chart to plotly's servers
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "resetScale2d"],
  };

  // ---- charts: plain descriptions become plotly's, in the colours of the page

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  function layout(extra) {
    const axis = { gridcolor: colour("grid"), linecolor: colour("rule"), zeroline: false, automargin: true };
    const { xaxis, yaxis, ...rest } = extra;
    return {
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("text") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 8, r: 8, t: 8, b: 8 },
      hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("rule"), font: { color: colour("text") }, namelength: -1 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("quiet"), activecolor: colour("accent") },
      dragmode: coarse ? false : "zoom", // a finger scrolls the page
      uirevision: "kept",
      xaxis: { ...axis, ...xaxis },
      yaxis: { ...axis, ...yaxis },
      ...rest,
    };
  }

  function trace(line) {
    const quiet = line.style === "faint" || line.style === "chance";
    const shade = quiet ? colour(line.style) : colour(`colour-${line.colour % 10}`);
    return {
      type: "scatter",
      name: line.name,
      x: line.x,
      y: line.y,
      mode: line.marked ? "lines+markers" : line.x.length === 1 ? "markers" : "lines",
      line: { color: shade, width: quiet ? 1.2 : 2, dash: DASHES[line.style] },
      marker: { color: shade, size: 4.5 },
      legendgroup: line.run === undefined ? "chance" : data.several ? `${line.run}` : line.label,
      hoverinfo: line.style === "chance" ? "skip" : undefined,
      hovertemplate: line.style === "chance" ? undefined : `%{y:.4~g}<extra>${line.label}</extra>`,
    };
  }

  function drawCurves(chart, div) {
    const traces = chart.traces.map(trace);
    const named = new Map();
    for (const one of traces) {
      one.showlegend = false;
      if (!named.has(one.legendgroup) || one.line.dash === "solid") named.set(one.legendgroup, one);
    }
    for (const one of named.values()) one.showlegend = true; // a run's solid line stands for its others
    const top = Math.max(...chart.traces.flatMap((line) => line.x));
    Plotly.react(
      div,
      traces,
      layout({
        showlegend: named.size > 1,
        legend: { orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom", font: { size: 11 }, bgcolor: "rgba(0,0,0,0)" },
        hovermode: "x unified",
        xaxis: {
          title: { text: chart.axis, standoff: 4 },
          range: [0, 1.02 * top],
          unifiedhovertitle: { text: `${chart.axis} %{x:${chart.axis === "step" ? ",d" : ".2~f"}}` },
          tickformat: chart.axis === "step" ? ",d" : ".4~g",
        },
        yaxis: { exponentformat: "e", ...(chart.ceiling ? { range: [0, chart.ceiling], autorange: false } : {}) },
      }),
      settings,
    );
  }

  /** Numbers in the cells, black or white by which of both is read better on the cell's shade. */
  function cellTexts(counts, shares) {
    const channels = (name) => [1, 3, 5].map((at) => parseInt(colour(name).slice(at, at + 2), 16));
    const [from, to] = [channels("empty"), channels("heat")];
    const luminance = (share) =>
      [0.2126, 0.7152, 0.0722].reduce((sum, weight, c) => {
        const value = (from[c] + share * (to[c] - from[c])) / 255;
        return sum + weight * (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
      }, 0);
    const cells = counts.flatMap((row, i) => row.map((count, j) => ({ i, j, count, light: luminance(shares[i][j]) > 0.18 })));
    return {
      type: "scatter",
      mode: "text",
      x: cells.map((cell) => cell.j),
      y: cells.map((cell) => cell.i),
      text: cells.map((cell) => `${cell.count}`),
      textfont: { size: 11, color: cells.map((cell) => (cell.light ? "#000000" : "#ffffff")) },
      hoverinfo: "skip",
      showlegend: false,
    };
  }

  function drawConfusion({ labels, ticks: names, counts }, div) {
    const sums = counts.map((row) => row.reduce((sum, count) => sum + count, 0));
    const shares = counts.map((row, i) => row.map((count) => (sums[i] ? count / sums[i] : 0)));
    const places = labels.map((_, i) => i);
    const few = labels.length <= 20 && div.clientWidth >= 26 * labels.length;
    const ticks = { tickmode: labels.length <= 40 ? "array" : "auto", tickvals: places, ticktext: names, showgrid: false };
    const words = counts.map((row, i) =>
      row.map((count, j) => `true ${labels[i]}, predicted ${labels[j]}<br><b>${count}</b> of ${sums[i]}, ${(100 * shares[i][j]).toFixed(2)} %`),
    );
    Plotly.react(
      div,
      [
        {
          type: "heatmap",
          z: shares,
          x: places,
          y: places,
          zmin: 0,
          zmax: 1,
          customdata: words,
          hovertemplate: "%{customdata}<extra></extra>",
          colorscale: [[0, colour("empty")], [1, colour("heat")]],
          showscale: false,
          xgap: labels.length <= 20 ? 1 : 0,
          ygap: labels.length <= 20 ? 1 : 0,
        },
        ...(few ? [cellTexts(counts, shares)] : []),
      ],
      layout({
        xaxis: { ...ticks, title: { text: "predicted class", standoff: 6 }, range: [-0.5, labels.length - 0.5], tickangle: labels.length > 5 ? -45 : 0 },
        yaxis: { ...ticks, title: { text: "true class", standoff: 6 }, range: [labels.length - 0.5, -0.5] },
      }),
      settings,
    );
  }

  function draw() {
    for (const chart of data.charts) drawCurves(chart, document.getElementById(`chart-${chart.key}`));
    if (data.confusion) drawConfusion(data.confusion, document.getElementById("chart-confusion"));
  }

  /** Leave the charts' buttons to the mouse: forty of them would stand between the keyboard and the slider. */
  function skipButtons() {
    for (const button of this.querySelectorAll(".modebar-btn")) button.tabIndex = -1;
  }

  // ---- kernels: one slider for all pictures

  function listen({ frames, pictures }) {
    const slider = document.getElementById("epoch");
    const output = document.getElementById("epoch-text");
    const [previous, play, next] = ["previous", "play", "next"].map((id) => document.getElementById(id));
    const images = [...document.querySelectorAll("[data-slot]")];
    const texts = [...document.querySelectorAll("[data-text]")];
    const last = frames.length - 1;
    let timer = null;

    function show(index) {
      const frame = frames[index];
      slider.value = index;
      slider.setAttribute("aria-valuetext", frame.value);
      output.textContent = frame.caption || frame.value;
      for (const image of images) {
        const place = frame.images[image.dataset.slot];
        image.style.visibility = place === undefined ? "hidden" : "";
        if (place !== undefined) image.src = pictures[place];
      }
      for (const text of texts) text.textContent = frame.texts[text.dataset.text] ?? "";
      previous.setAttribute("aria-disabled", index === 0); // disabled, it would drop the keyboard's focus
      next.setAttribute("aria-disabled", index === last);
    }

    function pause() {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
      output.setAttribute("aria-live", "polite");
    }

    function start() {
      if (stillness.matches) return;
      output.setAttribute("aria-live", "off"); // a voice could not follow
      play.textContent = "Pause";
      if (Number(slider.value) === last) show(0);
      timer = setInterval(() => {
        show(Number(slider.value) + 1);
        if (Number(slider.value) === last) pause();
      }, FRAME_MS);
    }

    function step(by) {
      pause();
      show(Math.min(last, Math.max(0, Number(slider.value) + by)));
    }

    slider.addEventListener("input", () => step(0));
    previous.addEventListener("click", () => step(-1));
    next.addEventListener("click", () => step(1));
    play.addEventListener("click", () => (timer === null ? start() : pause()));
    stillness.addEventListener("change", pause);
    show(Number(slider.value)); // a reloaded page keeps its slider
  }

  if (data.player && document.getElementById("epoch")) listen(data.player);
  draw();
  for (const div of document.querySelectorAll(".chart")) {
    skipButtons.call(div);
    div.on("plotly_afterplot", skipButtons.bind(div));
  }
  darkness.addEventListener("change", draw);
  paper.addEventListener("change", draw);
})();
