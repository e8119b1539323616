"""Arrays whose axes are in another order than expected, found by their sketches.

A layout is how row-major values have to be read: reshaped to `axes`, then transposed by `order`, they have the
expected shape. It covers arrays of a permuted shape, and those of the right shape whose values were written in the
order of another one (a strided view that was not made contiguous).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How to read an array.

    Attributes:
        axes: shape that its values have as they lie.
        order: of the axes, as `numpy.transpose` takes it.
        expected: shape afterwards; axes that were split are joined again.
    """

    axes: Shape
    order: Shape
    expected: Shape

    def read(self, array: np.ndarray) -> np.ndarray:
        """The array as expected."""
        return array.reshape(-1).reshape(self.axes).transpose(self.order).reshape(self.expected)

    @property
    def words(self) -> str:
        """What to do."""
        plain = tuple(self.axes[i] for i in self.order) == self.expected
        turned = f"lie with their axes in another order: transpose({', '.join(map(str, self.order))})"
        return turned if plain else f"{turned} of that shape, then reshape"


def layouts(given: Shape, expected: Shape, heads: int = 0) -> Iterator[Layout]:
    """Every other order in which the values of an expected shape may lie; those with the given shape first.

    Args:
        given: shape that the array has.
        expected: that it should have.
        heads: of attention, which the last axis may be split into; 0 where that is not known.
    """
    if math.prod(given) != math.prod(expected):
        return
    views = [expected]
    if heads > 1 and len(expected) == 3 and expected[-1] % heads == 0 and heads < expected[-1]:
        views.append((*expected[:-1], heads, expected[-1] // heads))
    found = [one for view in views for one in _of_view(view, expected)]
    yield from sorted(found, key=lambda one: one.axes != given)


def _of_view(view: Shape, expected: Shape) -> Iterator[Layout]:
    movable = [i for i, n in enumerate(view) if n > 1]
    if not 2 <= len(movable) <= 4:
        return
    seen = set()
    for moved in itertools.permutations(movable):
        order = list(range(len(view)))
        for place, axis in zip(movable, moved, strict=True):
            order[place] = axis
        # Values that lie in the order `order` of the view's axes come back by the inverse.
        axes, back = tuple(view[i] for i in order), tuple(int(i) for i in np.argsort(order))
        if moved != tuple(movable) and (axes, back) not in seen:
            seen.add((axes, back))
            yield Layout(axes, back, expected)
