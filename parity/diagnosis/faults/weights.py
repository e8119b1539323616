"""Faults of weights: missing, exchanged, turned, without bias, of another layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np

from parity.diagnosis.fault import fault, known
from parity.diagnosis.place import Array, Place, Variants

_BLOCK = re.compile(r"(?<=\.)\d+(?=\.)")
# Exchanged they are `attention.out_proj_swapped`: the same numbers, whether names or tensors were exchanged.
_OUTPUTS = {"transformer_blocks.N.attn.to_out.0", "transformer_blocks.N.attn.to_add_out"}


def _replaced(p: Place, layer: str, weight: Callable[[str], Array]) -> Place:
    """A place that reads one layer's tensors otherwise. weight: key -> tensor."""
    return p.changed(weight=lambda key: weight(key) if key.startswith(f"{layer}.") else p.weight(key))


def _short(layer: str) -> str:
    return _BLOCK.sub("N", layer, count=1)


@fault(
    "weights.bias_missing", component="*", title="a layer's bias is not added",
    fix="load `.bias` of this layer (not to be mistaken for the `.biases` of quantization) and add it",
)  # fmt: skip
def bias_missing(p: Place) -> Variants:
    """One layer without its bias, or with its sign turned, or added twice."""
    for layer in p.layers():
        bias = p.bias(layer)
        if bias is None or not bias.any():
            continue
        for said, factor in (("no bias", 0.0), ("bias subtracted", -1.0), ("bias added twice", 2.0)):
            yield f"{said} in {_short(layer)}", p.changed(bias=_bias(p, layer, factor))


def _bias(p: Place, layer: str, factor: float) -> Callable[[str], Array | None]:
    def bias(key: str) -> Array | None:
        found = p.bias(key)
        return found * factor if key == layer and found is not None else found

    return bias


@fault(
    "weights.transposed", component="*", title="a layer's weight is transposed",
    fix="use x @ weight.T with weight as (outputs, inputs), as torch stores it",
)  # fmt: skip
def transposed(p: Place) -> Variants:
    """A square weight transposed, or one whose buffer is read as the transposed shape."""
    for layer in p.layers():
        weight = p.weight(f"{layer}.weight")
        if weight.ndim != 2:
            continue
        ways = {"read as (inputs, outputs)": lambda w: w.reshape(w.shape[::-1]).T}
        if weight.shape[0] == weight.shape[1]:
            ways = {"transposed": lambda w: w.T}
        for said, turn in ways.items():
            yield f"{_short(layer)} {said}", _replaced(p, layer, _turned(p, layer, turn))


def _turned(p: Place, layer: str, turn: Callable[[Array], Array]) -> Callable[[str], Array]:
    return lambda key: turn(p.weight(key)) if key == f"{layer}.weight" else p.weight(key)


@fault(
    "weights.missing", component="*", title="a layer's weight was never loaded",
    fix="load the checkpoint strictly: every parameter must be met by a key, none may keep its initial value",
)  # fmt: skip
def missing(p: Place) -> Variants:
    """Zeros, ones or the identity where a weight belongs, with the bias loaded or not."""
    for layer in p.layers():
        weight = p.weight(f"{layer}.weight")
        if weight.ndim != 2:
            continue
        fills = {"zeros": np.zeros_like(weight), "ones": np.ones_like(weight)}
        if weight.shape[0] == weight.shape[1]:
            fills["the identity"] = np.eye(len(weight))
        for said, fill in fills.items():
            yield f"{_short(layer)} is {said}", _replaced(p, layer, _filled(p, layer, fill, bias=True))
            if p.bias(layer) is not None:
                yield (
                    f"{_short(layer)} is {said}, its bias zero",
                    _replaced(p, layer, _filled(p, layer, fill, bias=False)),
                )


def _filled(p: Place, layer: str, fill: Array, *, bias: bool) -> Callable[[str], Array]:
    def weight(key: str) -> Array:
        if key == f"{layer}.weight":
            return fill
        found = p.weight(key)
        return found if bias or not key.endswith(".bias") else np.zeros_like(found)

    return weight


@fault(
    "weights.swapped", component="*", title="a layer has the weights of another one",
    fix="map this layer's key to its own tensors: compare the port's name map with the checkpoint's keys",
)  # fmt: skip
def swapped(p: Place) -> Variants:
    """The tensors of any layer of the same shape: of the same block, the other stream, another block."""
    for layer in p.layers():
        shape = p.weight(f"{layer}.weight").shape
        for other in _others(p, layer, shape):
            if {_short(layer), _short(other)} != _OUTPUTS:
                yield f"{_named(layer, other)}", _replaced(p, layer, _of_another(p, layer, other, ("weight", "bias")))
            yield (
                f"{_named(layer, other)}, weight alone",
                _replaced(p, layer, _of_another(p, layer, other, ("weight",))),
            )


@fault(
    "weights.swapped", component="*", title="a layer has the weights of another one",
    fix="map the block's keys to its own tensors: compare the port's name map with the checkpoint's keys",
)  # fmt: skip
def all_swapped(p: Place) -> Variants:
    """All that this place uses, norms included: of a block nearby, the first or the last, or of the other stream."""
    yield from _of_blocks(p, _nearby)
    if p.stream in ("img", "txt"):
        yield "all weights are those of the other stream", _mapped(p, _to_other_stream)


@fault(
    "weights.swapped", component="*", title="a layer has the weights of another one", late=True,
    fix="map the block's keys to its own tensors: compare the port's name map with the checkpoint's keys",
)  # fmt: skip
def of_a_far_block(p: Place) -> Variants:
    """All weights are those of some other block."""
    yield from _of_blocks(p, lambda here, other, last: not _nearby(here, other, last))


def _nearby(here: int, other: int, last: int) -> bool:
    return abs(other - here) <= 2 or other in (0, last)


def _of_blocks(p: Place, which: Callable[[int, int, int], bool]) -> Variants:
    """which: whether a block is tried in the place of another, of so many."""
    if p.block is None or not p.layers():
        return
    blocks = _blocks(p)
    for other in sorted(set(blocks) - {p.block}):
        if which(p.block, other, max(blocks)):
            yield f"all weights are those of {_other_block(p.block, other)}", _mapped(p, _to_block(other))


def _mapped(p: Place, rule: Callable[[str], str]) -> Place:
    return p.changed(weight=lambda key: p.weight(rule(key)))


def _to_block(other: int) -> Callable[[str], str]:
    return lambda key: _BLOCK.sub(str(other), key, count=1)


def _blocks(p: Place) -> list[int]:
    """Numbers of the model's blocks."""
    match = _BLOCK.search(p.layers()[0])
    if match is None:
        return []
    pattern = re.compile(re.escape(p.layers()[0][: match.start()]) + r"(\d+)\.")
    return sorted({int(m[1]) for key in getattr(p.values.weights, "entries", {}) if (m := pattern.match(key))})


def _other_block(here: int, other: int) -> str:
    """A slip by one or two reads the same in all blocks, a block that all have reads the same too."""
    return f"block N{other - here:+d}" if abs(other - here) <= 2 and other else f"block {other}"


# Names of a stream's parts in the keys of a block -> those of the other stream.
_OTHER_STREAM = {
    "img_mod": "txt_mod", "img_mlp": "txt_mlp", "to_q": "add_q_proj", "to_k": "add_k_proj", "to_v": "add_v_proj",
    "to_out.0": "to_add_out", "norm_q": "norm_added_q", "norm_k": "norm_added_k",
}  # fmt: skip
_BACK = {other: one for one, other in _OTHER_STREAM.items()}


def _to_other_stream(key: str) -> str:
    for names in (_OTHER_STREAM, _BACK):
        for one, other in names.items():
            if f".{one}." in key:
                return key.replace(f".{one}.", f".{other}.")
    return key


def _of_another(p: Place, layer: str, other: str, leaves: tuple[str, ...]) -> Callable[[str], Array]:
    def weight(key: str) -> Array:
        leaf = key.removeprefix(f"{layer}.")
        return p.weight(f"{other}.{leaf}" if leaf in leaves else key)

    return weight


def _named(layer: str, other: str) -> str:
    """``to_q has to_k``; of another block how far away that one is, so that a slip reads the same in all blocks."""
    here, there = _BLOCK.search(layer), _BLOCK.search(other)
    if here and there and here[0] != there[0] and _short(layer) == _short(other):
        return f"{_short(layer)} is that of {_other_block(int(here[0]), int(there[0]))}"
    return f"{_short(layer)} is {_short(other)}"


def _others(p: Place, layer: str, shape: tuple[int, ...]) -> Iterator[str]:
    """Layers of the same shape that could be mistaken for this one."""
    entries = getattr(p.values.weights, "entries", {})
    match = _BLOCK.search(layer)
    for key, entry in entries.items():
        name, _, leaf = key.rpartition(".")
        if leaf != "weight" or name == layer or tuple(entry.true_shape) != tuple(shape):
            continue
        other = _BLOCK.search(name)
        if match is None or other is None:
            if match is None and other is None:
                yield name
        # All blocks are tried with all their weights; one layer alone only of the nearest.
        elif other[0] == match[0] or (_short(name) == _short(layer) and abs(int(other[0]) - int(match[0])) <= 2):
            yield name


@fault(
    "weights.random", component="*", title="a layer computes with other weights than the checkpoint's",
    fix="look at how this layer's tensors are found, read and unpacked: no known mix-up gives these",
)  # fmt: skip
def other_weights(p: Place) -> Variants:
    """The linear map that fits the candidate, where there are many more rows than inputs to fit it by.

    It is met only by a layer that is linear in its input indeed, with another weight.
    """
    if len(p.layers()) != 1 or p.kind not in _LINEAR:
        return
    (layer,) = p.layers()
    x, y = _LINEAR[p.kind](p), p.values.captured.get(p.name)
    if y is None:
        return
    rows = x.reshape(-1, x.shape[-1])
    out = np.asarray(y, np.float64).reshape(-1, p.weight(f"{layer}.weight").shape[0])
    if len(rows) != len(out) or len(rows) < 1.5 * rows.shape[1] or not np.isfinite(out).all():
        return

    def fitted(key: str) -> Array:
        given = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
        solution = np.linalg.lstsq(given, out, rcond=None)[0]
        return solution[:-1].T if key.endswith(".weight") else solution[-1]

    yield f"{_short(layer)} has other values", _replaced(p, layer, fitted)


# Kinds that are one linear layer of something that is known, and what.
_LINEAR: dict[str, Callable[[Place], Array]] = {
    "img_in": lambda p: p.fed("latents"),
    "txt_in": lambda p: p.values["txt_norm"],
    "v": lambda p: p.of("modulated"),
    "final": lambda p: p.values["norm_out"],
}

known(
    "weights.unused", title="tensors of the checkpoint that nothing loads",
    fix="load strictly: `load_weights(strict=True)`, and an error for keys that are left over",
)  # fmt: skip
