"""`report.html`: one offline page, a pure function of a ``parity.json`` dict and the run's pictures.

The verdict, counts, sources, cases, pictures and settings are plain HTML. The rows travel packed
(`rowpack`), and the scripts in `templates/` draw the charts and the table from them.
Figures in the page have five significant digits; those in ``parity.json`` are exact, and its digest
is on the page. The page's policy forbids every request and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from parity import budgetpage, diagnosispage, health, panelpage, runfolder
from parity.disk import room_for
from parity.errors import OutputExistsError
from parity.memory import uncollected
from parity.pageimages import in_short, metric_rows, shots
from parity.plotstyle import cut, excess_of, visible
from parity.rowpack import pack
from parity.sections import Entry, component_title, estimated, group_of, is_exact, spans

VERDICTS = ("match", "suspect", "diverged", "uncertain", "missing", "skipped")
UPLOT = "vendor/uPlot-1.6.32"
STYLES = (f"{UPLOT}.min.css", "report.css")
SCRIPTS = (
    "theme", "data", "scales", "draw", "series", "heatmap", "sequence", "steps", "panels", "pictures", "address",
    "dataflow", "checkpoint", "table", "page",
)  # fmt: skip
# More entries than this stand in a table, a case a line.
CARDS = 16
# Pictures that stand open where there are many.
UNFOLDED = 2
TOKENS = (("image_tokens", "image tokens"), ("text_tokens", "text tokens"))
STARTS = {"picture": "encode and decode", "latents": "decode"}
# Of an entry: what grows with the number of checkpoints.
_ROWS = ("checkpoints", "graph")
TITLES = {"parity": "Parity", "divergence": "Divergence", "incomplete": "Incomplete"}


def render_report(
    run: Mapping[str, Any], out: Path, *, force: bool, folder: Path | None = None, digest: str | None = None
) -> Path:
    """Write the page of a run.

    Args:
        run: a ``parity.json`` of schema 2.
        out: the file; its folder is made where it is not there.
        force: replace a file that is there.
        folder: the run folder, where its pictures are; by default that of `out`.
        digest: `parity.runfolder.digest` of the run, where it is known.

    Raises:
        OutputExistsError: the file is there and `force` is false.
    """
    with room_for(out):
        there = out.exists()
    if there and not force:
        raise OutputExistsError(f"{out} is already there: choose another file or add --force")
    page = report_html(run, folder or out.parent, digest)
    with room_for(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8", newline="\n")
    return out


@uncollected()
def report_html(run: Mapping[str, Any], folder: Path | None = None, digest: str | None = None) -> str:
    """The page, the same for the same run and the same pictures in its `folder`."""
    digest = digest or runfolder.digest(run)
    pictures = [picture for entry in run["cases"] for picture in shown_pictures(entry, folder)]
    panels, unread = panelpage.panels(run, folder)
    run, diagnosis = _spell_out_but_rows(run), diagnosispage.of_folder(folder)
    alerts, passed = spell_out(health.examine(run))
    style, script = "".join(map(_asset, STYLES)), _script()
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"plain": plain, "share": _share}
    environment.tests["nested"] = lambda value: isinstance(value, Mapping)
    cards = spell_out([card(entry, index) for index, entry in enumerate(run["cases"])])
    return environment.get_template("report.html.j2").render(
        run=run, title=TITLES.get(run["verdict"], run["verdict"]), verdicts=VERDICTS, digest=digest,
        style=Markup(style), script=Markup(script), style_hash=inline_hash(style), script_hash=inline_hash(script),
        cards=cards, components=by_component(cards), compact=len(cards) > CARDS, sources=source_table(run),
        budget=budgetpage.section(run), diagnosis=spell_out(diagnosis),
        estimated=estimated([row for entry in run["cases"] for row in entry["checkpoints"]]),
        first=first_entry(run), pictures=spell_out(_unfold(pictures)),
        alerts=alerts, passed=passed, unread=spell_out(unread), data=Markup(pack(run, panels)),
    )  # fmt: skip


def _asset(name: str) -> str:
    return (resources.files("parity") / "templates" / name).read_text(encoding="utf-8")


def _script() -> str:
    """uPlot with its licence, which asks to go with every copy, and the page's own scripts."""
    licence = _asset(f"{UPLOT}.LICENSE").rstrip()
    return "".join(
        [f"/*\n{licence}\n*/\n", _asset(f"{UPLOT}.iife.min.js"), *(_asset(f"{name}.js") for name in SCRIPTS)]
    )


def spell_out(value: Any) -> Any:
    """`value` with `visible` applied to every text in it, keys included."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(str(key)): spell_out(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [spell_out(item) for item in value]
    return value


def _spell_out_but_rows(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run with every text spelled out but those of its rows and graphs, of which there are millions.

    What is shown of rows is spelled out where it is taken from them.
    """
    cases = [
        {key: item if key in _ROWS else spell_out(item) for key, item in entry.items()} for entry in run["cases"]
    ]  # fmt: skip
    return {**spell_out({**run, "cases": []}), "cases": cases}


def plain(value: Any) -> str:
    """A setting as text: lists with commas, numbers without noise, nothing as a dash."""
    if value is None or value == "":
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(f"({plain(item)})" if isinstance(item, list) else plain(item) for item in value)
    return str(value)


def card(entry: Entry, index: int = 0) -> dict[str, Any]:
    """What the page shows of a case entry: verdict, counts, the largest excess and where it is."""
    rows = entry["checkpoints"]
    known = [(value, row["name"]) for row in rows if (value := excess_of(row)) is not None]
    worst, where = max(known, key=lambda pair: pair[0], default=(None, ""))
    text = "—" if worst is None else "not finite" if math.isinf(worst) else f"{worst:.3g}"
    exact = [row for row in rows if is_exact(row)]
    differ = sum(row["verdict"] == "diverged" for row in exact)
    if exact and (len(exact) == len(rows) or (differ and worst is not None and math.isinf(worst))):
        text = f"{differ} differ" if differ else "all equal"
    return {**{key: entry[key] for key in ("name", "mode", "dtype", "verdict", "counts")},
            "index": index, "component": component_title(entry), "size": size_of(entry.get("inputs") or {}),
            "title": TITLES.get(entry["verdict"], entry["verdict"]), "worst": text, "where": where,
            "exact": len(exact), "differ": differ, "only_exact": len(exact) == len(rows)}  # fmt: skip


def by_component(cards: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    """Component -> case -> its cards, in order."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for one in cards:
        found.setdefault(one["component"], {}).setdefault(one["name"], []).append(one)
    return found


def size_of(inputs: Mapping[str, Any]) -> str:
    """What the inputs of a case are, in a few words; of unknown ones nothing is said."""
    said = [str(inputs["kind"]).replace("_", " ")] if inputs.get("kind") else []
    if inputs.get("image"):
        said.append(_pixels(inputs["image"]))
    tokens = [f"{plain(inputs[key])} {word}" for key, word in TOKENS if key in inputs and not inputs.get("image")]
    said += [" and ".join(tokens)] if tokens else []
    for key in ("images", "pictures"):
        if sizes := inputs.get(key):
            said.append(f"{len(sizes)} picture{'s' * (len(sizes) > 1)} given, {', '.join(map(_pixels, sizes))}")
    if prompts := inputs.get("prompts"):
        said.append(f"prompt “{cut(prompts[0], 40)}”" if len(prompts) == 1 else f"{len(prompts)} prompts")
    elif inputs.get("batch", 1) > 1:
        said.append(f"batch of {inputs['batch']}")
    said += [f"{plain(inputs[key])} steps" for key in ("steps",) if key in inputs]
    for key in ("guidance", "strength", "template"):
        if inputs.get(key) is not None:
            said.append(f"{key} {plain(inputs[key])}")
    said += [f"{inputs['settings']} settings"] if "settings" in inputs else []
    said += [STARTS[inputs["start"]]] if inputs.get("start") in STARTS else []
    if inside := inputs.get("inside"):
        said.append(f"inside step{'s' * (len(inside) > 1)} {plain(inside)}")
    return ", ".join(said)


def _pixels(size: Sequence[int]) -> str:
    return " × ".join(map(str, size))


def shown_pictures(entry: Entry, folder: Path | None) -> list[dict[str, Any]]:
    """The pictures of an entry with their figures, for the page."""
    found = entry.get("pictures") or []
    return [
        {
            "name": entry["name"], "dtype": entry["dtype"],
            "number": f"picture {picture.get('index', 0) + 1} of {len(found)}" if len(found) > 1 else "",
            "size": _pixels(picture.get("size") or []), "shots": [vars(shot) for shot in shots(picture, folder)],
            "metrics": list(metric_rows(picture.get("metrics") or {})),
            "short": in_short(picture.get("metrics") or {}), "rmse": (picture.get("metrics") or {}).get("rmse"),
        }
        for picture in found
    ]  # fmt: skip


def _unfold(pictures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Which pictures the page opens with: a few, or of many the first ones and the one that is furthest off."""
    off = [one["rmse"] if isinstance(one["rmse"], int | float) else -1.0 for one in pictures]
    shown = {*range(UNFOLDED), off.index(max(off))} if len(pictures) > UNFOLDED + 1 else set(range(len(pictures)))
    return [one | {"open": i in shown} for i, one in enumerate(pictures)]


def source_table(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sources of all entries, those that recur over blocks, layers or steps as one line each, in order."""
    found: dict[str, dict[str, Any]] = {}
    for entry in run["cases"]:
        label = f"{entry['name']} · {entry['dtype']} · {entry['mode']}"
        for name in entry["sources"]:
            group, indices = group_of(name)
            seen = found.setdefault(group, {"indices": {}, "entries": {}, "first": name})
            seen["entries"][label] = None
            for unit, index in indices.items():
                seen["indices"].setdefault(unit, set()).add(index)
    return [
        {
            "group": group, "first": seen["first"], "entries": list(seen["entries"]),
            "where": "; ".join(_named(unit, indices) for unit, indices in seen["indices"].items()),
        }
        for group, seen in found.items()
    ]  # fmt: skip


def _named(unit: str, indices: set[int]) -> str:
    return f"{unit}{'s' * (len(indices) > 1)} {spans(indices)}"


def first_entry(run: Mapping[str, Any]) -> int:
    """Index of the entry that the page opens with: the one of the first divergence, else the worst verdict."""
    first = run["first_divergence"]
    place = (first["case"], first["mode"], first["dtype"]) if first else None
    order = {verdict: i for i, verdict in enumerate(("divergence", "incomplete", "parity"))}

    def rank(index: int) -> tuple[bool, int]:
        entry = run["cases"][index]
        return (entry["name"], entry["mode"], entry["dtype"]) != place, order.get(entry["verdict"], 0)

    return min(range(len(run["cases"])), key=rank, default=0)


def _share(counts: Mapping[str, int]) -> Iterator[tuple[str, float, float]]:
    """Verdict, start and width in percent of each part of a bar of counts."""
    total = sum(counts[verdict] for verdict in VERDICTS) or 1
    start = 0.0
    for verdict in VERDICTS:
        width = 100 * counts[verdict] / total
        if width:
            # A single failure among thousands must still be seen.
            yield verdict, round(start, 3), round(max(width, 0.6), 3)
        start += width


def inline_hash(text: str) -> str:
    """A style or script as the page's policy names it, so that no other one is taken."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
