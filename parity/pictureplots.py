"""The pictures of a run beside each other: what the reference made, what the port made, and how far they are apart."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from parity.errors import UsageError
from parity.pageimages import SIDES, amplified, metric_rows, read_side
from parity.plotstyle import SIZE, Theme, footnote, page, slug
from parity.sections import Entry, component_title

# Of the pictures: left edge of the first one, width, what lies between two of them, upper edge, height.
LEFT, WIDE, GAP, TOP, TALL = 0.035, 0.3, 0.015, 0.815, 0.6


def plan(run: Mapping[str, Any], folder: Path | None) -> list[tuple[str, Callable[[Theme], Figure]]]:
    """Name and maker of a figure for each picture, such as ``pictures.inpaint.float32.accumulated.0``."""
    found = []
    for entry in run["cases"] if folder else ():
        for index, picture in enumerate(entry.get("pictures") or ()):
            place = [entry["name"], entry["dtype"], entry["mode"], str(index)]
            draw = partial(picture_figure, run, entry, picture, folder)
            found.append((".".join(["pictures", *map(slug, place)]), draw))
    return found


def picture_figure(
    run: Mapping[str, Any], entry: Entry, picture: Mapping[str, Any], folder: Path, colours: Theme
) -> Figure:
    """Reference, candidate and their difference, amplified; a sentence in place of what is not there."""
    text = "what the reference made, what the port made, and their difference, amplified"
    what = [component_title(entry), entry["name"], entry["dtype"], entry["mode"]]
    figure = page(run, colours, "Pictures", text, what=what)
    pixels, missing = {}, {}
    for side in SIDES:
        try:
            _, image = read_side(picture, side, folder)
            pixels[side] = np.asarray(image)
        except UsageError as error:
            missing[side] = str(error)
    apart, title, note = amplified(pixels)
    panels = [(side.capitalize(), pixels.get(side), missing.get(side, "")) for side in SIDES]
    for i, (name, shown, why) in enumerate([*panels, (title, apart, note)]):
        left = LEFT + i * (WIDE + GAP)
        figure.text(left, 0.845, name, fontsize=11, fontweight="bold", va="center")
        if shown is None:
            figure.text(left, 0.8, "\n".join(textwrap.wrap(why, 42)), fontsize=9.5, color=colours.muted, va="top")
            continue
        high, wide = shown.shape[:2]
        # As wide as there is room for, from the top.
        across = min(WIDE, TALL * SIZE[1] / SIZE[0] * wide / high)
        deep = across * SIZE[0] / SIZE[1] * high / wide
        ax = figure.add_axes((left, TOP - deep, across, deep))
        small = max(high, wide) < 512
        ax.imshow(shown, aspect="auto", interpolation="nearest" if small else "antialiased")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    rows = list(metric_rows(picture.get("metrics") or {}))
    for i, (metric, reference, candidate) in enumerate(rows):
        left = LEFT + i * (1 - 2 * LEFT) / len(rows)
        values = candidate if reference == "–" else f"{reference}, {candidate}"
        figure.text(left, 0.155, metric.partition(",")[0], fontsize=9, color=colours.muted, va="center")
        figure.text(left, 0.11, values, fontsize=11, fontweight="bold", va="center")
    size = "" if apart is None else f"{apart.shape[1]:,} × {apart.shape[0]:,} pixels. {note}"
    footnote(figure, size, colours)
    return figure
