"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const source = byId("report-data").textContent;
  const { player } = JSON.parse(source);
  const stillness = matchMedia("(prefers-reduced-motion: reduce)");
  const FRAME_MS = 450;

  const settings = {
    displaylogo: false,
    responsive: true,
    showSendToCloud: false, // a button that sends the chart to plotly's servers
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "resetScale2d"],
  };

  // ---- charts: plotly's figures, in the colours of the page

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /** Put the theme's colours in: every `color` in a figure is the name of a CSS property, or a list of them. */
  const themed = (key, value) => (key !== "color" ? value : Array.isArray(value) ? value.map(colour) : colour(value));

  /** Return the plotly template that all figures share. */
  function template() {
    const axis = { gridcolor: colour("--grid"), linecolor: colour("--rule"), showline: true, zeroline: false, automargin: true };
    const layout = {
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--text") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 8, r: 8, t: 8, b: 8 },
      legend: { orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom", font: { size: 11 } },
      hoverlabel: { bgcolor: colour("--panel"), bordercolor: colour("--rule"), font: { color: colour("--text") }, namelength: -1 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: colour("--accent") },
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
      xaxis: axis,
      yaxis: axis,
    };
    return { layout, data: { heatmap: [{ showscale: false, colorscale: [[0, colour("--empty")], [1, colour("--heat")]] }] } };
  }

  /** Unpack plotly, and run it: the page's policy allows it by its hash. */
  async function unpack() {
    const bytes = Uint8Array.from(atob(byId("plotly").textContent), (letter) => letter.charCodeAt(0));
    const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(unpacked).text();
    document.head.append(script);
  }

  function draw() {
    const { figures } = JSON.parse(source, themed);
    for (const [key, { data, layout }] of Object.entries(figures)) {
      Plotly.react(`chart-${key}`, data, { ...layout, uirevision: "kept", template: template() }, settings);
    }
  }

  // ---- kernels: one slider for all pictures

  function listen({ frames, pictures }) {
    const [slider, output, previous, play, next] = ["epoch", "epoch-text", "previous", "play", "next"].map(byId);
    const last = frames.length - 1;
    let timer = null;

    function show(index) {
      const frame = frames[index];
      slider.value = index;
      slider.setAttribute("aria-valuetext", frame.value);
      output.textContent = frame.caption;
      for (const image of document.querySelectorAll("[data-slot]")) {
        const place = frame.images[image.dataset.slot];
        image.style.visibility = place === undefined ? "hidden" : "";
        if (place !== undefined) image.src = pictures[place];
      }
      for (const text of document.querySelectorAll("[data-text]")) text.textContent = frame.texts[text.dataset.text] ?? "";
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

  if (byId("epoch")) listen(player);
  unpack().then(() => {
    draw();
    for (const div of document.querySelectorAll(".chart")) {
      // Leave the charts' buttons to the mouse: forty of them would stand between the keyboard and the slider.
      const skip = () => div.querySelectorAll(".modebar-btn").forEach((button) => (button.tabIndex = -1));
      skip();
      div.on("plotly_afterplot", skip);
    }
    // paper is always light
    for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", draw);
  });
})();
