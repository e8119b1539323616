"""All checks of a picture without a reference, and which finding comes first.

A finding whose inverse is exact explains what other checks would call noise or seams; so these come first
and the later ones are left out.
"""

from __future__ import annotations

import numpy as np

from parity.picturecheck import noise, patches, regions, restride, seams, tones
from parity.picturecheck.finding import Finding

# In this order; the first one that finds something ends the search.
CHECKS = (
    tones.nothing, noise.static, restride.axis_orders, patches.patch_order, patches.tiled, restride.row_stride,
    regions.noisy_part, regions.missing, tones.wrapped, tones.banding, noise.grain, seams.seams, tones.value_range,
)  # fmt: skip


def findings(picture: np.ndarray) -> list[Finding]:
    """What is wrong with a picture, as far as it shows by itself.

    Args:
        picture: H W 3 uint8.
    """
    for check in CHECKS:
        found = check(picture)
        if found is not None:
            return [found]
    return []
