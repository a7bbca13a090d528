"""The report in headless Chromium: figures, filters, side-by-side view, hostile text, watching.

Needs Chromium with its driver (Debian: chromium, chromium-driver) and selenium from PyPI; skipped without them, as in
CI. Screenshots go to $SRLM_SHOTS if that is set.
"""

import base64
import json
import os
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from test_report import HOSTILE, PROMPTS, record, served, write_diagnosis, write_records, write_run, write_samples

from srlm.report import report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BINARIES = [shutil.which(name) for name in ("chromium", "chromedriver")]
if not all(BINARIES):
    pytest.skip("chromium and chromedriver are not installed", allow_module_level=True)

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402


@pytest.fixture(scope="module")
def chromium():
    options = webdriver.ChromeOptions()
    options.binary_location = BINARIES[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(BINARIES[1]))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium):
    """With no error on its console at the end, whatever was done."""
    chromium.get("about:blank")
    chromium.get_log("browser")
    yield chromium
    assert chromium.get_log("browser") == []


def opened(browser, *folders):
    """The report of folders; milliseconds from the start of loading until all is drawn."""
    browser.get(report(folders).resolve().as_uri())
    return ready(browser)


def ready(browser):
    return int(browser.execute_script("return document.documentElement.dataset.ready"))


def find(browser, css):
    return browser.find_elements(By.CSS_SELECTOR, css)


def count(browser):
    return int(find(browser, "#count")[0].text.split()[0])


def choose(browser, field, value):
    Select(find(browser, f"#f-{field}")[0]).select_by_value(value)


def typed(browser, field, text):
    box = find(browser, f"#f-{field}")[0]
    box.clear()
    box.send_keys(text)


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def drawn(browser):
    """Points, bars or lines of every figure, by its id."""
    return browser.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('#figures figure')].map(f => "
        "[f.id, f.querySelectorAll('.trace, .bars .point').length]))"
    )


@pytest.mark.parametrize("kind", ["run", "diagnosis"])
def test_every_figure_is_drawn(browser, tmp_path, kind):
    folder = write_run(tmp_path / "run") if kind == "run" else write_diagnosis(tmp_path / "d")
    opened(browser, folder)
    assert len(drawn(browser)) == (24 if kind == "run" else 3)
    assert [id for id, lines in drawn(browser).items() if not lines] == []


def test_filters(browser, run):
    opened(browser, run)
    assert count(browser) == 72  # 3 rounds of 3 prompts, 4 samples each, held out and training
    choose(browser, "part", "held out")
    assert count(browser) == 36
    choose(browser, "round", "1")
    assert count(browser) == 12
    choose(browser, "right", "1")
    assert count(browser) == 3
    assert all("✓ right" in card.text for card in find(browser, "#list .sample"))
    choose(browser, "right", "")
    typed(browser, "min", "-1.95")
    assert count(browser) == 6
    typed(browser, "max", "-1")
    assert count(browser) == 3
    typed(browser, "text", "of b?")
    assert count(browser) == 1
    find(browser, "#filters button")[0].click()
    time.sleep(0.2)
    assert count(browser) == 72
    find(browser, "#more")[0].click()
    assert len(find(browser, "#list .sample")) == 72


def test_responses_side_by_side(browser, run):
    opened(browser, run)
    find(browser, "#list .sample button")[0].click()
    beside = find(browser, "#beside")[0]
    assert [title.text for title in find(browser, "#beside h3")] == ["Round 0", "Round 1", "Round 2"]
    assert PROMPTS[0] in beside.text and "2 times" in beside.text
    assert browser.switch_to.active_element.text == "Close"
    browser.switch_to.active_element.send_keys("\n")
    assert not beside.is_displayed()


def test_tokens_are_shaded(browser, run):
    """An emoji is one character and two UTF-16 units; its two tokens are one piece."""
    file = run / "round-001" / "held_out.parquet"
    table = parquet.read_table(file).slice(0, 1).drop_columns("response")
    columns = {"response": ["so 😀<b>"], "token_end": [[2, 3, 3, 4, 7, 7]]}
    columns["token_log_prob"] = [[-0.05, -0.5, -0.75, -0.25, -8.0, -3.0]]
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    parquet.write_table(table, file)
    opened(browser, run)
    choose(browser, "part", "held out")
    find(browser, "#list .sample button")[0].click()
    pieces = find(browser, "#beside .response span")
    shown = [(piece.text, piece.get_attribute("class"), piece.get_attribute("title")) for piece in pieces]
    assert [text for text, _, _ in shown] == ["so", " ", "😀", "<b>", "∎"]
    assert [kind for _, kind, _ in shown] == ["p0", "p1", "p2", "p4", "p3"]
    assert (shown[3][2], shown[4][2]) == ("log-prob -8.00", "end, log-prob -3.00")
    assert "nats" in find(browser, "#beside .quiet")[0].text


def test_hostile_text_stays_text(browser, tmp_path):
    prompts = [f"{text} ?" for text in HOSTILE]
    folder = write_run(tmp_path / "<img src=x onerror=window.broken=1>", prompts=prompts, responses=HOSTILE)
    manifest = json.loads((folder / "manifest.json").read_text())
    guard = {"events": [{"round": 1, "action": "<a href='javascript:window.broken=1'>x</a>"}]}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"model": HOSTILE[1], "guard": guard}))
    write_records(folder, [record(t) | {f"seconds_{HOSTILE[0]}": 1.0} for t in range(3)])
    other = write_run(tmp_path / "<b>other</b>")
    for folders in ([folder], [folder, other]):
        opened(browser, *folders)
        for button in find(browser, "#list .sample button")[:3]:
            browser.execute_script("arguments[0].click()", button)
        while find(browser, "#more")[0].is_displayed():
            browser.execute_script("document.getElementById('more').click()")
        assert browser.execute_script("return window.broken === undefined")
        inside = "#list, #beside, #summary, #details, #figures"
        odd = "script, img, iframe, a, b, i, svg a, object, [onload], [onerror]"
        found = browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].flatMap(p => [...p.querySelectorAll(arguments[1])])"
            ".map(e => e.outerHTML)",
            inside,
            odd,
        )
        assert found == []
    shown = {card.text for card in find(browser, "#list .response")}
    assert HOSTILE[0] in shown and HOSTILE[1] in shown and any("\\u202e" in text for text in shown)


def test_an_injected_script_would_not_run(browser, run):
    opened(browser, run)
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.broken = 1'; document.body.append(s)"
    )
    assert browser.execute_script("return window.broken === undefined")
    assert "Content Security Policy" in browser.get_log("browser")[0]["message"]


def test_ten_thousand_samples_load_in_two_seconds(browser, tmp_path):
    prompts = [f"Prompt number {i}, of some length, as prompts are?" for i in range(625)]
    folder = write_run(tmp_path / "run", rounds=0)
    for part in ("held_out", "rollouts"):
        responses = [f"The {part} answer is {i}, in a sentence of some words." for i in range(4999)]
        write_samples(folder / "round-000" / f"{part}.parquet", prompts, responses, 8)
    times = [opened(browser, folder) for _ in range(2)]
    assert count(browser) == 10_000
    assert min(times) < 2000, times
    start = time.perf_counter()
    typed(browser, "text", "answer is 77,")
    assert 1 <= count(browser) <= 6 and time.perf_counter() - start < 2


def test_no_sideways_scrolling_and_pictures(browser, run, tmp_path):
    file = report([run])
    folder = Path(os.environ.get("SRLM_SHOTS", tmp_path))
    for name, width, scheme in (("light", 1280, "light"), ("dark", 1280, "dark"), ("phone", 390, "light")):
        screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": name == "phone"}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get(file.resolve().as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        (folder / f"report-{name}.png").write_bytes(base64.b64decode(shot["data"]))
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_watching_shows_a_new_record_within_two_seconds(browser, tmp_path):
    folder = write_run(tmp_path / "run", state="running")
    with served(folder) as port:
        browser.get(f"http://127.0.0.1:{port}/")
        choose(browser, "round", "1")
        typed(browser, "text", "capital of b")
        before = count(browser)
        browser.execute_script("document.querySelector('#config-1').open = true")
        browser.execute_script("window.scrollTo(0, 500)")
        write_records(folder, [record(t, 0.2) for t in range(3)] + [record(3, 0.9)])
        start = time.perf_counter()
        while "0.900" not in find(browser, "#summary")[0].text and time.perf_counter() - start < 5:
            time.sleep(0.02)
        assert time.perf_counter() - start < 2
        points = "return document.querySelector('#figure-kappa .plot').data[0].x.length"
        assert browser.execute_script(points) == 4
        assert count(browser) == before and find(browser, "#f-text")[0].get_attribute("value") == "capital of b"
        assert find(browser, "#config-1[open]") and browser.execute_script("return window.scrollY") == 500
        shutil.rmtree(folder)
        time.sleep(1.5)
        assert "Waiting" in find(browser, "#summary")[0].text
        browser.get("about:blank")  # before its server goes away
