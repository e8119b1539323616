"""The same weights in every layout, bit for bit, and nothing half written."""

import json
import shutil
import signal
import subprocess
import sys
import time

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
from layout_folders import (
    CONFIG,
    mflux_name,
    mflux_text,
    mflux_vae,
    packed,
    save_sparse,
    weights,
    write_config,
    write_diffusers,
    write_every,
    write_mflux,
    write_model,
)  # fmt: skip
from safetensors import safe_open

from parity import checkpoint, weights_convert
from parity.cli import call
from parity.errors import UsageError, WeightsError
from parity.layouts import locate
from parity.transformer_shape import expected_tensors

QUANTIZED = ("mflux-4bit", "mflux-8bit-32", "mflux-new", "mlx-gen-mixed", "mlx-rs")
DENSE = ("diffusers", "mflux", "single", "single-transformer", "single-bare")


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    return write_every(tmp_path_factory.mktemp("layouts"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), weights())


def convert(source, target, to, **how):
    conversion = weights_convert.plan(source, to, target, how.pop("dtype", None))
    weights_convert.write(conversion, target, how.pop("force", False), lambda size: None, print)
    return conversion


def stored(path):
    """Stored name -> (dtype, shape, bytes) of all files at a path, as safetensors' own reader sees them."""
    found = {}
    for file in [path] if path.is_file() else sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="np") as shard:
            for name in shard.keys():  # noqa: SIM118
                array = shard.get_tensor(name)
                assert name not in found
                found[name] = (array.dtype.name, array.shape, array.tobytes())
    return found


def as_stored(arrays):
    return {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()}


def test_a_whole_model_goes_to_mflux_and_back(model, tmp_path):
    convert(model, tmp_path / "mlx", "mflux")
    assert stored(tmp_path / "mlx" / "transformer") == as_stored({mflux_name(n): a for n, a in weights().items()})
    for component, renamed in (("vae", mflux_vae), ("text_encoder", mflux_text)):
        with_axes = renamed(arrays_of(model / component))
        found = stored(tmp_path / "mlx" / component)
        found.pop("lm_head.weight", None)
        with_axes.pop("encoder.rotary_emb.inv_freq", None)
        assert found == as_stored({name: np.ascontiguousarray(array) for name, array in with_axes.items()})
    convert(tmp_path / "mlx", tmp_path / "back", "diffusers")
    for component in ("transformer", "vae", "text_encoder"):
        assert stored(tmp_path / "back" / component) == stored(model / component)
        config = f"{component}/config.json"
        assert (tmp_path / "back" / config).read_bytes() == (model / config).read_bytes()
    for file in ("model_index.json", "tokenizer/vocab.json", "scheduler/scheduler_config.json"):
        assert (tmp_path / "back" / file).read_bytes() == (model / file).read_bytes()


def arrays_of(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as shard:
            found |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("to", ["diffusers", "mflux", "mlx-rs", "single"])
@pytest.mark.parametrize("variant", DENSE)
def test_every_dense_layout_goes_to_every_other_and_back(every, tmp_path, variant, to):
    source = every[variant][0]
    target = tmp_path / ("one.safetensors" if to == "single" else "there")
    convert(source, target, to)
    assert locate(target).layout == to
    back = tmp_path / "back"
    convert(target, back, "diffusers")
    assert stored(back) == as_stored(weights())
    assert json.loads((back / "config.json").read_text()).items() >= CONFIG.items()


@pytest.mark.parametrize("variant", QUANTIZED)
def test_packed_layers_stay_packed_between_the_layouts_of_mlx(every, tmp_path, variant):
    source, layout, bits = every[variant]
    other = "mflux" if layout == "mlx-rs" else "mlx-rs"
    convert(source, tmp_path / "there", other)
    assert locate(tmp_path / "there").layout == other
    assert {e.packing.bits for e in locate(tmp_path / "there").entries.values() if e.packing} == {b for b, _ in bits}
    convert(tmp_path / "there", tmp_path / "back", layout)
    assert stored(tmp_path / "back") == stored(source)


def test_the_names_of_a_packed_layer_in_mlx_rs_are_the_guide_s(every, tmp_path):
    convert(every["mflux-4bit"][0], tmp_path / "rs", "mlx-rs")
    names = stored(tmp_path / "rs").keys()
    layer = "time_text_embed.linear_1"
    assert {n for n in names if n.startswith(layer)} == {
        f"{layer}.inner.weight", f"{layer}.inner.bias", f"{layer}.scales", f"{layer}.biases",
    }  # fmt: skip
    assert "transformer_blocks.0.attn.norm_q.weight" in names


def test_an_mflux_folder_has_its_index_and_metadata(every, tmp_path, monkeypatch):
    monkeypatch.setitem(weights_convert.LARGEST, "mflux", 200_000)
    convert(every["mlx-rs"][0], tmp_path / "out", "mflux")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "out").glob("*.safetensors"), key=lambda file: int(file.stem))
    assert [file.name for file in files] == [f"{i}.safetensors" for i in range(len(files))]
    assert len(files) > 3
    for file in files:
        with safe_open(file, framework="np") as shard:
            assert shard.metadata() == {"quantization_level": "4", "mflux_version": weights_convert.MFLUX_VERSION}
            assert {index["weight_map"][name] for name in shard.keys()} == {file.name}  # noqa: SIM118
            largest = max(shard.get_tensor(name).nbytes for name in shard.keys())  # noqa: SIM118
        assert file.stat().st_size < 200_000 + largest + 20_000
    convert(every["diffusers"][0], tmp_path / "dense", "mflux")
    with safe_open(tmp_path / "dense" / "0.safetensors", framework="np") as shard:
        assert shard.metadata()["quantization_level"] == "None"


def test_mlx_itself_reads_what_was_written(every, tmp_path):
    convert(every["mlx-rs"][0], tmp_path / "out", "mflux")
    arrays, metadata = mx.load(str(tmp_path / "out" / "0.safetensors"), return_metadata=True)
    assert metadata["quantization_level"] == "4"
    name = "transformer_blocks.0.img_mod_linear"
    theirs = mx.dequantize(
        *(arrays[f"{name}.{part}"] for part in ("weight", "scales", "biases")), group_size=64, bits=4
    )
    original = weights()["transformer_blocks.0.img_mod.1.weight"].astype(np.float32)
    assert np.abs(np.array(theirs.astype(mx.float32)) - original).max() < 0.4


@pytest.mark.parametrize("to", ["diffusers", "single"])
def test_packed_layers_are_not_put_where_they_cannot_be(every, tmp_path, to):
    target = tmp_path / ("one.safetensors" if to == "single" else "out")
    with pytest.raises(WeightsError, match=rf"34 layers are packed, which the layout {to} cannot hold; --dequantize"):
        convert(every["mflux-4bit"][0], target, to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("variant", QUANTIZED)
def test_packed_layers_are_written_out_as_mlx_has_them(every, tmp_path, variant, dtype):
    source = every[variant][0]
    convert(source, tmp_path / "out", "diffusers", dtype=dtype)
    found, entries = arrays_of(tmp_path / "out"), locate(source).entries
    held = arrays_of(source)
    numpy_dtype = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}[dtype]
    for name, array in weights().items():
        packing = entries[name].packing
        if packing is None:
            assert found[name].tobytes() == array.tobytes()
            continue
        parts = (held[entries[name].name], held[packing.scales.name], held[packing.biases.name])
        words, scales, biases = (mx.array(p.astype(np.float32) if p.dtype != np.uint32 else p) for p in parts)
        theirs = np.array(mx.dequantize(words, scales, biases, group_size=packing.group_size, bits=packing.bits))
        assert found[name].dtype == numpy_dtype
        spacing = np.spacing(np.abs(theirs).astype(np.float32)) + np.abs(theirs) * ml_dtypes.finfo(numpy_dtype).eps
        assert (np.abs(found[name].astype(np.float32) - theirs) <= spacing + 1e-7).all()


def test_values_beyond_float16_are_refused(tmp_path):
    arrays = weights()
    arrays["proj_out.weight"] = (arrays["proj_out.weight"].astype(np.float32) * 1e6).astype(ml_dtypes.bfloat16)
    source = write_mflux(tmp_path / "in", packed(arrays, 8), 8)
    with pytest.raises(WeightsError, match=r"proj_out\.weight: dequantized values are not finite in F16"):
        convert(source, tmp_path / "out", "diffusers", dtype="F16")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]
    convert(source, tmp_path / "out", "diffusers", dtype="BF16")


def test_the_mark_of_an_editing_model_goes_along(tmp_path):
    source = write_diffusers(tmp_path / "in", weights(), {"zero_cond_t": True})
    convert(source, tmp_path / "one.safetensors", "single")
    assert locate(tmp_path / "one.safetensors").config["zero_cond_t"] is True
    convert(tmp_path / "one.safetensors", tmp_path / "back", "diffusers")
    assert checkpoint.inspect(tmp_path / "back").config == checkpoint.inspect(source).config


def test_a_config_that_a_single_file_cannot_hold_is_said(tmp_path):
    source = write_diffusers(tmp_path / "in", weights(), {"axes_dims_rope": [16, 24, 24]})
    notes = convert(source, tmp_path / "one.safetensors", "single").notes
    assert any("axes_dims_rope will not follow from its shapes: copy" in note for note in notes)
    ordinary = convert(write_diffusers(tmp_path / "b", weights()), tmp_path / "two.safetensors", "single")
    assert not any("will not follow" in note for note in ordinary.notes)


def test_generated_weights_stay_known_as_such(model, tmp_path):
    source = shutil.copytree(model, tmp_path / "in")
    (source / "transformer" / checkpoint.SYNTHETIC_FILE).write_text('{"preset": "tiny"}')
    convert(source, tmp_path / "one.safetensors", "single")
    convert(source, tmp_path / "out", "mflux")
    assert checkpoint.inspect(tmp_path / "one.safetensors").synthetic == "tiny"
    assert checkpoint.inspect(tmp_path / "out").synthetic == "tiny"


def test_a_single_file_leaves_the_other_components_out_and_says_so(model, tmp_path):
    notes = convert(model, tmp_path / "one.safetensors", "single").notes
    assert "a single file holds the transformer alone: text_encoder, vae left out" in notes


def test_an_unsound_source_is_refused(tmp_path):
    arrays = weights()
    arrays.pop("proj_out.bias")
    with pytest.raises(WeightsError, match=r"missing: proj_out\.bias"):
        convert(write_diffusers(tmp_path / "in", arrays), tmp_path / "out", "mflux")


@pytest.mark.parametrize(
    ("target", "to", "said"),
    [
        ("in/out", "mflux", "lie in each other"), ("in", "mflux", "lie in each other"), (".", "mflux", "lie in each"),
        ("one.safetensors", "mflux", "is to be a folder"), ("out", "single", r"must end in \.safetensors"),
        ("no/out", "mflux", "there is no folder"),
    ],
)  # fmt: skip
def test_names_that_do_not_go_together(tmp_path, target, to, said):
    write_diffusers(tmp_path / "in", weights())
    with pytest.raises(UsageError, match=said):
        convert(tmp_path / "in", tmp_path / target, to)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_the_command_line(model, tmp_path, capsys):
    assert call(["weights", "convert", str(model), str(tmp_path / "out"), "--to", "mflux"]) == 0
    assert "layout mflux" in capsys.readouterr().out
    assert call(["weights", "convert", str(model), str(tmp_path / "out"), "--to", "mflux"]) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert call(["weights", "convert", str(model), str(tmp_path / "out"), "--to", "mlx-rs", "--force"]) == 0
    assert call(["weights", "convert", str(model), str(tmp_path / "b"), "--to", "mflux", "--dtype", "float16"]) == 2
    assert "--dtype is for what --dequantize" in capsys.readouterr().err
    assert call(["weights", "convert", str(tmp_path / "no"), str(tmp_path / "b"), "--to", "mflux"]) == 4
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out"]


def test_a_full_disk_is_found_before_anything_is_written(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 1000))
    assert call(["weights", "convert", str(model), str(tmp_path / "out"), "--to", "mflux"]) == 4
    assert "GB are needed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# Slows every write down, so that a kill meets a conversion or a quantization at work.
SLOWLY = """
import sys, time
import mlx_impl.quantize as quantize
from parity import safetensors_writer as writer, weights_convert
def slow(*args):
    for piece in pieces(*args):
        time.sleep(0.01)
        yield piece
def slow_pack(*args):
    time.sleep(0.02)
    return pack(*args)
pieces, pack = writer.file_pieces, quantize.pack
weights_convert.file_pieces, quantize.pack = slow, slow_pack
from parity.cli import call
print("ready", flush=True)
sys.exit(call(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("command", "seconds"), [("convert", 0.0), ("convert", 0.1), ("convert", 0.8), ("quantize", 0.1), ("quantize", 0.5)]
)
def test_what_is_killed_leaves_nothing_under_the_final_name(model, tmp_path, command, seconds):
    argv = ["weights", command, str(model), str(tmp_path / "out"), *(["--to", "mflux"] * (command == "convert"))]
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    partial = tmp_path / ".out.parity-partial"
    deadline = time.monotonic() + 30
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert partial.exists()
    assert not (tmp_path / "out").exists()
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from parity.cli import call; sys.exit(call(sys.argv[1:]))", *argv],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if seconds:
        assert "which a conversion that was cut off has left" in done.stderr
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out"]
    assert checkpoint.inspect(tmp_path / "out").layout == "mflux"


def test_memory_is_that_of_a_piece_and_not_of_the_model(tmp_path):
    config = CONFIG | {"joint_attention_dim": 600_000, "num_layers": 1}
    unreal = {name: np.broadcast_to(np.uint8(0), shape) for name, shape in expected_tensors(config).items()}
    source = save_sparse(tmp_path / "in" / "diffusion_pytorch_model.safetensors", unreal).parent
    assert (source / "diffusion_pytorch_model.safetensors").stat().st_size > 150e6
    write_config(source, config)
    script = (
        "import resource, sys; from parity.cli import call; import parity.weights_convert, parity.commands.weights;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; code = call(sys.argv[1:]);"
        "print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    argv = ["weights", "convert", str(source), str(tmp_path / "out"), "--to", "mflux"]
    done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, timeout=60)
    code, grown = map(int, done.stdout.split()[-2:])
    assert code == 0
    assert grown < 30_000
