"""Every layout is told by its names, and every tensor found in it; what cannot be read is said in one line."""

from collections import Counter

import pytest
from layout_folders import (
    CONFIG,
    write_every,
)  # fmt: skip

from parity.errors import WeightsError
from parity.layouts import locate
from parity.transformer_shape import expected_tensors

EXPECTED = expected_tensors(CONFIG)
VARIANTS = (
    "diffusers", "mflux", "mflux-4bit", "mflux-8bit-32", "mflux-new", "mlx-gen-mixed", "mlx-rs", "single",
    "single-transformer", "single-bare",
)  # fmt: skip


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    return write_every(tmp_path_factory.mktemp("layouts"))


def census(found):
    packings = (entry.packing for entry in found.entries.values())
    return dict(Counter((p.bits, p.group_size) for p in packings if p))


def fails(path, match, component="transformer"):
    with pytest.raises(WeightsError, match=match) as caught:
        locate(path, component)
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layout_is_told_and_every_tensor_found(every, variant):
    path, layout, bits = every[variant]
    found = locate(path)
    assert found.layout == layout
    assert {name: entry.true_shape for name, entry in found.entries.items()} == EXPECTED
    assert census(found) == bits
    assert (found.extra, found.missing) == ((), ())
    assert {key: found.config[key] for key in CONFIG} == CONFIG
    assert (found.config["patch_size"], found.config["zero_cond_t"]) == (2, False)


def test_there_is_a_folder_for_every_variant(every):
    assert tuple(every) == VARIANTS
