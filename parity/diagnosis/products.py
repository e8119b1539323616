"""The products that a recipe makes: which layer, from what."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from parity.diagnosis.evidence import IMPOSSIBLE
from parity.diagnosis.place import Array, Place


class Product(NamedTuple):
    """One linear layer at work. x: … I. y: … O."""

    layer: str
    x: Array
    y: Array


def last_product(place: Place) -> Product | None:
    """The layer whose output is the checkpoint, but for its shape; None where a recipe goes on behind its last one."""
    seen: list[Product] = []

    def linear(x: Array, layer: str) -> Array:
        y = place.linear(x, layer)
        seen.append(Product(layer, x, y))
        return y

    try:
        prediction = place.changed(linear=linear).recipe()
    except IMPOSSIBLE:
        return None
    if not seen or not np.array_equal(seen[-1].y.ravel(), prediction.ravel()):
        return None
    return seen[-1]
