"""Windows, segments and rotary positions are those of transformers."""

from __future__ import annotations

import mlx_impl  # noqa: F401  first, since it puts the BLAS in place

# isort: split
import numpy as np
import pytest
import torch
from transformers import vision_utils as theirs
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionRotaryEmbedding

from mlx_impl.vision_layout import check_grids, frames, rotary_table, segments, windows

GRIDS = {
    "one window": ((1, 8, 8),),
    "one block": ((1, 2, 2),),
    "whole windows": ((1, 16, 24),),
    "cut below": ((1, 22, 16),),
    "cut on the right": ((1, 16, 10),),
    "cut both ways": ((1, 22, 18),),
    "narrower than a window": ((1, 2, 58),),
    "several": ((1, 10, 18), (1, 8, 8), (1, 6, 6), (1, 10, 18)),
    "frames": ((3, 10, 12), (1, 4, 4)),
}


@pytest.mark.parametrize(("merge", "side"), [(2, 4), (2, 1), (2, 3)])
@pytest.mark.parametrize("name", GRIDS)
def test_windows_equal_those_of_transformers_in_value_and_type(name, merge, side):
    index, bounds = theirs.get_vision_window_index(torch.tensor(GRIDS[name]), merge, side * merge * 14, 14)
    ours = windows(GRIDS[name], merge, side)
    np.testing.assert_array_equal(ours.index, index.numpy())
    np.testing.assert_array_equal(ours.bounds, bounds.numpy())
    assert (ours.index.dtype, ours.bounds.dtype) == (np.int64, np.int32)


@pytest.mark.parametrize("name", GRIDS)
def test_bounds_of_full_attention_equal_those_of_transformers(name):
    wanted = theirs.get_vision_cu_seqlens(torch.tensor(GRIDS[name])).numpy()
    np.testing.assert_array_equal(frames(GRIDS[name]), wanted)


@pytest.mark.parametrize("theta", [10000.0, 500.0])
@pytest.mark.parametrize("name", GRIDS)
def test_the_rotary_table_equals_that_of_transformers_to_rounding(name, theta):
    grid = torch.tensor(GRIDS[name])
    config = Qwen2_5_VLVisionConfig(
        hidden_size=160, num_heads=2, rope_parameters={"rope_type": "axial", "rope_theta": theta}
    )
    cos, sin = Qwen2_5_VLVisionRotaryEmbedding(config)(torch.zeros(1), theirs.get_vision_position_ids(grid, 2))
    index, _ = theirs.get_vision_window_index(grid, 2, 112, 14)
    wanted = torch.stack([cos, sin], dim=-1)[:, :40].reshape(-1, 4, 40, 2)[index].reshape(-1, 40, 2).numpy()
    ours = np.array(rotary_table(GRIDS[name], 2, 4, 80, theta))
    assert ours.dtype == np.float32
    # An angle of 58 in float32 is good to 2e-6.
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=4e-6)


def test_the_rotary_comparison_goes_red():
    """GIVEN rows for columns, or the order of the picture, THEN the tables are far apart."""
    right = np.array(rotary_table(GRIDS["cut both ways"], 2, 4, 80, 10000.0))
    swapped = np.array(rotary_table(((1, 18, 22),), 2, 4, 80, 10000.0))
    other = np.array(rotary_table(GRIDS["cut both ways"], 2, 3, 80, 10000.0))
    assert min(np.abs(right - swapped).max(), np.abs(right - other).max()) > 0.1


@pytest.mark.parametrize(
    ("bounds", "groups", "ordered"),
    [
        ((0, 4, 8, 12), ((3, 4),), True),
        ((0, 4, 8, 10), ((2, 4), (1, 2)), True),
        ((0, 4, 6, 10, 12, 13), ((2, 4), (2, 2), (1, 1)), False),
        ((0, 5), ((1, 5),), True),
    ],
)
def test_equally_long_segments_are_one_batch(bounds, groups, ordered):
    found = segments(bounds)
    assert found.groups == groups
    assert (found.order is None) == ordered
    if ordered:
        return
    order, inverse = np.array(found.order), np.array(found.inverse)
    np.testing.assert_array_equal(order[inverse], np.arange(bounds[-1]))
    of_token = np.searchsorted(bounds, order, side="right")
    start = 0
    for count, length in groups:
        for _ in range(count):
            assert len(set(of_token[start : start + length])) == 1
            start += length


@pytest.mark.parametrize(
    ("grids", "message"),
    [((), "no grids"), (((1, 3, 4),), r"grid \(1, 3, 4\)"), (((1, 4, 0),), "at least one patch"), (((4, 4),), "grid")],
)
def test_grids_that_are_none_are_refused(grids, message):
    with pytest.raises(ValueError, match=message):
        check_grids(grids, 2)
