"""The report's page in a real browser: Debian's Chromium, or one that is called so.

apt-get install chromium chromium-driver && pip install selenium
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished

from cdlm import report as reports
from cdlm.report import kept

webdriver: Any = pytest.importorskip(
    "selenium.webdriver", reason="selenium is not installed: pip install -e '.[test]'"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver are found on this machine"
)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
TEXT = 4.5  # contrast that small text needs, by WCAG 2.2
DRAWN = 3.0  # that of lines and marks


@pytest.fixture(scope="module")
def page(tiny_run: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two runs, which has all that a page can have but a study."""
    folder = tmp_path_factory.mktemp("browser")
    runs = [shutil.copytree(tiny_run.path, folder / name / "run") for name in ("one", "two")]
    recipe = runs[1] / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("seed = 0\n", "seed = 1\n", 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "STEPS", (1, 2))
        patch.setattr(kept, "IMAGES", 2)
        patch.setattr(kept, "POINTS", 3)
        reports.report(runs, folder, device="cpu")
    return folder / "report.html"


@pytest.fixture(scope="module")
def started(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(started: Any, page: Path) -> Any:
    """The page, newly loaded in a window of 1400 pixels, light."""
    from selenium.webdriver.support.ui import WebDriverWait

    look(started, 1400, "light")
    started.get(page.as_uri())
    WebDriverWait(started, 20).until(lambda it: it.find_elements("css selector", "footer"))
    return started


def look(browser: Any, width: int, scheme: str) -> None:
    """A window so wide, in this colour scheme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def test_it_loads_nothing_but_itself_and_complains_of_nothing(browser: Any, page: Path) -> None:
    browser.get_log("browser"), browser.get_log("performance")  # what was before
    browser.refresh()
    assert browser.get_log("browser") == []
    asked = [
        address
        for entry in browser.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
        for address in re.findall(r'"request":\{.*?"url":"([^"]+)"', entry["message"])
    ]
    assert asked and {it for it in asked if not it.startswith("data:")} == {page.as_uri()}


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_it_fits_every_width(browser: Any, width: int) -> None:
    look(browser, width, "light")
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width
    for details in browser.find_elements("css selector", "details"):
        browser.execute_script("arguments[0].open = true", details)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_recipe_is_copied_by_one_click(browser: Any) -> None:
    origin = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    browser.execute_cdp_cmd("Browser.grantPermissions", origin)
    browser.find_element("css selector", "#recipe summary").click()
    button = browser.find_element("css selector", "#recipe button.copy")
    assert button.accessible_name == "Copy the recipe of one"
    button.click()
    copied = browser.execute_async_script(
        "const done = arguments[0]; setTimeout(() => navigator.clipboard.readText().then(done), 50)"
    )
    recipe = browser.find_element("id", "recipe-1").get_property("textContent")
    assert copied == recipe and copied.startswith('# "one", every default filled in')
    assert browser.find_element("id", "told").get_property("textContent") == "Copied"


def test_without_permission_the_text_is_still_copied_or_selected(browser: Any) -> None:
    browser.execute_script(
        "Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })"
    )
    browser.find_element("css selector", "#recipe summary").click()
    browser.find_element("css selector", "#recipe button.copy").click()
    recipe = browser.find_element("id", "recipe-1").get_property("textContent")
    selected = browser.execute_script("return getSelection().toString()")
    assert selected.split() == recipe.split()


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb", by WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [it / 12.92 if it <= 0.04045 else ((it + 0.055) / 1.055) ** 2.4 for it in parts]
    return sum(w * it for w, it in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_theme_and_can_be_told_from_the_ground(
    browser: Any, scheme: str
) -> None:
    look(browser, 1400, scheme)

    def colour(name: str) -> str:
        read = "return getComputedStyle(document.documentElement).getPropertyValue(arguments[0])"
        return browser.execute_script(read, f"--{name}").strip()

    assert (luminance(colour("paper")) > 0.5) == (scheme == "light")
    everywhere = product(("ink", "grey", "link", "good", "bad"), ("paper", "panel"))
    there = (("ink", "settled"), ("ink", "fresh"), ("ink", "warn-panel"), ("warn", "warn-panel"))
    code = product(("series-2", "series-3", "series-4"), ("panel",))
    for text, ground in (*everywhere, *there, *code):
        assert contrast(colour(text), colour(ground)) >= TEXT, (text, ground)
    for i in range(1, 9):
        assert contrast(colour(f"series-{i}"), colour("paper")) >= DRAWN, i
    drawn = browser.execute_script(
        "return getComputedStyle(document.querySelector('.chart svg text')).fill"
    )
    assert drawn == browser.execute_script("return getComputedStyle(document.body).color")


def test_everything_can_be_reached_by_keyboard(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.find_element("tag name", "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the report"
    stuck = browser.execute_script(
        "return [...document.querySelectorAll('.scroll, pre')].filter(it => it.tabIndex < 0).length"
    )
    assert stuck == 0
    nameless = browser.execute_script(
        "return [...document.querySelectorAll('img:not([alt]), svg[role=img]:not([aria-label]), "
        "[role=region]:not([aria-label])')].length"
    )
    assert nameless == 0
    levels = [int(it.tag_name[1]) for it in browser.find_elements("css selector", "h1, h2, h3")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_it_prints_light_whatever_the_theme(browser: Any) -> None:
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    ground = "return getComputedStyle(document.documentElement).backgroundColor"
    assert browser.execute_script(ground) == "rgb(255, 255, 255)"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    pdf = browser.execute_cdp_cmd("Page.printToPDF", {})
    assert len(pdf["data"]) > 20_000
    opened = "return [...document.querySelectorAll('details.printed')].every(it => it.open)"
    assert browser.execute_script(opened)
