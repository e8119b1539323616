"""Synthetic checkpoints: the documented ranges, as the real loaders read them; and how they come to disk."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from parity.cli import call
from parity.commands import synth
from parity.errors import OutputExistsError, ParityError, ResourceError, UsageError
from parity.tap import Recorder, recording
from reference.calibration import (
    TARGETS,
    calibration_case,
    describe_case,
    measure,
    misses,
    plan_end,
    plan_rows,
    solve_gate,
    wanted,
)
from reference.port import ReferencePort
from reference.presets import FORMAT, PRESETS, Preset
from reference.synthetic_transformer import write
from reference.transformer import instrument
from reference.weights import INDEX

MINI = Preset("mini", 3, 4, 32, (4, 14, 14), 256, vae_base_dim=16, shard_bytes=1_000_000)


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    write(MINI, 0, folder)
    return folder


@pytest.fixture
def preset(monkeypatch, tmp_path):
    monkeypatch.setitem(PRESETS, "mini", MINI)
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    return MINI


def staged(folder, state, want, dtype="float32", hold=None):
    """Checkpoints of a stage-by-stage run; floating inputs are first rounded to `hold`."""
    session = ReferencePort("cpu").open(folder, dtype=dtype, hold=hold)
    rounded = {k: torch.from_numpy(v).to(getattr(torch, hold or dtype)).double().numpy() for k, v in state.items()}
    state = {k: rounded[k] if v.dtype == np.float32 else v for k, v in state.items()}
    found = {}
    for stage in session.stages:
        session.load(stage)
        state, values = session.run(stage, state, want)
        session.free(stage)
        found |= {name: value.astype(np.float64) for name, value in values.items()}
    return found


def ranges(folder, preset, **case):
    found = staged(folder, calibration_case(preset.config, **case), wanted(preset.num_layers))
    return measure(found, preset.num_layers)


def test_from_pretrained_reads_it_and_finds_the_documented_ranges(mini):
    model, info = QwenImageTransformer2DModel.from_pretrained(
        mini, subfolder="transformer", torch_dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    assert {key: model.config[key] for key in MINI.config} == MINI.config
    case = {k: torch.from_numpy(v) for k, v in calibration_case(MINI.config).items()}
    instrument(model)
    with torch.no_grad(), recording(Recorder(wanted(MINI.num_layers))) as recorder:
        model(
            hidden_states=case["latents"], encoder_hidden_states=case["prompt_embeds"], timestep=case["timestep"],
            img_shapes=[[tuple(shape) for shape in case["img_shapes"].tolist()]],
        )  # fmt: skip
    found = measure(recorder.values, MINI.num_layers)
    assert misses(found) == []
    stated = json.loads((mini / "transformer" / "parity-synthetic.json").read_text())
    assert stated["preset"] == "mini"
    assert stated["calibration"] == describe_case()
    for row, ends in stated["achieved"].items():
        assert found[row] == pytest.approx(ends, rel=1e-4), row


def test_a_broken_row_of_weights_is_missed(mini, tmp_path):
    """Twin: GIVEN one row of one layer a hundred times too large, THEN the check says so."""
    broken = tmp_path / "transformer"
    broken.mkdir()
    for file in (mini / "transformer").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    key = "transformer_blocks.0.img_mlp.net.2.weight"
    shard = broken / json.loads((broken / INDEX).read_text())["weight_map"][key]
    tensors = load_file(shard)
    tensors[key][7] *= 100
    save_file(tensors, shard, metadata={"format": "pt"})
    lines = misses(ranges(broken, MINI))
    assert any(line.startswith("block.00.img.ffn: expected -25250 … 25800, found") for line in lines), lines


@pytest.mark.parametrize("row", TARGETS)
@pytest.mark.parametrize("factor", [0.85, 1.15, -1])
def test_a_range_off_by_more_than_its_tolerance_is_missed(row, factor):
    exact = dict(TARGETS)
    assert misses(exact) == []
    low, high = exact[row]
    assert len(misses(exact | {row: (low * factor, high * factor)})) == 1
    assert misses({name: ends for name, ends in exact.items() if name != row}) == [f"{row}: not measured"]


def test_other_inputs_stay_near_the_documented_ranges(mini):
    for case in ({"seed": 5}, {"seed": 1, "height": 8, "width": 12, "timestep": 0.5, "batch": 2, "text_tokens": 19}):
        for row, ends in ranges(mini, MINI, **case).items():
            for got, aim in zip(ends, TARGETS[row], strict=True):
                assert 0.25 <= got / aim <= 1.5, (row, case)


def test_files_are_what_diffusers_writes(mini):
    folder = mini / "transformer"
    index = json.loads((folder / INDEX).read_text())
    shards = sorted(folder.glob("*.safetensors"))
    names = [f"diffusion_pytorch_model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    assert [file.name for file in shards] == names
    assert len(shards) >= 3
    total, found = 0, {}
    for file in shards:
        with safe_open(file, framework="pt") as shard:
            assert shard.metadata() == {"format": "pt"}
            for key in shard.keys():  # noqa: SIM118
                tensor = shard.get_tensor(key)
                assert tensor.dtype == torch.bfloat16
                assert tensor.isfinite().all()
                total += tensor.nbytes
                found[key] = (file.name, tuple(tensor.shape))
    with torch.device("meta"):
        expected = {k: tuple(v.shape) for k, v in QwenImageTransformer2DModel(**MINI.config).state_dict().items()}
    assert {key: shape for key, (_, shape) in found.items()} == expected
    assert index["weight_map"] == {key: name for key, (name, _) in found.items()}
    assert index["metadata"]["total_size"] == total == MINI.nbytes
    config = json.loads((folder / "config.json").read_text())
    assert config["_class_name"] == "QwenImageTransformer2DModel"
    assert "_diffusers_version" in config


def test_key_count_is_the_real_model_s():
    with torch.device("meta"):
        keys = QwenImageTransformer2DModel(**PRESETS["tiny"].config).state_dict()
    assert len(keys) == 60 * 32 + 13


def test_a_seed_makes_the_same_bytes(mini, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    for folder, seed in ((again, 0), (other, 1)):
        folder.mkdir()
        write(MINI, seed, folder)
    for file in (mini / "transformer").iterdir():
        assert (again / "transformer" / file.name).read_bytes() == file.read_bytes(), file.name
    shard = min(file.name for file in (mini / "transformer").glob("*.safetensors"))
    assert (other / "transformer" / shard).read_bytes() != (mini / "transformer" / shard).read_bytes()


def test_no_tensor_is_dead(mini):
    """Biases included: a port that forgets one must be noticed."""
    for file in (mini / "transformer").glob("*.safetensors"):
        for key, tensor in load_file(file).items():
            assert (tensor != 0).float().mean() > 0.99, key


def test_the_calibration_case_is_the_square_case_of_the_default_suite():
    from parity import suite

    (square,) = {planned.case for planned in suite.load("default").cases if planned.case.name == "square"}
    ours, theirs = calibration_case(MINI.config), square.inputs({"transformer": MINI.config}, "float32")
    assert ours.keys() == theirs.keys()
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key])
    stated = describe_case()
    assert stated["image_tokens"] == ours["latents"].shape[1]
    assert stated["text_tokens"] == ours["prompt_embeds"].shape[1]
    assert stated["img_shapes"] == ours["img_shapes"].tolist()


@pytest.mark.parametrize("change", [{"num_layers": 1}, {"heads": 2}, {"axes": (4, 14, 12)}])
def test_an_impossible_shape_is_refused(change):
    shape = {"num_layers": 3, "heads": 4, "head_dim": 32, "axes": (4, 14, 14), "joint_dim": 96}
    with pytest.raises(ValueError, match="preset 'odd' needs"):
        Preset("odd", **shape | change)


def test_plans_do_what_they_say():
    draw = torch.Generator().manual_seed(0)
    y = torch.randn(200, 6, generator=draw) * torch.tensor([1.0, 1, 1, 1, 1, 0.01]) + 2
    gain, bias = plan_rows(y, torch.full((6,), 3.0), torch.zeros(6), torch.inf)
    rms = (y * gain + bias).square().mean(0).sqrt()
    assert rms[:5] == pytest.approx([3.0] * 5, rel=0.1)
    gain, bias = plan_rows(y, torch.full((6,), 3.0), torch.ones(6), limit=4.0)
    assert (y * gain + bias).abs().max() <= 4.001
    for target in (50.0, -50.0):
        gain, bias = plan_end(y[:, 0], target)
        z = y[:, 0] * gain + bias
        assert (z.max() if target > 0 else z.min()) == pytest.approx(target)
    base, term = y[:, 0], y[:, 1] - 2
    assert (base + solve_gate(base, term, 40.0) * term).max() == pytest.approx(40, rel=1e-3)
    assert (base + solve_gate(base, term, -40.0) * term).min() == pytest.approx(-40, rel=1e-3)


def test_ensure_makes_once_and_finds_again(preset, monkeypatch):
    folder = synth.ensure("mini")
    assert (folder / "transformer" / "config.json").is_file()
    monkeypatch.setattr("reference.synthetic.write", lambda *_: pytest.fail("made twice"))
    assert synth.ensure("mini") == folder
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_ensure_keeps_the_first_of_two_at_once(preset, monkeypatch):
    """GIVEN another process that finishes while ours is at work, THEN its checkpoint is taken and ours is gone."""
    monkeypatch.setattr("reference.synthetic.write", rival_first := RivalFirst(write))
    folder = synth.ensure("mini")
    assert json.loads((folder / "transformer" / "parity-synthetic.json").read_text())["seed"] == 99
    assert rival_first.calls == 1
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


class RivalFirst:
    def __init__(self, real):
        self.real, self.calls = real, 0

    def __call__(self, preset, seed, folder, progress):
        self.calls += 1
        rival = folder.parent / f"mini-s{seed}-v{FORMAT}"
        rival.mkdir()
        self.real(preset, 99, rival)
        return self.real(preset, seed, folder, progress)


def test_existing_output_is_refused_and_force_replaces_only_checkpoints(preset, tmp_path):
    out = tmp_path / "out"
    synth.make(preset, 0, out)
    with pytest.raises(OutputExistsError, match="give --force"):
        synth.make(preset, 1, out)
    synth.make(preset, 1, out, force=True)
    assert json.loads((out / "transformer" / "parity-synthetic.json").read_text())["seed"] == 1
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "today.txt").write_text("dear")
    with pytest.raises(OutputExistsError, match="not a synthetic checkpoint"):
        synth.make(preset, 0, tmp_path / "diary", force=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["diary", "out"]


def test_a_full_disk_is_said_before_anything_is_written(preset, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    with pytest.raises(ResourceError, match=r"21 MB needed, 10 MB free"):
        synth.make(preset, 0, tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []


def test_nothing_half_made_remains(preset, monkeypatch, tmp_path):
    def interrupted(preset, seed, folder, progress):
        (folder / "transformer").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("reference.synthetic.write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synth.make(preset, 0, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_miss_the_ranges_are_not_kept(preset, monkeypatch, tmp_path):
    monkeypatch.setattr("reference.synthetic.write", lambda *_: dict(TARGETS) | {"final": (-9.0, 9.0)})
    with pytest.raises(ParityError, match="miss the documented ranges") as caught:
        synth.make(preset, 0, tmp_path / "out")
    assert caught.value.details == ("final: expected -4.5 … 4.5, found -9 … 9",)
    assert list(tmp_path.iterdir()) == []


def test_command_prints_the_table_and_the_folder_last(preset, capsys, tmp_path):
    assert call(["synth", "mini", "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert Path(lines[-1]) == tmp_path / "out"
    assert len(lines) == len(TARGETS) + 2
    assert max(map(len, lines[:-1])) <= 80
    assert call(["synth", "mini", "--out", str(tmp_path / "out")]) == 2
    assert call(["synth", "huge"]) == 2
    known = "tiny, tiny-edit, small, small-edit, wide, full, mini"
    with pytest.raises(UsageError, match=f"no synthetic preset 'huge'; there are: {known}"):
        synth.ensure("huge")


def test_tiny_has_the_ranges():
    folder = synth.ensure("tiny")
    assert len(list((folder / "transformer").glob("*.safetensors"))) >= 3
    assert misses(ranges(folder, PRESETS["tiny"])) == []


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 3e-6), ("bfloat16", 0.03)])
def test_tiny_is_not_chaotic(dtype, bound):
    """Rounding noise stays rounding noise through 60 blocks, each fed by the one before."""
    folder = synth.ensure("tiny")
    outs = [f"block.{i:02d}.img.out" for i in range(60)]
    case = calibration_case(PRESETS["tiny"].config)
    truth = staged(folder, case, outs, "float64", dtype)
    found = staged(folder, case, outs, dtype)
    for name in outs:
        error = np.sqrt(np.mean((found[name] - truth[name]) ** 2) / np.mean(truth[name] ** 2))
        assert 0 < error < bound, name
