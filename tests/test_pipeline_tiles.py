"""Large pictures go through the VAE in tiles, in a pipeline too, and come out the same."""

# isort: off
import mlx_impl  # noqa: F401 - first, since it puts the BLAS in place
# isort: on

import numpy as np
import pytest
from pipeline_folder import write_pipeline

from mlx_impl import vae_tiling
from mlx_impl.pipelines import EditPlus, TextToImage, open_pipeline
from parity.components.pipeline import draw_picture

USUAL = {"prompts": ("fox",), "negative": (" ",), "steps": 2}
REQUESTS = {
    "text": TextToImage(**USUAL, height=96, width=320),
    "edit": EditPlus(
        **USUAL, height=64, width=96, pictures=(draw_picture(np.random.default_rng(0), 40, 50),),
        condition_area=3136, vae_area=320 * 320,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_tiles_change_no_picture(name, monkeypatch):
    tiled = []

    def watched(function):
        def run(model, x):
            tiled.append(function.__name__)
            return function(model, x)

        return run

    for function in (vae_tiling.encode, vae_tiling.decode):
        monkeypatch.setattr(vae_tiling, function.__name__, watched(function))
    pipeline = open_pipeline(write_pipeline(), "float32")
    whole = pipeline.run(REQUESTS[name]).images
    assert tiled == []
    monkeypatch.setattr(vae_tiling, "LARGEST_WHOLE", 64 * 64)
    in_tiles = pipeline.run(REQUESTS[name]).images
    assert tiled == (["decode"] if name == "text" else ["encode", "decode"])
    assert whole.std() > 10
    assert np.abs(in_tiles.astype(int) - whole).max() <= 1
