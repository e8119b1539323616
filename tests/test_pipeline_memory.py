"""Weights in memory: one component at a time where it is asked for, and the same picture."""

# isort: off
import mlx_impl  # noqa: F401 - first, since it puts the BLAS in place
import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
# isort: on

import gc

import numpy as np
import pytest
from pipeline_folder import write_pipeline

from mlx_impl.pipelines import EditPlus, ImageToImage, TextToImage, components, open_pipeline
from parity.components.pipeline import draw_picture

USUAL = {"prompts": ("fox",), "negative": (" ",), "height": 32, "width": 32, "steps": 2}
PICTURE = draw_picture(np.random.default_rng(0), 40, 50)
REQUESTS = {
    "text": TextToImage(**USUAL),
    "picture": ImageToImage(**USUAL, picture=PICTURE),
    "edit": EditPlus(**USUAL, pictures=(PICTURE,), condition_area=3136, vae_area=1024),
}
ORDER = {
    "text": ["text_encoder", "transformer", "vae_decoder"],
    "picture": ["text_encoder", "vae_encoder", "transformer", "vae_decoder"],
    "edit": ["vision", "text_encoder", "vae_encoder", "transformer", "vae_decoder"],
}


@pytest.fixture(autouse=True)
def nothing_left_over():
    gc.collect()
    mx.clear_cache()


@pytest.fixture
def loaded(monkeypatch):
    """What is loaded, each with the bytes of arrays that were there before, and with its own."""
    found = []

    def watched(name, load):
        def load_it(root, dtype):
            before = mx.get_active_memory()
            model = load(root, dtype)
            weights = tree_flatten(model.parameters()) if isinstance(model, nn.Module) else []
            found.append((name.removesuffix("_streamed"), before, sum(array.nbytes for _, array in weights)))
            return model

        return load_it

    watching = {name: watched(name, load) for name, load in components.LOADERS.items()}
    monkeypatch.setattr(components, "LOADERS", watching)
    return found


@pytest.mark.parametrize("name", REQUESTS)
def test_one_component_at_a_time_makes_the_same_picture(name, loaded):
    request, folder = REQUESTS[name], write_pipeline()
    before = mx.get_active_memory()
    pipeline = open_pipeline(folder, "float32", low_memory=True)
    careful = pipeline.run(request)
    assert [name for name, *_ in loaded] == ORDER[name]
    # The text encoder holds nothing before it is called.
    smallest = min(own for *_, own in loaded if own)
    assert [name for name, _, own in loaded if not own] == ["text_encoder"]
    for component, there, _ in loaded:
        # Embeddings and latents stay; they are small against any component.
        assert there - before < smallest / 2, f"weights are in memory when {component} is loaded"
    assert mx.get_active_memory() - before < smallest / 2

    loaded.clear()
    plain = open_pipeline(folder, "float32").run(request)
    assert [name for name, *_ in loaded] == ORDER[name]
    together = sum(own for *_, own in loaded[:-1])
    # A cached table of before may go meanwhile: half a component of slack, as above.
    assert loaded[-1][1] - before > together - smallest / 2, "without low_memory everything that was used stays"
    np.testing.assert_array_equal(careful.images, plain.images)


def test_the_peak_is_that_of_one_component(loaded):
    """Here activations count too."""
    folder = write_pipeline()
    before = mx.get_active_memory()
    plain = open_pipeline(folder, "float32").run(REQUESTS["text"]).peak_bytes - before
    sizes = [own for *_, own in loaded]
    gc.collect()
    mx.clear_cache()
    careful = open_pipeline(folder, "float32", low_memory=True).run(REQUESTS["text"]).peak_bytes - before
    assert plain > sum(sizes)
    # The text encoder, of which only a layer is in memory at a time, is the largest of this small model.
    assert careful < sum(sizes) / 2 < max(sizes)


def test_components_are_loaded_once_and_used_again(loaded):
    pipeline = open_pipeline(write_pipeline(), "float32")
    first = pipeline.run(REQUESTS["text"])
    count = len(loaded)
    second = pipeline.run(REQUESTS["text"])
    assert len(loaded) == count == 3
    np.testing.assert_array_equal(first.images, second.images)


def test_progress_is_told_in_order():
    told = []
    open_pipeline(write_pipeline(), "bfloat16").run(
        REQUESTS["text"], on_stage=told.append, on_step=lambda done, steps: told.append((done, steps))
    )
    assert told == ["prepare", "denoise", (1, 2), (2, 2), "decode"]
