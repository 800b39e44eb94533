"""A headless Chromium that visits the web page: it must be on this machine already, nothing is downloaded."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from fastapi import FastAPI
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
Scheme = Literal["light", "dark"]

FINDINGS = """() => {
  const found = [];
  const shown = (one) => one.checkVisibility() && !one.closest(".hidden");
  const named = (one) => (one.getAttribute("aria-label") ?? one.textContent).trim() !== "";
  if (document.querySelectorAll("h1").length !== 1) found.push("there is not one h1");
  if (!document.documentElement.lang) found.push("the page has no language");
  if (!document.title) found.push("the page has no title");
  let level = 1;
  for (const heading of [...document.querySelectorAll("h1, h2, h3, h4")].filter(shown)) {
    const own = Number(heading.tagName[1]);
    if (own > level + 1) found.push(`heading ${heading.textContent} skips a level`);
    level = own;
  }
  for (const field of [...document.querySelectorAll("input, select, textarea")].filter(shown))
    if (field.labels.length === 0 && !field.getAttribute("aria-label")) found.push(`no label: ${field.id}`);
  for (const button of [...document.querySelectorAll("button, a, summary")].filter(shown))
    if (!named(button)) found.push(`no name: ${button.outerHTML}`);
  for (const one of document.querySelectorAll("[aria-labelledby], [aria-describedby]"))
    for (const name of ["aria-labelledby", "aria-describedby"])
      for (const id of (one.getAttribute(name) ?? "").split(" ").filter(Boolean))
        if (!document.getElementById(id)) found.push(`no such id: ${id}`);
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) found.push(`id twice: ${id}`);
  if (!document.querySelector("[role=status]") || !document.querySelector("[role=alert]")) found.push("no live region");
  if (!document.querySelector("main")) found.push("no main");
  for (const table of document.querySelectorAll("table"))
    if (!table.caption || !table.querySelector("th[scope=col]")) found.push("a table without caption or headings");
  return found;
}"""
"""What is wrong for people who do not see the page or do not use a mouse."""

LOW_CONTRAST = """(least) => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const color = channels(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
      if (color[3] !== 0) throw new Error(`half transparent: ${at.outerHTML.slice(0, 80)}`);
    }
    throw new Error("nothing behind");
  };
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!(own || one.value) || !one.checkVisibility() || one.closest(".hidden") || one.disabled) continue;
    const [a, b] = [luminance(channels(getComputedStyle(one).color)), luminance(behind(one))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < least) found.push(`${ratio.toFixed(2)}: ${one.tagName} ${one.textContent.slice(0, 40)}`);
  }
  return found;
}"""
"""Visible text whose contrast with what is behind it is too low, by the formula of WCAG 2."""

FOCUSABLE = """() => [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']")]
  .filter((one) => one.checkVisibility() && !one.disabled)
  .map((one, place) => (one.dataset.place = String(place)))"""
"""Numbers everything that a keyboard must reach, in the page's order."""


def find_chromium() -> str | None:
    """Return the path of a Chromium, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Start a headless Chromium that reaches nothing by itself."""
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    if path is None:
        raise FileNotFoundError(f"no Chromium on PATH; looked for {', '.join(NAMES)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve an application on a free port of this machine; yields its address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, name="serving")
    thread.start()
    try:
        end = time.monotonic() + 60
        while not server.started:
            if not thread.is_alive() or time.monotonic() > end:
                pytest.fail("the server did not start")
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=60)


@dataclass
class Visit:
    """A page with what it asked for and what the browser complained of."""

    page: Page
    address: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def scores(self) -> dict[str, dict[str, float]]:
        """Return the probabilities that stand on the page: task, class, value."""
        rows = self.page.locator(".scores tr[data-class]").evaluate_all(
            "rows => rows.map((row) => [row.closest('tbody').dataset.task, row.dataset.class,"
            " Number(row.querySelector('data').value)])"
        )
        found: dict[str, dict[str, float]] = {}
        for task, name, value in rows:
            found.setdefault(task, {})[name] = value
        return found

    def tab_to(self, id: str, most: int = 60) -> None:
        """Press the tabulator until the element has the focus."""
        for _ in range(most):
            if self.page.evaluate("document.activeElement?.id") == id:
                return
            self.page.keyboard.press("Tab")
        pytest.fail(f"{id} cannot be reached with the tabulator")


@contextmanager
def visiting(
    browser: Browser, address: str, token: str = "", *, width: int = 1440, height: int = 900, scheme: Scheme = "light"
) -> Iterator[Visit]:
    """Open the page in a new profile, with the token in the address as the server prints it."""
    context: Any = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    try:
        page = context.new_page()
        page.set_default_timeout(20_000)
        visit = Visit(page, address)
        page.on("request", lambda request: visit.requests.append(request.url))
        page.on("console", lambda message: visit.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: visit.complaints.append(f"error: {error}"))
        page.goto(f"{address}/{f'#token={token}' if token else ''}")
        yield visit
    finally:
        context.close()
