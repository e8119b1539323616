"""A page looked at from outside by headless Chromium: its address is set, its parts are clicked, its state is read.

The page lies in a frame of a second page, whose script looks in and writes what it saw into its own title.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
    "--virtual-time-budget=20000", "--window-size=1400,1600", "--dump-dom", "--allow-file-access-from-files",
)  # fmt: skip
_LOOK = """<!doctype html><meta charset="utf-8"><title>nothing</title>
<iframe src="%s" style="width:%dpx;height:3000px;border:0"></iframe><script>
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
async function look() {
  const win = frames[0], event = { bubbles: true, cancelable: true };
  const $ = (query) => win.document.querySelector(query), all = (query) => [...win.document.querySelectorAll(query)];
  const until = async (test) => { for (let n = 0; n < 400 && !test(); n++) await sleep(20); await sleep(60); };
  const press = (key, at = win.document.body) => at.dispatchEvent(new win.KeyboardEvent("keydown", { key, ...event }));
  const click = (node) => node.dispatchEvent(new win.MouseEvent("click", event));
  const mouse = ([clientX, clientY]) => ({ clientX, clientY, movementX: 1, view: win, ...event });
  const point = (kind, node, at) => node.dispatchEvent(new win.MouseEvent(kind, mouse(at)));
  const cell = (i) => { const { x, y } = win.cellMiddle(i); return [x, y]; };
  const drawn = () => $("#message[hidden]") || /could not|has no/.test($("#message")?.textContent);
  await until(() => win.document?.readyState === "complete" && drawn());
  %s
}
const write = (title) => { document.title = title; };
look().then((seen) => write("looked " + JSON.stringify(seen)), (error) => write("failed " + error));
</script>"""


def look(page: Path, script: str, *, address: str = "", width: int = 1280) -> tuple[object, list[str]]:
    """What `script`, the body of an async function, returns of the page, and what was said on the console.

    The script has ``$`` and ``all`` (queries in the page), ``win``, ``until(test)``, ``sleep(ms)``, ``click(node)``,
    ``press(key, node)``, ``point(kind of event, node, [x, y])`` and ``cell(row)``, the middle of a cell of the heatmap.
    """
    outside = page.with_name("look.html")
    outside.write_text(_LOOK % (html.escape(page.name + address), width, script), encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={page.parent / 'profile'}", outside.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    title = html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1])
    kind, _, seen = title.partition(" ")
    assert kind == "looked", title
    return json.loads(seen), re.findall(r"CONSOLE[^\n]*", done.stderr)
