"""The page in a headless Chromium: nothing is asked for, nothing fails, pictures load, all is worked by keyboard."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import write_run

from unet.report.page import bokeh_curves, document
from unet.report.run import read

FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --hide-scrollbars"""
BAD = "<script>window.hacked=1</script>$$x$$"
BAD_CASE = "a<img src=x onerror=window.hacked=2>'b\\"
SCORES = "Bokeh.documents.map((each) => each.roots()[0]).find((each) => each.title.text.endsWith('lgg'))"
PATIENTS = {"p1": 0.41, "p2": 0.52, "p3": 0.63, "p4": 0.74, "p5": 0.85, "p6": 0.66, "p7": 0.57}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One Chromium for all tests of this file."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium or chromium-driver is not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (chromium needs it)")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.get("about:blank")
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ in their seed, one with other settings, one of another task; with hostile names."""
    root = tmp_path_factory.mktemp("runs")
    other = {name: value + 0.05 for name, value in PATIENTS.items()} | {BAD_CASE: 0.2}
    write_run(root / "a1", PATIENTS, joules=5.0, pictured=["p1", "p2", "p5"], terms=["dice_loss"])
    write_run(root / "a2", PATIENTS, settings={"seed": 2}, joules=6.0, terms=["dice_loss"])
    write_run(root / "b", other, settings={"lr": 0.01, BAD: BAD}, pictured=["p1", BAD_CASE])
    named = write_run(root / "named", PATIENTS, task=BAD, pictured=["p3"], epochs=1)
    named.rename(root / BAD.replace("/", "∕"))
    return root


@pytest.fixture(scope="module")
def page(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(built(runs).page, encoding="utf-8")
    return path


def built(root: Path, every: float | None = None) -> document.Report:
    return document.build([run for path in sorted(root.iterdir()) for run in read(path)], [BAD], every)


def opened(driver: Any, page: Path, width: int = 1000) -> None:
    """Open the page and wait until its curves are drawn; what was logged before is thrown away."""
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    for kind in ("browser", "performance"):
        driver.get_log(kind)
    driver.get(page.as_uri())
    waited(lambda: driver.execute_script("return document.documentElement.dataset.ready === 'yes'"))


def waited(what: Callable[[], Any], seconds: float = 10.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
    return found


def press(driver: Any, selector: str, *keys: str) -> Any:
    """Focus an element and press keys, with no mouse."""
    element = driver.find_element("css selector", selector)
    driver.execute_script("arguments[0].focus()", element)
    assert driver.switch_to.active_element == element, f"{selector} takes no focus"
    element.send_keys(*keys)
    return element


def test_nothing_fails_and_nothing_is_asked_for(browser: Any, page: Path) -> None:
    opened(browser, page)
    browser.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
    browser.execute_script("scrollTo(0, document.body.scrollHeight)")
    assert [line for line in browser.get_log("browser") if line["level"] not in ("INFO", "DEBUG")] == []
    asked = []
    for line in browser.get_log("performance"):
        message = json.loads(line["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    assert browser.execute_script("return window.hacked") is None


def test_names_are_text(browser: Any, page: Path) -> None:
    opened(browser, page)
    words = browser.execute_script("return document.body.textContent")
    assert BAD in words
    assert f"DSC (validation), {BAD}: 0.200" in words, "one point is a number, no curve"
    assert BAD_CASE in words
    assert browser.execute_script("return document.querySelectorAll('main script:not([type]), img[src=x]').length") == 0


def test_every_picture_loads(browser: Any, page: Path) -> None:
    """Those in `img`, and those that a style lays behind the panels of a case."""
    opened(browser, page)
    script = """
    const done = arguments[0], urls = [...document.images].map((each) => each.src);
    for (const view of document.querySelectorAll('.view'))
      for (const [, url] of getComputedStyle(view).backgroundImage.matchAll(/url\\("([^"]+)"\\)/g)) urls.push(url);
    Promise.all(urls.map((url) => new Promise((tell) => {
      const image = new Image();
      image.onload = () => tell(image.naturalWidth); image.onerror = () => tell(0); image.src = url;
    }))).then(done);"""
    widths = browser.execute_async_script(script)
    assert len(widths) > 4 * 6
    assert min(widths) > 0


@pytest.mark.parametrize("width", [390, 820])
def test_the_page_does_not_scroll_to_the_side(browser: Any, page: Path, width: int) -> None:
    opened(browser, page, width)
    browser.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
    time.sleep(0.2)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    first = browser.execute_script("return document.querySelector('h1').getBoundingClientRect().bottom")
    assert first < 800, "the conclusion is on the first screen"


def test_sliders_are_worked_by_keyboard(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, page)
    slider = press(browser, ".slices input", Keys.HOME)
    before = place(browser)
    assert slider.get_attribute("aria-valuetext") == "slice 2 of 6"
    press(browser, ".slices input", Keys.ARROW_RIGHT)
    assert slider.get_attribute("aria-valuetext") == "slice 3 of 6"
    assert browser.find_element("css selector", ".slices output").text == "slice 3 of 6"
    assert place(browser) != before, "the picture follows"
    both = browser.execute_script(
        "return [...document.querySelectorAll('article')].map((each) => [...each.querySelectorAll('output')]"
        ".map((word) => word.textContent)).find((words) => words.length == 2)"
    )
    assert both[0] == both[1], "runs of a case show the same slice"


def place(driver: Any) -> str:
    return driver.execute_script("return getComputedStyle(document.querySelector('.view')).backgroundPosition")


def test_switches_are_worked_by_keyboard(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, page)
    assert axis(browser) == ["step", 80]
    press(browser, "input[name=over]:checked", Keys.ARROW_RIGHT)
    assert axis(browser) == ["wall time, minutes", pytest.approx(8 * 11.5 / 60, rel=1e-5)]  # six digits
    press(browser, "input[name=over]:checked", Keys.ARROW_RIGHT)
    assert axis(browser) == ["joules", 44], "the mean of 8 x 5 and 8 x 6, of the seeds"
    assert visible(browser) == {1}, "a run without joules is not drawn over them"
    press(browser, "input[name=over]:checked", Keys.ARROW_LEFT)
    assert visible(browser) == {1, 2}
    press(browser, "input[name=shown][value='1']", Keys.SPACE)
    assert visible(browser) == {2}
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    press(browser, "#theme", Keys.ENTER)
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") != dark
    opened(browser, page)
    assert axis(browser)[0] == "wall time, minutes", "kept where the page is loaded again"
    browser.execute_script("sessionStorage.clear()")


def axis(driver: Any) -> list[Any]:
    """(words of the axis, the last place of the first line) of the curves of scores."""
    return driver.execute_script(
        f"const figure = {SCORES}, line = figure.renderers[0].data_source.data.x;"
        "return [figure.below[0].axis_label, line[line.length - 1]]"
    )


def visible(driver: Any) -> set[int]:
    return set(
        driver.execute_script(f"return {SCORES}.renderers.filter((each) => each.visible).map((each) => each.tags[0])")
    )


@pytest.mark.parametrize("name", ["runs", "cases", "curves"])
def test_tables_are_saved_as_csv(browser: Any, page: Path, tmp_path: Path, name: str) -> None:
    import csv

    from selenium.webdriver.common.keys import Keys

    opened(browser, page)
    how = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", how)
    press(browser, f"button[data-csv={name}]", Keys.ENTER)
    saved = tmp_path / f"{name}.csv"
    waited(lambda: saved.exists() and saved.stat().st_size)  # the browser makes an empty file of the name first
    rows = list(csv.reader(saved.open(newline="", encoding="utf-8")))
    assert len(rows) > 3
    assert len({len(row) for row in rows}) == 1
    if name == "cases":
        assert ["b", "lgg", BAD_CASE, "0.2", "0.8"] in rows


def test_a_watched_page_comes_back_to_its_place(browser: Any, runs: Path, tmp_path: Path) -> None:
    """A run that goes on (its process is this one's child) makes a page that loads itself again."""
    import os

    child = subprocess.Popen([sys.executable, "-c", "input()  # unet"], stdin=subprocess.PIPE)
    folder = write_run(tmp_path / "goes-on", PATIENTS, status="running", terms=["dice_loss"])
    status = {"status": "running", "pid": child.pid, "host": os.uname().nodename, "kind": "train"}
    (folder / "status.json").write_text(json.dumps(status))
    page = tmp_path / "index.html"
    try:
        page.write_text(document.build(read(folder), every=1).page, encoding="utf-8")
        opened(browser, page, 390)
        assert "is running, epoch 8 of 8 done" in browser.find_element("tag name", "h1").text
        browser.execute_script(
            "window.first = 1; document.querySelector('#made details').open = true; scrollTo(0, 700)"
        )
        waited(lambda: browser.execute_script("return window.first === undefined"))
        waited(lambda: browser.execute_script("return document.documentElement.dataset.ready === 'yes' && scrollY > 0"))
        assert browser.execute_script("return [scrollY, document.querySelector('#made details').open]") == [700, True]
    finally:
        browser.get("about:blank")
        child.communicate()
    assert 'http-equiv="refresh"' not in document.build(read(folder), every=1).page, "the process is gone"


def test_without_bokeh_the_curves_are_svg(browser: Any, runs: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    monkeypatch.setitem(sys.modules, "bokeh.plotting", None)
    page = tmp_path / "index.html"
    page.write_text(document.build([*read(runs / "a1"), *read(runs / "b")]).page, encoding="utf-8")
    opened(browser, page)
    assert [line for line in browser.get_log("browser") if line["level"] not in ("INFO", "DEBUG")] == []
    assert bokeh_curves.MORE in browser.find_element("id", "curves").text
    assert shown(browser) == ["step"]
    press(browser, "input[name=over]:checked", Keys.ARROW_RIGHT)
    assert shown(browser) == ["seconds"]
    assert browser.execute_script("return document.querySelector('.still svg title').textContent").endswith("over step")


def shown(driver: Any) -> list[str]:
    return driver.execute_script(
        "return [...new Set([...document.querySelectorAll('.plots .still')].filter((each) => each.offsetHeight > 50)"
        ".map((each) => each.dataset.over))]"
    )
