"""An experiment: is what a layer makes linear in its input, with other weights than the checkpoint's?

The candidate's stage is run on states drawn at random until there are more rows than a map has inputs. On some of them
a map is fitted, and it must hold for the others: of anything but a linear map it does not.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from parity.diagnosis.evidence import Local, Stage
from parity.diagnosis.place import Array, Place, Values, widened
from parity.diagnosis.products import last_product

# Rows for each input of the map; a third of them is held back.
_ROWS = 3.0
# Runs and inputs beyond which the experiment takes too long.
_RUNS, _INPUTS = 450, 1024
# Of the noise floor: what may be left of a map that was fitted to noisy rows.
_MET = 4.0
# Cosine from which a column of the fitted weight is one of the checkpoint's: inputs in another order, no other weight.
_SAME = 0.9


def other_map(one: Local, stage: Stage) -> bool:
    """Whether a checkpoint's last layer computes with another weight, and is right but for that.

    Args:
        one: a wrong checkpoint.
        stage: of it.
    """
    if stage.again is None or not one.place.layers():
        return False
    first = _row_pairs(one.place, one.value)
    if first is None:
        return False
    inputs, wanted = first[0].shape[1], int(_ROWS * (first[0].shape[1] + 1))
    runs = -(-wanted // len(first[0]))
    if inputs > _INPUTS or runs > _RUNS:
        return False
    pairs = [first]
    for number in range(runs):
        values = _drawn(one, stage, number)
        made = None if values is None else _row_pairs(values.place(one.name), values.captured[one.name])
        if made is None:
            return False
        pairs.append(made)
    x, y = (np.concatenate(part) for part in zip(*pairs, strict=True))
    weight = _fitted(x, y, one.floor.rms)
    return weight is not None and not _rearranged(weight, one.place.weight(f"{one.place.layers()[-1]}.weight"))


def _drawn(one: Local, stage: Stage, number: int) -> Values | None:
    """What the candidate makes of a state with the magnitudes of its own, but other values."""
    of, draw = stage.values, np.random.default_rng(number)
    state = {key: _redrawn(array, draw) for key, array in of.state.items()}
    try:
        captured: Mapping[str, Array] = stage.again(state)
    except Exception:  # the candidate's own
        return None
    if one.name not in captured:
        return None
    return Values(of.domain, of.graph, of.stage, captured, state, of.weights, of.config)


def _redrawn(array: Array, draw: np.random.Generator) -> Array:
    if array.dtype.kind in "biu" or array.ndim < 2 or array.shape[-1] == 2:  # masks, shapes, rotary tables
        return array
    return (widened(array) * draw.standard_normal(array.shape)).astype(array.dtype)


def _row_pairs(place: Place, value: Array) -> tuple[Array, Array] | None:
    """Inputs of a place's last layer, and what came out, a row each; None where a recipe goes on behind that layer."""
    product = last_product(place)
    if product is None:
        return None
    made = widened(value).reshape(-1, product.y.shape[-1])
    return (product.x.reshape(-1, product.x.shape[-1]), made) if np.isfinite(made).all() else None


def _fitted(x: Array, y: Array, floor: float) -> Array | None:
    """The weight, O I, that fits some rows and holds for the others; None where there is none."""
    scale = np.maximum(np.abs(x).max(0), 1e-300)
    rows = np.concatenate([x / scale, np.ones((len(x), 1))], axis=1)
    order = np.random.default_rng(0).permutation(len(rows))
    learn, test = np.split(order, [2 * len(rows) // 3])
    solution = np.linalg.lstsq(rows[learn], y[learn], rcond=None)[0]
    norm = float(np.linalg.norm(y[test]))
    left = float(np.linalg.norm(y[test] - rows[test] @ solution))
    if not norm or left / norm > max(_MET * floor, 1e-5):
        return None
    return (solution[:-1] / scale[:, None]).T


def _rearranged(fitted: Array, weight: Array) -> bool:
    """Whether a fitted weight is the checkpoint's with its inputs in another order, or otherwise scaled."""
    if fitted.shape != weight.shape:
        return False
    a, b = (x / np.maximum(np.linalg.norm(x, axis=0), 1e-300) for x in (fitted, weight))
    return bool((np.abs(a.T @ b).max(1) > _SAME).mean() > 0.5)
