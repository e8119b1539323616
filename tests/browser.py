"""The system's Chromium, driven by Playwright: what a page has become, what is seen of it, what it asks for.

A page that a script looks at lies in a frame of a second page, so that the script can go on when the page is left.
"""

from __future__ import annotations

import atexit
import functools
import html
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from parity import chromium

CHROMIUM = chromium.installed()
FRAME = """<!doctype html><meta charset="utf-8"><title>outside</title><style>body { margin: 0 }</style>
<iframe src="%s" style="width:%dpx;height:3000px;border:0"></iframe>"""
HELPERS = """const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
  const win = frames[0], event = { bubbles: true, cancelable: true };
  const $ = (query) => win.document.querySelector(query), all = (query) => [...win.document.querySelectorAll(query)];
  const until = async (test) => { for (let n = 0; n < 400 && !test(); n++) await sleep(20); await sleep(60); };
  const press = (key, at = win.document.body) => at.dispatchEvent(new win.KeyboardEvent("keydown", { key, ...event }));
  const click = (node) => node.dispatchEvent(new win.MouseEvent("click", event));
  const mouse = ([clientX, clientY]) => ({ clientX, clientY, movementX: 1, view: win, ...event });
  const point = (kind, node, at) => node.dispatchEvent(new win.MouseEvent(kind, mouse(at)));
  const cell = (i) => { const { x, y } = win.cellMiddle(i); return [x, y]; };
  const drawn = () => !$("#message") || $("#message[hidden]") || /could not|has no/.test($("#message").textContent);
  await until(() => win.document?.readyState === "complete" && drawn());
"""


@dataclass
class Tab:
    """An open page, what it said on the console, and the addresses it asked for that are no files."""

    page: Page
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@functools.cache
def _browser() -> Browser:
    driver = sync_playwright().start()
    atexit.register(driver.stop)
    flags = ["--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    return driver.chromium.launch(executable_path=CHROMIUM, args=flags)


@contextmanager
def tab(address: str, *, width: int = 1400, height: int = 1600, dark: bool = False) -> Iterator[Tab]:
    """A page, opened in a browser of its own kind: nothing is left of the one before."""
    scheme = "dark" if dark else "light"
    context = _browser().new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    try:
        opened = Tab(context.new_page())
        opened.page.on("console", lambda said: opened.console.append(said.text))
        opened.page.on("pageerror", lambda error: opened.console.append(str(error)))
        outside = opened.requests
        opened.page.on("request", lambda one: outside.append(one.url) if is_outside(one.url) else None)
        opened.page.goto(address)
        yield opened
    finally:
        context.close()


def is_outside(address: str) -> bool:
    """Whether an address is neither a file nor in the page itself."""
    return not address.startswith(("file:", "data:", "blob:"))


def drawn(opened: Tab) -> None:
    """Wait until a report has drawn its charts, or says why not."""
    ready = """() => { const said = document.getElementById("message");
      return said.hidden || /could not|has no/.test(said.textContent); }"""
    opened.page.wait_for_function(ready)


def look(page: Path, script: str, *, address: str = "", width: int = 1280) -> tuple[object, list[str]]:
    """What `script`, the body of an async function, returns of the page, and what was said on the console.

    The script has ``$`` and ``all`` (queries in the page), ``win``, ``until(test)``, ``sleep(ms)``, ``click(node)``,
    ``press(key, node)``, ``point(kind of event, node, [x, y])`` and ``cell(row)``, the middle of a cell of the heatmap.
    """
    outside = page.with_name("look.html")
    outside.write_text(FRAME % (html.escape(page.name + address), width), encoding="utf-8")
    with tab(outside.as_uri()) as opened:
        seen = opened.page.evaluate(f"async () => {{ {HELPERS} {script} }}")
        return seen, opened.console
