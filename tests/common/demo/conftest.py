"""A server and a real browser for the tests of the page, started once."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.programs import ROOT

PATIENCE = 300  # seconds until something counts as hanging, on a machine that is busy


@dataclass
class Server:
    """A running demo."""

    url: str
    port: int
    process: subprocess.Popen
    cwd: Path
    temporary: Path


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Server]:
    """`python -m common.demo` in an empty folder. At its end the test below it looks at what it has left."""
    cwd, temporary = tmp_path_factory.mktemp("cwd"), tmp_path_factory.mktemp("temporary")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "common.demo", "--port", str(port)]
    with open(temporary.parent / "demo.log", "w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        line = process.stdout.readline()
        log.seek(0)
        assert line.startswith(f"http://127.0.0.1:{port}"), line + log.read()
        yield Server(f"http://127.0.0.1:{port}/", port, process, cwd, temporary)
        if process.poll() is None:
            stop(process)


def stop(process: subprocess.Popen) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(PATIENCE)


def chromium() -> str | None:
    """A Chromium of the system, or the one that playwright has installed."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    return None


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """A headless Chromium; without one, the tests of the page in a browser are skipped."""
    found = chromium()
    if found is None:
        pytest.skip("there is no Chromium (install it with apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


class Visitor:
    """A page in the browser, and everything that it complained about or asked for."""

    def __init__(self, browser, url: str, locale: str):
        self.context = browser.new_context(locale=locale, viewport={"width": 1280, "height": 900})
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE)
        self.problems, self.requests = [], []
        self.page.on("console", lambda m: m.type == "error" and self.problems.append(m.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("response", lambda r: r.status >= 400 and self.problems.append(f"{r.status} {r.url}"))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(url)
        self.page.wait_for_selector("#digits-run")
        wanted = "生成" if locale == "zh-CN" else "Generate"
        self.page.wait_for_function(f"document.querySelector('#digits-run').innerText.trim() === '{wanted}'")

    def tab(self, number: int) -> None:
        self.page.locator("[role=tab]").nth(number).click()

    def fill(self, **numbers: int) -> None:
        """Set sliders by the ids of their widgets: digits_steps=3"""
        for name, value in numbers.items():
            field = self.page.locator(f"#{name.replace('_', '-')} input[type=number]")
            field.fill(str(value))
            field.press("Tab")

    def run(self, name: str) -> str:
        """Press the button of a tab; the status line once it has finished or complained."""
        # the line of an earlier press stays below the progress bar until the new one comes, so it is marked as old
        self.page.evaluate(
            "(name) => document.querySelector(`#${name}-status .demo-status`)?.setAttribute('data-old', '')", name
        )
        self.page.click(f"#{name}-run")
        return self.status(name, "Done", "完成", error=True)

    def status(self, name: str, *words: str, error: bool = False) -> str:
        """The status line once it is a new error or begins with one of these words."""
        found = self.page.wait_for_function(
            """([name, words, error]) => {
                const status = document.querySelector(`#${name}-status .demo-status:not([data-old])`);
                const text = status ? status.innerText.trim() : "";
                return (error && status?.classList.contains("error")) || words.some((word) => text.startsWith(word)) ? text : null;
            }""",
            arg=[name, list(words), error],
        )
        return str(found.json_value())


@pytest.fixture
def visit(browser, server) -> Iterator:
    """visit(locale) -> a Visitor, whose complaints and requests are looked at when the test ends."""
    visitors = []

    def open_page(locale: str) -> Visitor:
        visitors.append(Visitor(browser, server.url, locale))
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.context.close()
        assert visitor.problems == []
        local = (server.url, "data:", "blob:")
        assert [url for url in visitor.requests if not url.startswith(local)] == []
