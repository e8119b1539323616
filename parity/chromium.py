"""Headless Chromium, where it is installed: how long a page takes until its charts are there.

The page lies in a frame of a second page, whose clock runs from the moment at which the frame is given its address,
and whose title says what it saw. The title is read through Chromium's own list of open pages.
"""

from __future__ import annotations

import html
import http.client
import json
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from parity.errors import PreconditionError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1400,1600",
    "--allow-file-access-from-files", "--remote-debugging-port=0",
)  # fmt: skip
# A report hides its message when everything is drawn; a frame later it has been painted.
_OUTSIDE = """<!doctype html><meta charset="utf-8"><title>waiting</title>
<iframe style="width:1280px;height:1500px;border:0"></iframe><script>
const frame = document.querySelector("iframe"), began = performance.now();
const now = () => performance.now() - began;
let loaded = null;
frame.onload = () => { loaded ??= now(); };
function look() {
  const message = loaded !== null && frame.contentDocument.querySelector("#message");
  if (!message) return setTimeout(look, loaded === null ? 2 : 50);
  if (!message.hidden) return setTimeout(look, 2);
  const drawn = now();
  const say = () => { document.title = "drawn " + JSON.stringify([loaded, drawn, now()]); };
  requestAnimationFrame(() => setTimeout(say));
}
frame.src = "%s";
look();
</script>"""


@dataclass(frozen=True)
class Shown:
    """When a page was there, in milliseconds since it was asked for.

    Attributes:
        loaded: its load event.
        drawn: its charts and its table are made; `loaded` where that was first.
        painted: they can be seen.
    """

    loaded: float
    drawn: float
    painted: float


def installed() -> str | None:
    """Path of Chromium or Chrome; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def show(page: Path, *, limit: float = 120.0) -> Shown:
    """Open a report in a Chromium of its own and wait until everything is drawn.

    Args:
        page: a ``report.html``.
        limit: seconds to wait.

    Raises:
        PreconditionError: Chromium is not installed, or the page was not drawn in time.
    """
    program = installed()
    if program is None:
        raise PreconditionError(f"no {', '.join(NAMES[:2])} or {NAMES[2]} on the PATH: install one to time the page")
    with tempfile.TemporaryDirectory(prefix="parity-chromium-", ignore_cleanup_errors=True) as scratch:
        outside, profile = Path(scratch) / "outside.html", Path(scratch) / "profile"
        outside.write_text(_OUTSIDE % html.escape(page.resolve().as_uri()), encoding="utf-8")
        command = [program, *_FLAGS, f"--user-data-dir={profile}", outside.as_uri()]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            title = _title(profile / "DevToolsActivePort", running, time.monotonic() + limit)
        finally:
            running.kill()
            running.wait()
    if title is None:
        raise PreconditionError(f"{program} did not draw {page} within {limit:g} s")
    return Shown(*json.loads(title))


def _title(port_file: Path, running: subprocess.Popen[bytes], until: float) -> str | None:
    """What the outer page says behind "drawn"; None where it says nothing in time."""
    while time.monotonic() < until and running.poll() is None:
        with suppress(OSError, ValueError, IndexError, http.client.HTTPException):
            for one in _pages(int(port_file.read_text().split()[0])):
                if str(one.get("title")).startswith("drawn "):
                    return one["title"].removeprefix("drawn ")
        time.sleep(0.1)
    return None


def _pages(port: int) -> list[dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/json/list")
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()
