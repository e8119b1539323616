"""Faults of the rotation of q and k: which channels are paired, which way they turn, by whose table.

B batch, N tokens, H heads, d head width. Tables are N d/2 2, (cos, sin).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from parity.diagnosis.fault import fault
from parity.diagnosis.faults.rope import AXES, TABLES, placed
from parity.diagnosis.place import Array, Variants
from parity.diagnosis.recipes.transformer import TransformerPlace

QK = ("q", "k")
INTERLEAVED = "rotate pairs (x0, x1), (x2, x3), … (MLX: traditional=True)"


def _halves(x: Array) -> Array:
    """Channels so ordered that halves become interleaved pairs."""
    return x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)


def _unhalved(x: Array) -> Array:
    return x.reshape(*x.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(x.shape)


def _sectioned(change: Callable[[Array], Array], axes: list[int]) -> Callable[[Array], Array]:
    """The same within each axis' section of the channels."""
    cuts = np.cumsum(axes)[:-1]
    return lambda x: np.concatenate([change(part) for part in np.split(x, cuts, axis=-1)], axis=-1)


def _by_channel(turn: Callable[[Array], Array], repeated: Callable[[Array], Array]) -> Callable[[Array, Array], Array]:
    """x·cos + turned(x)·sin, with tables that were widened to d."""
    return lambda x, table: x * repeated(table[..., 0])[:, None] + turn(x) * repeated(table[..., 1])[:, None]


def _turned_halves(x: Array) -> Array:
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([-second, first], axis=-1)


def _turned_pairs(x: Array) -> Array:
    return np.stack([-x[..., 1::2], x[..., ::2]], axis=-1).reshape(x.shape)


@fault("rope.pairing", at=QK, title="the rotation pairs other channels", fix=INTERLEAVED, seen="vllm-metal#44")
def pairing(p: TransformerPlace) -> Variants:
    """Halves for interleaved pairs, wholly, on one side only, within each axis, or in the table only."""
    axes = [int(axis) for axis in p.config["axes_dims_rope"]]
    inner, outer = _sectioned(_halves, axes), _sectioned(_unhalved, axes)
    yield "halves", p.changed(rotate=lambda x, table: _unhalved(p.rotate(_halves(x), table)))
    yield "read as halves, written interleaved", p.changed(rotate=lambda x, table: p.rotate(_halves(x), table))
    yield "read interleaved, written as halves", p.changed(rotate=lambda x, table: _unhalved(p.rotate(x, table)))
    yield "halves of each axis", p.changed(rotate=lambda x, table: outer(p.rotate(inner(x), table)))
    each = lambda table: np.repeat(table, 2, axis=-1)  # noqa: E731
    whole = lambda table: np.concatenate([table, table], axis=-1)  # noqa: E731
    yield "halves, by a table for interleaved pairs", p.changed(rotate=_by_channel(_turned_halves, each))
    yield "interleaved pairs, by a table for halves", p.changed(rotate=_by_channel(_turned_pairs, whole))


@fault("rope.sign", at=QK, title="q or k is rotated the other way", fix="real·cos - imag·sin, real·sin + imag·cos")
def sign(p: TransformerPlace) -> Variants:
    """The conjugate."""
    yield "sine negated", p.changed(table=lambda: p.table() * [1.0, -1.0])


@fault("rope.sign", at=TABLES, title="the rotary table's angles are negative", fix="angle = position · frequency")
def table_sign(p: TransformerPlace) -> Variants:
    """The conjugate."""
    yield "sine negated", p.changed(rotary=lambda where: p.rotary(where) * [1.0, -1.0])


@fault(
    "rope.cos_sin_swapped", at=QK, title="cosine and sine of the rotary table are exchanged",
    fix="table[..., 0] is the cosine",
)  # fmt: skip
def cos_sin_swapped(p: TransformerPlace) -> Variants:
    """Where they are used."""
    yield "sine taken for cosine", p.changed(table=lambda: p.table()[..., ::-1])


@fault(
    "rope.cos_sin_swapped", at=TABLES, title="cosine and sine of the rotary table are exchanged",
    fix="table[..., 0] is the cosine",
)  # fmt: skip
def table_swapped(p: TransformerPlace) -> Variants:
    """Where they are made."""
    yield "sine first", p.changed(rotary=lambda where: p.rotary(where)[..., ::-1])


def _missing(p: TransformerPlace) -> Variants:
    if p.kind in QK:
        yield "not rotated", p.changed(rotate=lambda x, table: x)
    else:
        yield "all positions 0", placed(p, lambda x: x * 0)


@fault("rope.missing", at=(*QK, "rope.img"), title="image tokens are not rotated", fix="rotate q and k of both streams")
def missing(p: TransformerPlace) -> Variants:
    """Of the image stream."""
    if p.stream == "img" or p.kind == "rope.img":
        yield from _missing(p)


@fault(
    "rope.missing_text", at=(*QK, "rope.txt"), title="text tokens are not rotated", fix="rotate q and k of both streams"
)
def missing_text(p: TransformerPlace) -> Variants:
    """Of the text stream."""
    if p.stream == "txt" or p.kind == "rope.txt":
        yield from _missing(p)


@fault("rope.twice", at=QK, title="q or k is rotated twice", fix="rotate once, behind the norm")
def twice(p: TransformerPlace) -> Variants:
    """By twice the angle."""
    yield "rotated twice", p.changed(rotate=lambda x, table: p.rotate(p.rotate(x, table), table))


@fault("rope.on_v", at=("v",), title="v is rotated as q and k are", fix="rotate q and k only")
def on_v(p: TransformerPlace) -> Variants:
    """By the table of its stream."""
    yield "v rotated", p.changed(head=lambda kind: p.rotate(p.head(kind), p.table()))


@fault(
    "rope.stream_swapped", at=QK, title="tokens are rotated by rows of another stream's table",
    fix="image tokens by the image's table, text tokens by the text's; joint tables have text first",
)  # fmt: skip
def stream_swapped(p: TransformerPlace) -> Variants:
    """The other stream's rows, or those of a joint table in the wrong order."""
    other, own = (lambda: p.values[f"rope.{p.other_stream}"]), p.table

    def joint() -> Array:
        text, image = (own(), other()) if p.stream == "txt" else (other(), own())
        both = np.concatenate([image, text])
        return both[: len(text)] if p.stream == "txt" else both[len(text) :]

    yield "a joint table with the image first", p.changed(table=joint)
    if len(other()) >= len(own()):
        yield "the other stream's table", p.changed(table=lambda: other()[: len(own())])


@fault("rope.partial", at=QK, title="only some channels are rotated", fix="rotate all channels of q and k")
def partial(p: TransformerPlace) -> Variants:
    """One axis' section or half of the channels without rotation."""
    axes = [int(axis) // 2 for axis in p.config["axes_dims_rope"]]
    half, cuts = sum(axes), np.cumsum([0, *axes])
    kept = {f"not those of the {name}": (cuts[i], cuts[i + 1]) for i, name in enumerate(AXES)}
    kept |= {"only the first half": (half // 2, half), "only the second half": (0, half // 2)}
    for detail, (start, stop) in kept.items():

        def table(start: int = start, stop: int = stop) -> Array:
            changed = p.table().copy()
            changed[:, start:stop] = [1.0, 0.0]
            return changed

        yield detail, p.changed(table=table)


_PRODUCTS: dict[str, Callable[[Array, Array, Array, Array], tuple[Array, Array]]] = {
    "only the cosine": lambda real, imag, cos, sin: (real * cos, imag * cos),
    "only the sine": lambda real, imag, cos, sin: (-imag * sin, real * sin),
    "real·cos + imag·sin, real·sin + imag·cos": lambda r, i, cos, sin: (r * cos + i * sin, r * sin + i * cos),
    "real·cos - imag·sin, imag·cos - real·sin": lambda r, i, cos, sin: (r * cos - i * sin, i * cos - r * sin),
    "real·cos, imag·sin": lambda real, imag, cos, sin: (real * cos, imag * sin),
    "real and imaginary part exchanged": lambda r, i, cos, sin: (r * sin + i * cos, r * cos - i * sin),
    "real·cos - imag·sin, and imag from the new real part": lambda r, i, cos, sin: (
        r * cos - i * sin,
        (r * cos - i * sin) * sin + i * cos,
    ),
}


@fault(
    "rope.formula", at=QK, title="the rotation is computed by another formula",
    fix="real·cos - imag·sin, real·sin + imag·cos",
)  # fmt: skip
def formula(p: TransformerPlace) -> Variants:
    """Products left out or with another sign."""
    for detail, product in _PRODUCTS.items():

        def rotate(x: Array, table: Array, product: Callable[..., tuple[Array, Array]] = product) -> Array:
            pairs = x.reshape(*x.shape[:-1], -1, 2)
            turned = product(pairs[..., 0], pairs[..., 1], table[:, None, :, 0], table[:, None, :, 1])
            return np.stack(turned, axis=-1).reshape(x.shape)

        yield detail, p.changed(rotate=rotate)
