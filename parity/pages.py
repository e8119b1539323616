"""Pages other than a run's own: one look, one policy, written where nothing else is lost.

A page says in its head that it was made here (`MARK`); one that says so is renewed, anything else is only
overwritten on request.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from parity.disk import room_for
from parity.errors import OutputExistsError
from parity.report import inline_hash, plain, spell_out

MARK = '<meta name="generator" content="parity report">'
STYLES = ("report.css", "pages.css")
SCRIPTS = ("theme.js", "pages.js")
_HEAD = 1024


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
    return value if isinstance(value, Markup) else spell_out(value)


def write_page(text: str, out: Path, *, force: bool) -> Path:
    """Write a page; one that was made here before is renewed.

    Raises:
        OutputExistsError: something else is there, and `force` is false.
    """
    if not force and (out.is_symlink() or out.exists()) and not _ours(out):
        raise OutputExistsError(f"{out} is already there and no page of this command: choose another --out or --force")
    with room_for(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8", newline="\n")
    return out


def _ours(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK.encode() in file.read(_HEAD)
