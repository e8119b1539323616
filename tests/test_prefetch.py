"""Reading ahead: every tensor once, with its stage, and what is wrong with it said."""

import math

import ml_dtypes
import numpy as np
import pytest
from mini import CONFIG, write_checkpoint
from safetensors.numpy import load_file, save_file

from parity import model_folder, prefetch
from parity.errors import WeightsError
from parity.names import qwen_image_transformer

STAGES = qwen_image_transformer(CONFIG["num_layers"], "block").stages


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path)


def reader(folder):
    return prefetch.Prefetcher(model_folder.inspect(folder).checkpoints, STAGES)


def spoil(folder, name, change):
    """Write the file that holds a tensor again, with the tensor changed."""
    path, tensors = next((p, t) for p in folder.rglob("*.safetensors") if name in (t := load_file(p)))
    tensors[name] = change(tensors[name])
    save_file(tensors, path)


def planted(value, at):
    def change(tensor):
        flat = tensor.ravel().copy()
        flat[at] = value
        return flat.reshape(tensor.shape)

    return change


def test_every_tensor_is_read_once_and_with_its_own_stage(folder, monkeypatch):
    looked = []
    real = prefetch.Prefetcher._problem
    monkeypatch.setattr(
        prefetch.Prefetcher, "_problem", lambda self, piece: (looked.append(piece.name), real(self, piece))[1]
    )
    model = model_folder.inspect(folder)
    with prefetch.Prefetcher(model.checkpoints, STAGES) as ahead:
        for index, stage in enumerate(STAGES):
            before = len(looked)
            ahead.wait(stage)
            of_stage = looked[before:]
            if stage.startswith("block."):
                assert of_stage
                assert all(name.startswith(f"transformer_blocks.{index - 1}.") for name in of_stage)
    assert sorted(looked) == sorted(model.checkpoints["transformer"].tensors)


def test_the_bytes_that_are_read_are_those_of_the_tensors(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(prefetch, "count_non_finite", lambda part, dtype: (seen.append(part.size), (0, 0, 1))[1])
    with reader(folder) as ahead:
        for stage in STAGES:
            ahead.wait(stage)
    assert sum(seen) == model_folder.inspect(folder).nbytes


@pytest.mark.parametrize(
    ("value", "said"), [(np.nan, "1 NaN"), (np.inf, "1 infinite"), (-np.inf, "1 infinite")], ids=str
)
def test_a_value_that_is_not_finite_stops_its_own_stage(folder, value, said):
    name = "transformer_blocks.1.attn.to_q.weight"
    spoil(folder, name, planted(value, -1))
    with reader(folder) as ahead:
        ahead.wait("embed")
        ahead.wait("block.00")
        with pytest.raises(WeightsError, match=f"block.01.*{name}: {said}"):
            ahead.wait("block.01")


def test_values_beyond_the_first_piece_are_looked_at(folder, monkeypatch):
    monkeypatch.setattr(prefetch, "CHUNK", 64)
    spoil(folder, "transformer_blocks.0.img_mod.1.weight", planted(np.nan, 1000))
    with reader(folder) as ahead, pytest.raises(WeightsError, match="1 NaN"):
        ahead.wait("block.00")


def test_a_file_that_became_shorter_is_said_to_end(folder):
    ahead = reader(folder)
    path = next(folder.rglob("*.safetensors"))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with ahead, pytest.raises(WeightsError, match="ends before it"):
        list(map(ahead.wait, STAGES))


def test_leaving_early_stops_reading(folder, monkeypatch):
    with reader(folder) as ahead:
        ahead.begin("block.00")
        ahead.begin("block.00")
        ahead.begin(None)
    assert ahead._stopped


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("transformer_blocks.7.attn.to_out.0.weight", 7),
        ("model.diffusion_model.transformer_blocks.12.img_mod.1.bias", 12),
        ("block.03", 3),
        ("embed", None),
        ("time_text_embed.timestep_embedder.linear_1.weight", None),
    ],
)
def test_the_number_of_a_block_is_found_in_a_name(name, number):
    assert prefetch.number_in(name) == number


def test_integers_are_read_and_not_taken_for_floats(tmp_path):
    """Packed codes: any bit pattern is right."""
    words = np.full(8, 0xFFFFFFFF, np.uint32)
    path = tmp_path / "x.safetensors"
    save_file({"w": words, "s": np.ones(4, ml_dtypes.bfloat16)}, path)
    from parity.safetensors_header import read_header

    shard = read_header(path)
    piece = prefetch._Piece(path, "w", shard.tensors["w"])
    ahead = prefetch.Prefetcher({}, ("embed",))
    assert ahead._problem(piece) is None
    assert math.prod(piece.tensor.shape) == 8
