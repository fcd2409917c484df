"""report.html in a browser: what happens when somebody reads it. Needs playwright and a Chromium on the path."""

import re
import shutil

import pytest
from deadlines import deadline
from run_folders import HOSTILE, make_run

from alexnet_dist.report import page as report
from alexnet_dist.visualization import kernel_images

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path"),
]
EPOCHS = 7
BOLD = "<b>x</b>"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return report.write(make_run(tmp_path_factory.mktemp("runs") / "run", epochs=EPOCHS))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Return the page of three runs, with names that are hard to place."""
    place = tmp_path_factory.mktemp("compared")
    rates = {"a" * 90: 1e-3, "with words in it": 1e-4, "c": 1e-5}
    folders = [make_run(place / name, lr=lr) for name, lr in rates.items()]
    report.main([*map(str, folders), "--out", str(place / "report.html")])
    return place / "report.html"


@pytest.fixture
def visit(browser):
    """Return a visitor of pages, who at the end has seen no error, and no request besides the page itself."""
    contexts, troubles = [], []

    def open_page(path, *, width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        context.set_default_timeout(deadline(30_000))  # milliseconds
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        own = (path.as_uri(), "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(own) else troubles.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("#chart-loss .scatterlayer .trace")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def shown(page):
    """Return the kernels' pictures and what is written about them."""
    images = page.eval_on_selector_all("[data-slot]", "images => images.map(image => image.src)")
    return images, page.inner_text("#epoch-text"), page.get_attribute("#epoch", "aria-valuetext")


def unfold(page):
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")


def line_colour(page):
    return page.evaluate("getComputedStyle(document.querySelector('#chart-lr .js-line')).stroke")


def ground(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_everything_is_drawn(visit, path):
    page = visit(path)
    charts = page.locator(".chart")
    assert charts.count() == 10
    for index in range(charts.count()):
        assert charts.nth(index).locator("svg.main-svg").count() > 0
    assert page.locator("#chart-confusion .heatmaplayer image").count() == 1
    cells = page.eval_on_selector_all("#chart-confusion .textpoint", "all => all.map(one => one.textContent)")
    assert cells == ["6", "2", "1", "1", "6", "1", "1", "1", "6"]
    assert page.eval_on_selector_all("img", "images => images.every(image => image.naturalWidth > 0)")


def test_the_slider_moves_all_pictures_by_keyboard(visit, path):
    page = visit(path)
    page.focus("#epoch")
    page.keyboard.press("Home")
    first = shown(page)
    assert first[1].startswith(f"epoch 1 of {EPOCHS}, step 10")
    assert first[2] == f"epoch 1 of {EPOCHS}"
    page.keyboard.press("ArrowRight")
    second = shown(page)
    assert second[1].startswith(f"epoch 2 of {EPOCHS}, step 20")
    assert second[2] == f"epoch 2 of {EPOCHS}"
    changed = [before != after for before, after in zip(first[0], second[0], strict=True)]
    assert changed == [False, True, True] * len(kernel_images.COLUMNS), "before, now, difference"
    assert "relative change 0.2000" in page.inner_text("[data-text='0-conv1']")
    assert page.get_attribute("#epoch-text", "aria-live") == "polite"


def test_buttons_step_and_stop_at_the_ends(visit, path):
    page = visit(path)
    for _ in range(EPOCHS + 1):
        page.click("#previous", force=True)  # playwright would wait for it to be enabled
    assert shown(page)[2] == f"epoch 1 of {EPOCHS}"
    assert page.get_attribute("#previous", "aria-disabled") == "true"
    page.click("#next")
    assert shown(page)[2] == f"epoch 2 of {EPOCHS}"


def test_play_runs_to_the_end_and_pauses(visit, path):
    page = visit(path)
    page.click("#play")
    assert shown(page)[2] == f"epoch 1 of {EPOCHS}", "it starts again from the end"
    assert page.inner_text("#play") == "Pause"
    page.wait_for_function("() => document.querySelector('#epoch').value === '2'")
    page.click("#play")
    paused = shown(page)
    page.wait_for_timeout(deadline(700))
    assert shown(page) == paused
    page.click("#play")
    page.wait_for_function("() => document.querySelector('#play').textContent === 'Play'")
    assert shown(page)[2] == f"epoch {EPOCHS} of {EPOCHS}"


def test_nothing_plays_where_motion_is_unwelcome(visit, path):
    page = visit(path, reduced_motion="reduce")
    assert not page.is_visible("#play")
    page.evaluate("document.querySelector('#play').click()")
    page.wait_for_timeout(deadline(700))
    assert shown(page)[2] == f"epoch {EPOCHS} of {EPOCHS}"


@pytest.mark.parametrize("num_classes", [12, 20])
def test_numbers_that_do_not_fit_into_the_cells_of_a_telephone_are_hidden(num_classes, visit, tmp_path):
    path = report.write(make_run(tmp_path / "run", classes=[f"class {index}" for index in range(num_classes)]))
    for width in (360, 1280):
        page = visit(path, width=width)
        page.wait_for_selector("#chart-confusion .heatmaplayer image", state="attached")
        shown = page.eval_on_selector_all(
            "#chart-confusion .textpoint", "all => all.filter(one => one.getBoundingClientRect().width > 0).length"
        )
        assert shown == (0 if num_classes == 20 and width == 360 else num_classes**2)


@pytest.mark.parametrize("several", [False, True])
def test_a_telephone_does_not_scroll_sideways(several, visit, path, compared):
    page = visit(compared if several else path, width=320)
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(several, scheme, visit, path, compared):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = visit(compared if several else path, width=320 if scheme == "dark" else 1280, color_scheme=scheme)
    unfold(page)
    found = axe.Axe().run(page).response["violations"]
    assert [(one["impact"], one["id"], [node["target"] for node in one["nodes"]]) for one in found] == []


def test_the_keyboard_reaches_all_that_the_mouse_does_and_shows_where_it_is(visit, path):
    page = visit(path)
    page.focus("summary")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.parentElement.open"), "a table unfolds by the keyboard"
    page.evaluate("document.querySelectorAll('.modebar').forEach(one => one.remove())")
    wanted = page.locator("a[href], button, input, summary, [tabindex='0']").evaluate_all(
        "all => all.filter(one => one.checkVisibility()).map((one, at) => one.dataset.at = at)"
    )
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    met, unseen = [], []
    for _ in range(len(wanted) + 5):
        page.keyboard.press("Tab")
        at, outline = page.evaluate(
            "[document.activeElement.dataset.at, getComputedStyle(document.activeElement).outlineStyle]"
        )
        met += [int(at)] if at else []
        unseen += [at] if at and outline == "none" else []
    assert sorted(set(met)) == wanted
    assert not unseen


def test_charts_follow_the_colour_scheme(visit, path):
    page = visit(path, color_scheme="light")
    light = ground(page), line_colour(page)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "old => getComputedStyle(document.querySelector('#chart-lr .js-line')).stroke !== old", arg=light[1]
    )
    dark = ground(page), line_colour(page)
    assert light == ("rgb(251, 251, 249)", "rgb(31, 95, 168)")
    assert dark == ("rgb(18, 21, 25)", "rgb(111, 169, 234)")
    page.emulate_media(color_scheme="dark", media="print")
    page.wait_for_function(
        "old => getComputedStyle(document.querySelector('#chart-lr .js-line')).stroke !== old", arg=dark[1]
    )
    assert (ground(page), line_colour(page)) == ("rgb(255, 255, 255)", light[1])


def test_tab_reaches_the_slider(visit, path):
    page = visit(path)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    focused = []
    while "epoch" not in focused and len(focused) < 40:
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert focused[-4:] == ["previous", "play", "next", "epoch"]
    assert "modebar-btn" not in " ".join(focused), "the charts' buttons stand in the way"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_the_skip_link_skips(visit, path):
    page = visit(path)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_charts_can_be_saved_and_not_sent(visit, path):
    page = visit(path)
    page.hover("#chart-loss")
    titles = page.eval_on_selector_all("#chart-loss .modebar-btn", "all => all.map(one => one.dataset.title)")
    assert len(titles) == 4
    assert not [title for title in titles if re.search("share|cloud|send|edit", title, re.IGNORECASE)]
    with page.expect_download() as download:
        page.click("#chart-loss .modebar-btn[data-title*=PNG]")
    assert download.value.suggested_filename.endswith(".png")


def test_a_hostile_name_runs_nothing(visit, tmp_path):
    page = visit(report.write(make_run(tmp_path / "run", classes=[HOSTILE, BOLD, "frog"], dataset=HOSTILE)))
    page.hover("#chart-confusion .nsewdrag", force=True)
    page.wait_for_selector("#chart-confusion .hovertext")
    page.hover("#chart-classes .nsewdrag", force=True)
    page.wait_for_timeout(deadline(300))
    assert page.title() == "run"
    assert page.locator("img[src=x]").count() == 0
    assert HOSTILE in page.inner_text("#confusion")
    legend = page.eval_on_selector_all("#chart-classes .legendtext", "all => all.map(one => one.textContent)")
    assert legend == [f"{HOSTILE[:37]}...", BOLD, "frog"]
    ticks = page.eval_on_selector_all("#chart-confusion .ytick", "all => all.map(one => one.textContent)")
    assert {text for text in ticks if text} == {f"{HOSTILE[:13]}...", BOLD, "frog"}


def test_the_policy_stops_scripts_that_are_not_the_pages(browser, path, tmp_path):
    """As if a name had come through: the page with a handler and a script of a stranger."""
    strange = tmp_path / "strange.html"
    smuggled = "<img src=x onerror='window.ran = 1'><script>window.ran = 2</script></main>"
    strange.write_text(path.read_text(encoding="utf-8").replace("</main>", smuggled), encoding="utf-8")
    page = browser.new_page()
    page.goto(strange.as_uri())
    page.wait_for_selector("#chart-loss .scatterlayer .trace")
    assert page.evaluate("window.ran") is None
    page.close()
