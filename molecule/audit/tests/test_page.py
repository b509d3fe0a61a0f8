"""The page of an audit of 5,000 nodes in a real browser: its size, its filter, and how it looks.

Chromium is Debian's, on a node of the lab, driven by chromedriver (W3C WebDriver). Screenshots stay in
build/audit.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

testinfra_hosts = ["desk"]

PROJECT = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]).parents[1]
SCREENSHOTS = PROJECT / "build/audit"
PAGE, NODES = "/srv/audit.html", 5000
MOST = 5 * 10**6
PORT = 9515


class Browser:
    """A session of chromedriver on a node."""

    def __init__(self, address: str, dark: bool = False) -> None:
        self._url = f"http://{address}:{PORT}/session"
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1600"]
        arguments += ["--blink-settings=preferredColorScheme=0"] * dark
        options = {"args": arguments, "binary": "/usr/bin/chromium"}
        always = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        wanted = {"capabilities": {"alwaysMatch": always}}
        self._url += "/" + self._call("", wanted)["sessionId"]

    def _call(self, path: str, data: dict[str, Any] | None = None, method: str = "POST") -> Any:
        body = None if data is None else json.dumps(data).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}{path}", body, headers, method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - http, in the lab
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        self._call("/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        return self._call("/execute/sync", {"script": script, "args": list(arguments)})

    def type(self, selector: str, text: str) -> None:
        found = self._call("/element", {"using": "css selector", "value": selector})
        self._call(f"/element/{next(iter(found.values()))}/value", {"text": text})

    def click(self, selector: str) -> None:
        found = self._call("/element", {"using": "css selector", "value": selector})
        self._call(f"/element/{next(iter(found.values()))}/click", {})

    def screenshot(self, name: str) -> bytes:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        picture = base64.b64decode(self._call("/screenshot", method="GET"))
        (SCREENSHOTS / f"{name}.png").write_bytes(picture)
        return picture

    def complaints(self) -> list[str]:
        return [one["message"] for one in self._call("/se/log", {"type": "browser"})]

    def close(self) -> None:
        self._call("", method="DELETE")


@pytest.fixture(scope="module")
def page(node, tmp_path_factory) -> str:
    """The page of a generated fleet, on the node with the browser; its text."""
    file = tmp_path_factory.mktemp("page") / "audit.html"
    said = subprocess.run(
        [sys.executable, str(PROJECT / "tests/bench/audit_page"), str(NODES), str(file)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    print(said)
    desk = node("desk")
    text = file.read_text()
    encoded = base64.b64encode(text.encode()).decode()
    for start in range(0, len(encoded), 90000):
        desk.check_output(f"echo {encoded[start : start + 90000]} >> /srv/audit.b64")
    desk.check_output(f"base64 --decode /srv/audit.b64 > {PAGE} && rm /srv/audit.b64")
    return text


@pytest.fixture(scope="module")
def driver(node, page) -> Iterator[str]:
    """The address of a chromedriver that this machine may ask."""
    desk = node("desk")
    address = desk.check_output("hostname -I").split()[0]
    gateway = f"{address.rpartition('.')[0]}.1"
    command = f"chromedriver --port={PORT} --allowed-ips={gateway} --allowed-origins='*'"
    desk.check_output(f"systemd-run --unit=driver --collect {command}")
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://{address}:{PORT}/status", timeout=5)
            break
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            assert time.monotonic() < deadline, desk.check_output("journalctl -u driver | tail -20")
            time.sleep(0.5)
    yield address
    desk.run("systemctl stop driver")


@pytest.fixture(scope="module")
def browser(driver) -> Iterator[Browser]:
    made = Browser(driver)
    made.open(f"file://{PAGE}")
    yield made
    made.close()


def shown(browser: Browser, table: str = "findings") -> list[str]:
    rows = "[...document.querySelectorAll(`#${arguments[0]} tbody tr`)]"
    script = f"return {rows}.filter(row => row.offsetParent).map(row => row.innerText)"
    found: list[str] = browser.run(script, table)
    return found


def reset(browser: Browser) -> None:
    browser.click("button[type=reset]")
    browser.run("return new Promise(done => setTimeout(done, 50))")


def test_it_is_small_and_the_browser_has_nothing_to_complain_of(page, browser):
    assert len(page.encode()) <= MOST
    assert browser.complaints() == []
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    timing = browser.run("const t = performance.getEntriesByType('navigation')[0]; return t.loadEventEnd")
    print(f"loaded after {timing:.0f} ms")


def test_everything_is_there_before_anybody_filters(browser):
    assert len(shown(browser)) > 50
    assert browser.run("return document.querySelector('.tiles b').innerText") == str(NODES)
    assert browser.run("return document.querySelectorAll('figure svg rect').length") > 50
    browser.screenshot("all")


def test_the_filter_finds_a_node_that_is_folded_into_hostlists(browser):
    before = len(shown(browser))
    browser.type("#search", "r100n50")
    found = shown(browser)
    assert 0 < len(found) < before
    assert any("allow setuid = yes" in row and "apptainer.conf:31" in row for row in found)
    assert len(shown(browser, "nodes")) == 1
    assert f"findings {len(found)}, rows of nodes 1" in browser.run(
        "return document.getElementById('shown').value"
    )
    browser.screenshot("one_node")
    reset(browser)
    assert len(shown(browser)) == before


def test_words_severity_and_source_narrow_it_down_together(browser):
    browser.type("#search", "apptainer.conf setuid")
    assert len(shown(browser)) == 1
    browser.type("#severity", "waived")
    assert shown(browser) == []
    reset(browser)
    browser.type("#source", "image")
    (row,) = shown(browser)
    assert "<script>alert(1)</script>.sif" in row
    reset(browser)


def test_runs_of_playbooks_are_there_whatever_is_filtered(browser):
    rows = shown(browser, "runs")
    assert len(rows) == 2 and "it has not ended" in rows[0]
    assert "ada" in rows[1] and "4990 ok" in rows[1] and "10 failed" in rows[1] and "r[001,011," in rows[1]
    browser.type("#search", "r100n50")
    assert shown(browser, "runs") == rows
    reset(browser)


def test_the_keyboard_reaches_it_and_dark_is_dark(browser, driver):
    browser.run("document.activeElement.blur()")
    browser.type("body", "/")
    assert browser.run("return document.activeElement.id") == "search"
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = browser.run(colour)
    dark = Browser(driver, dark=True)
    try:
        dark.open(f"file://{PAGE}")
        assert dark.run(colour) != light
        dark.screenshot("dark")
    finally:
        dark.close()


def test_a_picture_of_it_is_no_empty_sheet(browser):
    picture = browser.screenshot("all")
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) > 50_000
