"""Pages other than a run's own: one look, one policy, written where nothing else is lost.

A page says in its head that it was made here (`MARK`); one that says so is renewed, anything else is only
overwritten on request.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from parity.disk import room_for
from parity.errors import OutputExistsError, UsageError
from parity.plotstyle import visible
from parity.report import inline_hash, plain, spell_out

MARK = '<meta name="generator" content="parity report">'
STYLES = ("report.css", "pages.css")
SCRIPTS = ("theme.js", "pages.js")
_HEAD = 1024
_ADDRESS = 600


def render(template: str, **values: Any) -> str:
    """A page from a template, with every text made visible; the same for the same values.

    Args:
        template: name of a file in ``templates``.
        values: what it shows; markup in them is escaped unless it is `Markup`.
    """
    templates = resources.files("parity") / "templates"

    def read(name: str) -> str:
        return (templates / name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["plain"] = plain
    style, script = ("".join(map(read, names)) for names in (STYLES, SCRIPTS))
    return environment.get_template(template).render(
        style=Markup(style), script=Markup(script), style_hash=inline_hash(style), script_hash=inline_hash(script),
        mark=Markup(MARK), **{key: _visible(value) for key, value in values.items()},
    )  # fmt: skip


def _visible(value: Any) -> Any:
    """Texts spelled out, also within lists and tables; drawings stay what they are."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, Mapping):
        return {visible(str(key)): _visible(item) for key, item in value.items()}
    return [_visible(item) for item in value] if isinstance(value, list | tuple) else spell_out(value)


def sort_key(value: float | None) -> str:
    """What a script sorts a figure by; empty, behind all others, where there is none."""
    return "" if value is None else "1e999" if math.isinf(value) else f"{value:.6g}"


def link(target: Path, page: Path) -> str:
    """The way from a page to a file; empty where there is none."""
    return way(target, page) if target.is_file() else ""


def way(target: Path, page: Path) -> str:
    """The relative address of a file or a folder from a page; nothing in a name turns it into another one."""
    relative = os.path.relpath(target.resolve(), page.resolve().parent)
    return f"./{quote(os.fsencode(relative))}" if relative != "." else "."


def address(case: str, dtype: str, mode: str, checkpoint: str = "") -> str:
    """What selects an entry, or a checkpoint of it, on the page of a run; empty where it would be long.

    It is as that page's own script makes it, of names with everything visible in them.
    """
    parts = [f"{case}.{dtype}.{mode}", *([checkpoint] if checkpoint else [])]
    made = "#" + "/".join(quote(visible(part), safe="-_.!~*'()") for part in parts)
    return made if len(made) <= _ADDRESS else ""


def write_page(text: str, out: Path, *, force: bool) -> Path:
    """Write a page; one that was made here before is renewed.

    Raises:
        OutputExistsError: something else is there, and `force` is false.
        UsageError: it cannot be written there.
    """
    if out.is_dir():
        raise UsageError(f"{out} is a folder: --out takes the name of the page, such as {out / 'page.html'}")
    if not force and (out.is_symlink() or out.exists()) and not _ours(out):
        raise OutputExistsError(f"{out} is already there and no page of this command: choose another --out or --force")
    try:
        with room_for(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}; choose another --out") from None
    return out


def _ours(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK.encode() in file.read(_HEAD)
