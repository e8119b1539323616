"""Faults of positions: which position a token has, what angles that makes, and how q and k are rotated.

N tokens, L image tokens, S text tokens, d head width. Tables are N d/2 2, (cos, sin).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, permutations

import numpy as np

from parity.diagnosis.arithmetic import NARROW, rounded, rounded_like
from parity.diagnosis.estimates import base_of, speed_of, start_of
from parity.diagnosis.fault import fault
from parity.diagnosis.place import Array, Variants
from parity.diagnosis.recipes.transformer import TransformerPlace, grid

TABLES = ("rope.img", "rope.txt")
AXES = ("frame", "row", "column")
BASES = (100.0, 256.0, 500.0, 1000.0, 2000.0, 5000.0, 2e4, 5e4, 1e5, 5e5, 1e6, 5e6, 1e7)


def positions(p: TransformerPlace) -> Array:
    """Positions of the tokens whose table a checkpoint is, N 3."""
    return p.image_positions() if p.kind == "rope.img" else p.text_positions()


def placed(p: TransformerPlace, change: Callable[[Array], Array]) -> TransformerPlace:
    """The place with its tokens elsewhere. change: N 3 to N 3."""
    if p.kind == "rope.img":
        return p.changed(image_positions=lambda: change(p.image_positions()))
    return p.changed(text_positions=lambda: change(p.text_positions()))


_CENTRES: dict[str, Callable[[int], Array]] = {
    "from 0": np.arange,
    "from 1": lambda n: np.arange(n) + 1,
    "from -(n // 2)": lambda n: np.arange(n) - n // 2,
    "from -(n - n // 2) + 1": lambda n: np.arange(n) - (n - n // 2) + 1,
    "from -(n - n // 2) - 1": lambda n: np.arange(n) - (n - n // 2) - 1,
    "around (n - 1) / 2": lambda n: np.arange(n) - (n - 1) / 2,
    "around n / 2": lambda n: np.arange(n) - n / 2,
    "from -n": lambda n: np.arange(n) - n,
    "from n // 2 downwards": lambda n: n // 2 - np.arange(n),
    "from the end": lambda n: np.arange(n)[::-1] - (n - n // 2),
    "0 to n // 2, then negative": lambda n: np.concatenate([np.arange(n // 2), np.arange(-(n - n // 2), 0)]),
}


@fault(
    "rope.not_centred", at=("rope.img",), title="image positions are not centred on zero as the model's are",
    fix="rows = arange(h) - (h - h // 2), columns = arange(w) - (w - w // 2)", seen="ComfyUI#9437",
)  # fmt: skip
def not_centred(p: TransformerPlace) -> Variants:
    """Other origins, of rows and columns or of one of them."""
    usual = positions(p)
    for detail, centre in _CENTRES.items():
        for axes, change in (
            ("", {"rows": centre, "columns": centre}), ("rows ", {"rows": centre}), ("columns ", {"columns": centre}),
        ):  # fmt: skip
            changed = p.changed(**change)
            if not np.array_equal(changed.image_positions(), usual):
                yield f"{axes}{detail}", changed


@fault(
    "rope.frame_index", at=("rope.img",), title="pictures have other frame indices",
    fix="picture i begins at frame i (the condition of a layered model at -1)",
)  # fmt: skip
def frame_index(p: TransformerPlace) -> Variants:
    """The same for all, from 1, backwards, far apart, and the rule of the other kind of model."""
    last = len(p.fed("img_shapes")) - 1
    usual = positions(p)
    for detail, first in (
        ("0 for all", lambda i: 0),
        ("from 1", lambda i: p.first_frame(i) + 1),
        ("negative", lambda i: -p.first_frame(i)),
        ("backwards", lambda i: last - i),
        ("10 apart", lambda i: 10 * p.first_frame(i)),
        ("the last at -1", lambda i: -1 if i == last else i),
        ("counted on", lambda i: i),
        ("0, and 1 for all conditions", lambda i: min(i, 1)),
    ):
        changed = p.changed(first_frame=first)
        if not np.array_equal(changed.image_positions(), usual):
            yield detail, changed


def _starts(p: TransformerPlace) -> Iterator[tuple[str, int]]:
    shapes = p.fed("img_shapes").astype(int)
    rows, columns = shapes[:, 1], shapes[:, 2]
    tokens = shapes.prod(axis=1)
    usual = p.text_start()
    yield from (("at 0", 0), ("at 1", 1), ("one late", usual + 1), ("one early", usual - 1))
    yield "at max(h, w)", int(max(rows.max(), columns.max()))
    yield from (("at h", int(rows.max())), ("at w", int(columns.max())), ("at h + w", int((rows + columns).max())))
    yield from (("at h // 2", int(rows[0] // 2)), ("at w // 2", int(columns[0] // 2)))
    yield "at min(h // 2, w // 2)", int(min(rows.min() // 2, columns.min() // 2))
    yield "behind the first picture only", int(max(rows[0], columns[0]) // 2)
    yield "behind the last picture only", int(max(rows[-1], columns[-1]) // 2)
    yield "at ceil(max(h, w) / 2)", int(-(-max(rows.max(), columns.max()) // 2))
    yield from (("at the number of image tokens", int(tokens.sum())), ("at the picture's tokens", int(tokens[0])))
    yield from (("at the number of pictures", len(shapes)), ("at the number of text tokens", p.text_length()))
    yield from (("ending at 0", 1 - p.text_length()), ("before the pictures", -usual - p.text_length()))


@fault(
    "rope.text_offset", at=("rope.txt",), title="text positions start somewhere else",
    fix="text starts at max(h // 2, w // 2) over all pictures, on all three axes", seen="ComfyUI#9437",
)  # fmt: skip
def text_offset(p: TransformerPlace) -> Variants:
    """Starts that a port could have, and whichever the candidate's first rows show."""
    tried = {p.text_start()}
    for detail, start in _starts(p):
        if start not in tried:
            tried.add(start)
            yield detail, p.changed(text_start=lambda start=start: start)
    found = start_of(p.values.candidate.get(p.name), p.frequencies())
    if found is not None and found not in tried:
        yield f"at {found}", p.changed(text_start=lambda: found)


@fault(
    "rope.text_positions", at=("rope.txt",), title="text tokens do not count up on all three axes",
    fix="position of text token i: (start + i) on each axis",
)  # fmt: skip
def text_positions(p: TransformerPlace) -> Variants:
    """Only some axes counting, none, or the wrong way."""
    start = p.text_start()

    def only(axes: tuple[int, ...], rest: int) -> Callable[[Array], Array]:
        return lambda x: np.where(np.isin(np.arange(3), axes), x, rest)

    for size in (1, 2):
        for axes in combinations(range(3), size):
            named = " and ".join(AXES[i] for i in axes)
            yield f"only {named}, the others 0", placed(p, only(axes, 0))
            if start:
                yield f"only {named}, the others at the start", placed(p, only(axes, start))
    if p.text_length() > 1:
        yield "all at the start", placed(p, lambda x: x * 0 + start)
        yield "backwards", placed(p, lambda x: x[::-1])


@fault(
    "rope.axes_order", at=("rope.img",), title="the axes of image positions are exchanged",
    fix="positions (frame, row, column); tokens counted row by row; img_shapes is (frames, height, width)",
    seen="mflux@82973f9",
)  # fmt: skip
def axes_order(p: TransformerPlace) -> Variants:
    """Every other order of the positions, and of counting the tokens."""
    for order in permutations(range(3)):
        if order != (0, 1, 2):
            changed = placed(p, lambda x, order=order: x[:, order])
            yield f"positions as ({', '.join(AXES[i] for i in order)})", changed
    shapes = p.fed("img_shapes").astype(int).tolist()

    def gridded(turned: Callable[[int, int, int, int], Array]) -> TransformerPlace:
        return p.changed(image_positions=lambda: np.concatenate([turned(i, *s) for i, s in enumerate(shapes)]))

    if any(h > 1 and w > 1 for _, h, w in shapes):
        yield "tokens counted column by column", gridded(lambda i, f, h, w: _by_column(p, i, f, h, w))
        yield "a grid of (w, h), counted row by row", gridded(lambda i, f, h, w: _grid(p, i, f, w, h))
        yield "a grid of (w, h), counted column by column", gridded(lambda i, f, h, w: _by_column(p, i, f, w, h))


def _grid(p: TransformerPlace, index: int, frames: int, height: int, width: int) -> Array:
    return grid(p.first_frame(index), frames, p.rows(height), p.columns(width))


def _by_column(p: TransformerPlace, index: int, frames: int, height: int, width: int) -> Array:
    return _grid(p, index, frames, height, width).reshape(frames, height, width, 3).swapaxes(1, 2).reshape(-1, 3)


@fault(
    "rope.axes_order", at=TABLES, title="the rotary table has its sections in another order",
    fix="sections in the order of axes_dims_rope: frame, row, column",
)  # fmt: skip
def sections_order(p: TransformerPlace) -> Variants:
    """Positions and widths moved together."""
    axes = [int(axis) for axis in p.config["axes_dims_rope"]]
    for order in permutations(range(3)):
        # Text has the same position on all axes: there, sections of one width can change places unseen.
        same = p.kind == "rope.txt" and [axes[i] for i in order] == axes
        if order != (0, 1, 2) and not same:

            def rotary(where: Array, order: tuple[int, ...] = order) -> Array:
                moved = p.changed(frequencies=lambda: [p.frequencies()[i] for i in order])
                return moved.rotary(where[:, order])

            yield f"sections ({', '.join(AXES[i] for i in order)})", p.changed(rotary=rotary)


def _exponents(p: TransformerPlace) -> Iterator[tuple[str, list[Array]]]:
    """Frequencies of the right base with other exponents."""
    axes = [int(axis) for axis in p.config["axes_dims_rope"]]
    width, base = sum(axes), 10000.0
    over = base ** -(np.arange(0, width, 2) / width)
    yield "over the whole head, cut in sections", np.split(over, np.cumsum(axes)[:-1] // 2)
    yield "over the whole head, from the start in each section", [over[: axis // 2] for axis in axes]
    yield "exponents halved", [base ** -(np.arange(axis // 2) / axis) for axis in axes]
    yield "exponents doubled", [base ** -(np.arange(0, axis, 2) / (axis / 2)) for axis in axes]
    yield "up to 1/base", [base ** -np.linspace(0, 1, axis // 2) for axis in axes]
    yield "reversed", [base ** -(np.arange(0, axis, 2)[::-1] / axis) for axis in axes]
    yield "from the second", [base ** -(np.arange(2, axis + 2, 2) / axis) for axis in axes]
    yield "2π times as fast", [2 * np.pi * base ** -(np.arange(0, axis, 2) / axis) for axis in axes]


def _splits(p: TransformerPlace) -> Iterator[tuple[int, int, int]]:
    """Other widths of the three axes, all even."""
    width = sum(p.config["axes_dims_rope"])
    even = 2 * round(width / 6)
    quarter = 2 * round(width / 8)
    eighth = 2 * round(width / 16)
    found = {
        (even, even, width - 2 * even), (width - 2 * even, even, even), (2 * quarter, quarter, width - 3 * quarter),
        (quarter, quarter, width - 2 * quarter), (0, width // 4 * 2, width - width // 4 * 2), (width, 0, 0),
        (eighth, (width - eighth) // 4 * 2, width - eighth - (width - eighth) // 4 * 2), (16, 56, 56), (44, 42, 42),
        (16, 24, 24), (32, 48, 48),
    }  # fmt: skip
    found |= set(permutations(int(axis) for axis in p.config["axes_dims_rope"]))
    return iter(sorted(split for split in found if sum(split) == width and min(split) >= 0))


@fault(
    "rope.theta", at=TABLES, title="the rotary table has another base, or its axes another share of the head",
    fix="frequencies 10000 ** -(arange(0, axis, 2) / axis) for each of axes_dims_rope",
)  # fmt: skip
def theta(p: TransformerPlace) -> Variants:
    """Other bases, exponents and splits, and whichever base the candidate's table shows."""
    found = base_of(p.values.candidate.get(p.name), positions(p), p.config["axes_dims_rope"])
    listed = any(found is not None and abs(found / base - 1) < 1e-3 for base in (*BASES, 10000.0))
    for base in (*BASES, *(() if found is None or listed else (found,))):
        yield f"base {base:g}", p.changed(frequencies=lambda base=base: p.frequencies(base))
    for detail, frequencies in _exponents(p):
        yield f"exponents {detail}", p.changed(frequencies=lambda frequencies=frequencies: frequencies)
    usual = tuple(int(axis) for axis in p.config["axes_dims_rope"])
    for split in _splits(p):
        if split != usual:
            frequencies = [10000.0 ** -(np.arange(0, axis, 2) / max(axis, 1)) for axis in split]
            detail = f"axes of {' + '.join(map(str, split))}"
            yield detail, p.changed(frequencies=lambda frequencies=frequencies: frequencies)


@fault(
    "rope.interpolated", at=TABLES, title="positions are scaled before they become angles",
    fix="positions are whole numbers, one a token",
)  # fmt: skip
def interpolated(p: TransformerPlace) -> Variants:
    """Usual factors, and whichever the candidate's table shows."""
    factors = [0.5, 2.0, 0.25, 4.0, 0.125, 8.0, 0.0625, 16.0]
    found = speed_of(p.values.candidate.get(p.name), positions(p))
    if found is not None and not any(abs(found / factor - 1) < 1e-3 for factor in (1.0, *factors)):
        factors.append(found)
    for factor in factors:
        yield f"{factor:g} times", placed(p, lambda x, factor=factor: x * factor)


@fault(
    "rope.low_precision", at=TABLES, title="the rotary table is made in half precision",
    fix="positions, frequencies, angles and tables in float32", seen="ComfyUI#9441",
)  # fmt: skip
def low_precision(p: TransformerPlace) -> Variants:
    """Positions, frequencies, angles or the table itself, and several of them."""
    where = positions(p)
    for dtype in NARROW:
        steps = ["frequencies", "angles", "table"]
        if not np.array_equal(rounded(where, dtype), where):
            steps.insert(0, "positions")
        for count in range(1, len(steps) + 1):
            for some in combinations(steps, count):
                yield f"{' and '.join(some)} in {dtype}", p.changed(rotary=_rotary_in(p, dtype, some))


def _rotary_in(p: TransformerPlace, dtype: str, steps: tuple[str, ...]) -> Callable[[Array], Array]:
    def rotary(where: Array) -> Array:
        where = rounded(where, dtype) if "positions" in steps else where
        # In float32 up to what is rounded further, as the reference has them: an angle that noise tips over the
        # middle between two values would be another angle.
        frequencies = [f.astype(np.float32).astype(np.float64) for f in p.frequencies()]
        if "frequencies" in steps:
            frequencies = [rounded(f, dtype) for f in frequencies]
        angle = np.concatenate([np.outer(where[:, i], f) for i, f in enumerate(frequencies)], axis=1)
        angle = rounded(angle, dtype) if "angles" in steps else angle.astype(np.float32).astype(np.float64)
        table = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        return rounded_like(table, dtype, p.values.candidate.get(p.name)) if "table" in steps else table

    return rotary


@fault(
    "rope.low_precision", at=("q", "k"), title="the rotation is done in half precision",
    fix="rotate in float32: x.float() and a float32 table", seen="ComfyUI#9441",
)  # fmt: skip
def rotation_in_half(p: TransformerPlace) -> Variants:
    """The table, and the heads, rounded before they are multiplied."""
    for dtype in NARROW:
        table = p.changed(rotate=lambda x, table, dtype=dtype: p.rotate(x, rounded(table, dtype)))
        yield f"table in {dtype}", table
        both = lambda x, table, dtype=dtype: p.rotate(rounded(x, dtype), rounded(table, dtype))  # noqa: E731
        yield f"table and heads in {dtype}", p.changed(rotate=both)


def _counted(p: TransformerPlace) -> list[int]:
    """Numbers of text tokens that count, of the samples that have fewer than the batch is long."""
    mask = p.optional("prompt_mask")
    return [] if mask is None else sorted({int(n) for n in (mask != 0).sum(axis=1)} - {mask.shape[1]})


@fault(
    "rope.text_len_from_mask", at=("rope.txt",), title="text positions are made for the mask's tokens only",
    fix="the table's length is prompt_embeds.shape[1], padding included", seen="vllm-omni#4443",
)  # fmt: skip
def text_len_from_mask(p: TransformerPlace) -> Variants:
    """A shorter table, or one whose trailing rows are something else."""

    def tail(n: int, rest: Callable[[Array], Array]) -> Callable[[Array], Array]:
        return lambda where: np.concatenate([p.rotary(where[:n]), rest(p.rotary(where))[n:]])

    identity = np.array([1.0, 0.0])
    for n in _counted(p):
        yield f"{n} rows", p.changed(text_length=lambda n=n: n)
        yield f"zeros from row {n} on", p.changed(rotary=tail(n, lambda table: table * 0))
        yield f"no rotation from row {n} on", p.changed(rotary=tail(n, lambda table: table * 0 + identity))
        if n:
            yield f"row {n - 1} again from there on", p.changed(rotary=tail(n, lambda t, n=n: t * 0 + t[n - 1]))
            yield f"from the start again at row {n}", p.changed(rotary=tail(n, lambda t, n=n: np.roll(t, n, axis=0)))


@fault(
    "rope.text_len_from_mask", at=("q", "k"), title="only the mask's text tokens are rotated",
    fix="the table's length is prompt_embeds.shape[1], padding included", seen="vllm-omni#4443",
)  # fmt: skip
def rotated_from_mask(p: TransformerPlace) -> Variants:
    """Rows behind the first n stay as they are."""
    if p.stream == "txt":
        for n in _counted(p):

            def rotate(x: Array, table: Array, n: int = n) -> Array:
                return np.concatenate([p.rotate(x[:, :n], table[:n]), x[:, n:]], axis=1)

            yield f"the first {n} rows", p.changed(rotate=rotate)
