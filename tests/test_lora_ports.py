"""LoRA on both sides: what diffusers does with a file is what the MLX side must do, on every checkpoint."""

import hashlib
import json
from dataclasses import replace

import lora_files
import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.loaders.lora_pipeline import QwenImageLoraLoaderMixin
from mini import CONFIG, write_checkpoint, write_suite
from pipeline_folder import write_pipeline

import mlx_impl.lora as ours
from mlx_impl.layers import Linear
from mlx_impl.lora import Adapted, SidePath
from parity import lora, model_folder, verdict
from parity import suite as suites
from parity.cli import call
from parity.components import build_graph
from parity.components.pipeline import PipelineCase
from parity.components.transformer import TransformerCase
from parity.layouts import locate
from parity.layouts.lora import Adapter, LoraError
from parity.lockstep import Lockstep, Unit, iterate
from parity.ports import open_port
from parity.run import Job
from parity.runfolder import RunFolder
from reference.port import ReferencePort

CASE = TransformerCase(name="one", seed=0, images=((64, 96),), text_tokens=(5, 3), timestep=0.9)
CONFIGS = {"transformer": CONFIG}
BOTH = ("isolated", "accumulated")
# Every layer can be packed in groups of 64.
WIDE = CONFIG | {
    "attention_head_dim": 64, "joint_attention_dim": 128, "axes_dims_rope": (8, 28, 28), "in_channels": 64,
    "out_channels": 16,
}  # fmt: skip
Q, FFN = "transformer_blocks.0.attn.to_q", "transformer_blocks.1.img_mlp.net.2"
# With alpha and without: what diffusers 0.42 loads into this model. It doubles the prefix where it converts.
READ = [
    ("transformer", None), ("peft-default", None), ("peft-default", 3), ("lightning", 3), ("bare", 3), ("kohya", None),
    ("kohya", 3), ("diffusion_model", None), ("diffusion_model", 3), ("diffusion_model-down", 3),
]  # fmt: skip
NOT_READ = [
    ("transformer", 3), ("base_model", None), ("bare", None), ("lightning", None), ("transformer-default", None),
    ("transformer-down", 3), ("mflux", 3),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=["4", "8"])
def packed(request, folder, tmp_path_factory):
    """A quantized model, wide enough for groups."""
    root = tmp_path_factory.mktemp("packed")
    write_checkpoint(root / "whole", **WIDE)
    assert call(["weights", "quantize", str(root / "whole"), str(root / "q"), "--bits", request.param]) == 0
    return root / "q"


def file(folder, dialect="kohya", alpha=3, name="lora.safetensors", config=CONFIG, **made):
    return lora_files.write(folder / name, lora_files.tensors_of(lora_files.factors(config, **made), dialect, alpha))


def judged(folder, adapters, dtype, config=CONFIG):
    """Mode -> checkpoint -> row."""
    configs = {"transformer": config}
    graph = build_graph(CASE.graph(configs, "full"))
    unit = Unit(CASE, dtype, BOTH, graph, draws=2)
    lockstep = Lockstep(unit, open_port("reference"), open_port("mlx_impl"), folder, adapters)
    results = [one for _, _, one in iterate(lockstep, lockstep.start(CASE.inputs(configs, dtype)), 0)]
    rows = {mode: [row for result in results for row in result.rows[mode]] for mode in BOTH}
    return {
        mode: {row["name"]: row for row in verdict.judge(rows[mode], graph, isolated=mode == "isolated")}
        for mode in BOTH
    }


def outcome(port, folder, adapters, config=CONFIG):
    """What comes out at the end."""
    session = open_port(port).open(folder, dtype="float32", adapters=adapters)
    state = CASE.inputs({"transformer": config}, "float32")
    for stage in session.stages:
        session.load(stage)
        state, _ = session.run(stage, state, ())
        session.free(stage)
    return state["sample"]


def sources(rows):
    return [name for name, row in rows.items() if row["source"]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("dialect", "alpha"), READ)
def test_every_dialect_is_at_parity_with_diffusers(tmp_path, folder, dialect, alpha, dtype):
    """Factors in bfloat16, and alpha / rank = 3/4, so that it matters where the scale goes."""
    path = file(tmp_path, dialect, alpha, dtype=torch.bfloat16)
    for rows in judged(folder, [Adapter(path, 0.7)], dtype).values():
        assert {row["verdict"] for row in rows.values()} == {"match"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_packed_weights_it_is_at_parity(tmp_path, packed, dtype):
    path = file(tmp_path, config=WIDE, dtype=torch.bfloat16)
    assert {packing is None for packing in packings(packed)} == {False}
    for rows in judged(packed, [Adapter(path, 0.7)], dtype, WIDE).values():
        assert {row["verdict"] for row in rows.values()} == {"match"}


def packings(folder):
    entries = locate(folder).entries
    return [entries[f"{layer}.weight"].packing for layer in lora.linear_layers(WIDE)]


@pytest.mark.parametrize("port", ["reference", "mlx_impl"])
def test_it_changes_the_outcome_and_with_scale_0_it_does_not(tmp_path, folder, packed, port):
    for model, config in ((folder, CONFIG), (packed, WIDE)):
        path = file(tmp_path, config=config)
        without, none, whole = (
            outcome(port, model, adapters, config) for adapters in ([], [Adapter(path, 0.0)], [Adapter(path)])
        )
        np.testing.assert_array_equal(none, without)
        assert np.sqrt(np.mean((whole - without) ** 2) / np.mean(without**2)) > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_several_at_once_are_at_parity(tmp_path, folder, dtype):
    first = file(tmp_path, "kohya", 2, "a.safetensors", rank=4)
    second = file(tmp_path, "diffusion_model", lambda layer: 1 + len(layer) % 3, "b.safetensors", rank=6, seed=2)
    for rows in judged(folder, [Adapter(first), Adapter(second, -0.5)], dtype).values():
        assert {row["verdict"] for row in rows.values()} == {"match"}


def test_the_config_in_the_metadata_is_at_parity(tmp_path, folder):
    made = lora_files.factors(CONFIG)
    config = {"r": 4, "lora_alpha": 6, "target_modules": list(made), "alpha_pattern": {"attn.to_q": 2}}
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config.items()})}
    path = lora_files.write(tmp_path / "x.safetensors", lora_files.tensors_of(made, "transformer"), metadata)
    for rows in judged(folder, [Adapter(path)], "float32").values():
        assert {row["verdict"] for row in rows.values()} == {"match"}


@pytest.mark.parametrize(
    ("layer", "where", "fault"),
    [
        (FFN, "block.01.img.ffn", "alpha"), (Q, "block.00.img.q", "swapped"), (Q, "block.00.img.q", "scale"),
        ("img_in", "img_in", "alpha"), ("norm_out.linear", "norm_out.mod", "alpha"), ("proj_out", "final", "alpha"),
    ],
)  # fmt: skip
def test_a_fault_in_one_layer_is_found_exactly_there(tmp_path, folder, monkeypatch, layer, where, fault):
    path = file(tmp_path, "kohya", 2)
    right = ours._factors

    def faulty(stored, pair):
        down, up = right(stored, pair)
        if layer.replace(".", "_") not in pair.down:
            return down, up
        if fault == "swapped":
            return up.T, down.T
        return (down * 2, up) if fault == "alpha" else (down, up * 1.5)

    monkeypatch.setattr(ours, "_factors", faulty)
    for mode, rows in judged(folder, [Adapter(path)], "float32").items():
        assert sources(rows) == [where], mode


def test_a_dropped_alpha_is_found_exactly_there_on_packed_weights(tmp_path, packed, monkeypatch):
    path = file(tmp_path, alpha=2, config=WIDE)
    right = ours._factors

    def faulty(stored, pair):
        return right(stored, replace(pair, alpha=None) if FFN.replace(".", "_") in pair.down else pair)

    monkeypatch.setattr(ours, "_factors", faulty)
    for mode, rows in judged(packed, [Adapter(path)], "float32", WIDE).items():
        assert sources(rows) == ["block.01.img.ffn"], mode


@pytest.mark.parametrize(("dialect", "alpha"), NOT_READ)
def test_a_file_that_diffusers_does_not_read_is_said_to_be_one(tmp_path, folder, dialect, alpha):
    path = file(tmp_path, dialect, alpha)
    open_port("mlx_impl").open(folder, dtype="float32", adapters=[Adapter(path)])
    with pytest.raises(LoraError, match=r"diffusers, which is the reference, reads \d+ of its 34 pairs") as raised:
        ReferencePort("cpu").open(folder, dtype="float32", adapters=[Adapter(path)])
    assert "it would read diffusion_model." in raised.value.message


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_holds_what_diffusers_holds(tmp_path, folder, dtype):
    """GIVEN diffusers' own way, a whole LoRA into a whole model, THEN factors and outputs are equal bit for bit."""
    path = file(tmp_path, "kohya", 3, dtype=torch.bfloat16)
    torch_dtype = getattr(torch, dtype)
    whole = QwenImageTransformer2DModel.from_pretrained(folder, torch_dtype=torch_dtype)
    state = QwenImageLoraLoaderMixin.lora_state_dict(str(path))
    QwenImageLoraLoaderMixin.load_lora_into_transformer(state, whole, adapter_name="lora_0", low_cpu_mem_usage=True)
    whole.set_adapters(["lora_0"], [0.7])
    theirs = {key: tensor for key, tensor in whole.state_dict().items() if ".lora_" in key}
    session = ReferencePort("cpu").open(folder, dtype=dtype, adapters=[Adapter(path, 0.7)])
    for stage in session.stages:
        session.load(stage)
    held = session._model.state_dict()
    assert len(theirs) == 68
    for key, tensor in theirs.items():
        assert held[key].dtype == tensor.dtype == torch_dtype
        assert torch.equal(held[key], tensor)
    if dtype == "float32":
        inputs = CASE.inputs(CONFIGS, dtype)
        after = dict(inputs)
        for stage in session.stages:
            after, _ = session.run(stage, after, ())
        with torch.no_grad():
            expected = whole(
                torch.from_numpy(inputs["latents"]),
                encoder_hidden_states=torch.from_numpy(inputs["prompt_embeds"]),
                encoder_hidden_states_mask=torch.from_numpy(inputs["prompt_mask"]),
                timestep=torch.from_numpy(inputs["timestep"]),
                img_shapes=[[tuple(map(int, shape)) for shape in inputs["img_shapes"]]] * len(inputs["latents"]),
                return_dict=False,
            )[0]
        np.testing.assert_array_equal(after["sample"], expected.numpy())


def test_stages_are_freed_and_loaded_again(tmp_path, folder):
    adapter = Adapter(file(tmp_path))
    for name in ("reference", "mlx_impl"):
        session = open_port(name).open(folder, dtype="float32", adapters=[adapter])
        outputs = []
        for _ in range(2):
            session.load("embed")
            session.load("embed")
            outputs.append(session.run("embed", CASE.inputs(CONFIGS, "float32"), ())[0]["img"])
            session.free("embed")
        np.testing.assert_array_equal(*outputs)


def _random(*shape, seed, strength=1.0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(strength)


def _layer(weight):
    layer = Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = mx.array(weight), mx.zeros(len(weight))
    return layer


def _lost(got, base, expected):
    """How much of a change of the output is missing or wrong, relative to it."""
    return np.sqrt(np.mean((got - base - expected) ** 2) / np.mean(expected**2))


def test_fusing_in_bfloat16_loses_what_the_side_path_keeps():
    weight = _random(256, 256, seed=1).astype("bfloat16").astype(np.float32)
    down, up = _random(8, 256, seed=2, strength=1 / 16), _random(256, 8, seed=3, strength=2e-4 / 8**0.5 * 16)
    x = _random(64, 256, seed=4)
    expected = x.astype(np.float64) @ down.T.astype(np.float64) @ up.T.astype(np.float64)
    layer = _layer(weight)
    base = np.array(layer(mx.array(x)), dtype=np.float64)
    fused = (weight + up @ down).astype("bfloat16").astype(np.float32)
    assert np.mean(fused == weight) > 0.8
    of_fused = np.array(_layer(fused)(mx.array(x)), dtype=np.float64)
    of_side = np.array(Adapted(layer, [SidePath(mx.array(down), mx.array(up), 1.0)])(mx.array(x)), dtype=np.float64)
    assert _lost(of_fused, base, expected) > 0.5
    assert _lost(of_side, base, expected) < 1e-2


def test_fusing_into_4_bits_changes_almost_no_code_and_the_side_path_works_on_them():
    weight = _random(256, 256, seed=1)
    down, up = _random(8, 256, seed=2, strength=1 / 16), _random(256, 8, seed=3, strength=1e-3)
    packed = _layer(weight).to_quantized(64, 4)
    fused = _layer(weight + up @ down).to_quantized(64, 4)
    codes = [
        mx.dequantize(one.weight, mx.ones_like(one.scales), mx.zeros_like(one.biases), group_size=64, bits=4)
        for one in (packed, fused)
    ]
    assert mx.mean(codes[0] == codes[1]).item() > 0.8
    x = _random(64, 256, seed=4)
    adapted = Adapted(packed, [SidePath(mx.array(down), mx.array(up), 0.5)])
    change = np.array(adapted(mx.array(x))) - np.array(packed(mx.array(x)))
    np.testing.assert_allclose(change, 0.5 * (x @ down.T) @ up.T, atol=2e-5)


def test_a_run_says_what_was_bound_and_resumes_only_with_the_same_file(tmp_path, folder, capsys):
    path, suite, out = file(tmp_path), write_suite(tmp_path), tmp_path / "run"
    argv = ["run", str(suite), "--weights", str(folder), "--out", str(out), "--jobs", "1", "--lora", f"{path}@0.5"]
    assert call(argv) == 0
    assert "lora lora.safetensors: 34 of 34 pairs bound, rank 4, alpha 3, scale 0.5" in capsys.readouterr().err
    [found] = json.loads((out / "parity.json").read_text())["weights"]["lora"]
    assert (found["name"], found["scale"], found["bound"], found["pairs"]) == ("lora.safetensors", 0.5, 34, 34)
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    plans = [
        Job(suites.load(str(suite)), None, "mlx_impl", loras=lora.inspect(texts, CONFIG)).plan("weights")
        for texts in ([], [str(path)], [f"{path}@0.5"], [str(file(tmp_path, alpha=2, name="other.safetensors"))])
    ]
    assert all(plans.count(plan) == 1 for plan in plans)


def test_a_run_that_was_cut_off_is_not_taken_up_with_another_lora(tmp_path, folder, capsys):
    path, suite, out = file(tmp_path), write_suite(tmp_path), tmp_path / "run"
    model = model_folder.inspect(folder, ("transformer",))
    begun = Job(suites.load(str(suite)), model, "mlx_impl", loras=lora.inspect([f"{path}@0.5"], CONFIG))
    RunFolder.open(out, begun.plan(model.fingerprint()))
    argv = ["run", str(suite), "--weights", str(folder), "--out", str(out), "--jobs", "1"]
    for other in ((), ("--lora", str(path)), ("--lora", f"{path}@0.6")):
        assert call([*argv, *other]) == 2
        assert "holds an unfinished run of another plan" in capsys.readouterr().err
    assert call([*argv, "--lora", f"{path}@0.5"]) == 0


def test_a_file_without_a_binding_ends_a_run_with_4(tmp_path, folder, capsys):
    stranger = {"transformer.x.lora_A.weight": torch.ones(2, 3), "transformer.x.lora_B.weight": torch.ones(3, 2)}
    path = lora_files.write(tmp_path / "x.safetensors", stranger)
    argv = ["run", str(write_suite(tmp_path)), "--weights", str(folder), "--out", str(tmp_path / "run")]
    assert call([*argv, "--lora", str(path)]) == 4
    assert "none of its 1 pairs" in capsys.readouterr().err


def test_a_pipeline_with_a_lora_is_at_parity(tmp_path):
    root = write_pipeline()
    configs = {"transformer": json.loads((root / "transformer" / "config.json").read_text())}
    made = lora_files.factors(configs["transformer"])
    path = lora_files.write(tmp_path / "x.safetensors", lora_files.tensors_of(made, "kohya", 3))
    usual = {"seed": 0, "prompts": ("A red fox.",), "negative": (" ",), "image": (32, 48), "steps": 2}
    case = PipelineCase(name="guided", kind="text_to_image", inside=(1,), **usual)
    graph = build_graph(case.graph(configs, "full"))
    pictures = []
    for adapters in ([], [Adapter(path)]):
        unit = Unit(case, "float32", BOTH, graph, draws=2)
        lockstep = Lockstep(unit, open_port("reference"), open_port("mlx_impl"), root, adapters)
        results = [one for _, _, one in iterate(lockstep, lockstep.start(case.inputs(configs, "float32")), 0)]
        for mode in BOTH:
            rows = verdict.judge([row for one in results for row in one.rows[mode]], graph, isolated=mode == "isolated")
            assert {row["verdict"] for row in rows} == {"match"}
        pictures.append(results[-1].pictures["pipeline.image"][1])
    assert np.abs(pictures[0] - pictures[1]).max() > 0.05


@pytest.mark.slow
def test_the_shape_of_lightning_on_sixty_blocks(tmp_path, capsys):
    from parity.commands.synth import ensure

    config = json.loads((ensure("tiny") / "transformer" / "config.json").read_text())
    layers = [name for name in lora_files.linear_layers(config) if name.startswith("tr") and "_mod." not in name]
    made = lora_files.factors(config, rank=64, layers=layers, strength=0.02, dtype=torch.bfloat16)
    path = lora_files.write(tmp_path / "x.safetensors", lora_files.tensors_of(made, "lightning", alpha=8))
    assert call(["run", "--case", "square", "--out", str(tmp_path / "run"), "--lora", str(path)]) == 0
    assert "720 of 720 pairs bound, rank 64, alpha 8" in capsys.readouterr().err
