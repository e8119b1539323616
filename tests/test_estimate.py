"""Estimates: what grows with what, refusals that say what would do, and a peak that was really reached."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from mini import CONFIG, write_checkpoint

from parity import estimate, memory, model_folder
from parity.cli import call
from parity.components.transformer import TransformerCase
from parity.errors import ResourceError
from parity.lockstep import Unit
from parity.names import qwen_image_transformer

BOTH = ("isolated", "accumulated")
RATES = estimate.Rates(float32=1e9, float64=5e8, read=1e9)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_folder.inspect(write_checkpoint(tmp_path_factory.mktemp("weights")))


def unit(size=64, dtype="bfloat16", modes=BOTH, draws=1, truth="float64", level="block"):
    case = TransformerCase(name="one", seed=0, images=((size, size),), text_tokens=(5,), timestep=0.5)
    return Unit(case, dtype, modes, qwen_image_transformer(CONFIG["num_layers"], level), draws, truth)


def of(model, one, rates=RATES):
    return estimate.estimate(one, model, "block", rates)


def test_passes_are_those_that_lockstep_makes(model):
    """Counted: the sessions' runs of one stage."""
    from parity.lockstep import Lockstep
    from parity.ports import open_port

    counts = dict.fromkeys(("truth", "reference", "candidate"), 0)

    class Counting(Lockstep):
        def _timed(self, session, side):
            timed = super()._timed(session, side)
            run = timed.run

            def counted(*args, **options):
                counts[side] += 1
                return run(*args, **options)

            timed.run = counted
            return timed

    one = unit(draws=2)
    lockstep = Counting(one, open_port("reference"), open_port("mlx_impl"), model.root)
    lockstep.run("embed", lockstep.start(one.case.inputs(model.configs, "bfloat16")))
    assert counts == of(model, one).passes


def test_time_and_memory_grow_with_what_they_grow_with(model):
    plain = of(model, unit())
    assert of(model, unit(draws=3)).seconds > plain.seconds
    assert of(model, unit(modes=("isolated",))).seconds < plain.seconds
    assert of(model, unit(truth="float32")).seconds < plain.seconds
    assert of(model, unit(truth="float32")).peak_bytes < plain.peak_bytes
    assert of(model, unit(size=512)).peak_bytes > plain.peak_bytes
    assert of(model, unit(size=512)).seconds > plain.seconds
    assert of(model, unit(), None).seconds is None
    with_original = estimate.estimate(unit(), model, "block", RATES, original=True)
    assert with_original.passes["original"] == 2
    assert with_original.seconds > plain.seconds


def test_arithmetic_is_two_operations_for_each_weight_a_token_meets(model):
    """The weights of the blocks' linear layers, counted from the files, without attention and modulation."""
    one = unit(size=256)
    tokens = {"img": 256, "txt": 5}
    text = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "txt_mlp")
    exact = 0
    for name, entry in model.checkpoints["transformer"].located.entries.items():
        if not name.startswith("transformer_blocks.") or len(entry.true_shape) < 2:
            continue
        rows = 1 if "_mod." in name else tokens["txt" if any(part in name for part in text) else "img"]
        exact += 2 * rows * math.prod(entry.true_shape)
    width = CONFIG["num_attention_heads"] * CONFIG["attention_head_dim"]
    exact += CONFIG["num_layers"] * 4 * (256 + 5) ** 2 * width
    work = one.case.work(model.configs, "block")
    assert exact < work.flops < 1.2 * exact  # the rest is input and output


def test_what_does_not_fit_is_refused_with_a_way_out(model):
    units = [(unit(size=1024), "block"), (unit(size=1024, dtype="float32"), "block")]
    whole = estimate.check_memory(units, model, 2, 1 << 50)
    small = estimate.check_memory([(replace(one, truth="float32"), level) for one, level in units], model, 1, 1 << 50)
    assert small < whole
    with pytest.raises(ResourceError, match=r"case one.*available; what would do: --truth float32 --jobs 1 needs"):
        estimate.check_memory(units, model, 2, small)
    with pytest.raises(ResourceError, match="no option would do: close other programs"):
        estimate.check_memory(units, model, 2, small - 1)


def test_the_command_refuses_before_it_computes(tmp_path, monkeypatch, capsys):
    folder = write_checkpoint(tmp_path / "weights")
    monkeypatch.setattr(memory, "available", lambda: 1 << 20)
    assert call(["run", "--weights", str(folder), "--case", "square", "--out", str(tmp_path / "out")]) == 4
    said = capsys.readouterr().err
    assert "not enough memory" in said
    assert "1.0 MiB available" in said
    assert not (tmp_path / "out").exists()


def test_the_peak_is_the_process_s_own():
    # Room that is only reserved, as threads and mapped files do, is no memory yet.
    script = (
        "import mmap; from parity import memory; y = mmap.mmap(-1, 1 << 30); a = memory.peak(); "
        "x = b'1' * (200 << 20); print(a, memory.peak())"
    )
    before, after = map(int, subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split())  # fmt: skip
    assert before < 100 << 20
    assert 190 << 20 < after - before < 260 << 20


def test_a_container_s_limit_counts(tmp_path, monkeypatch):
    for name, text in (
        ("memory.max", "1000000\n"),
        ("memory.current", "900000\n"),
        ("memory.stat", "inactive_file 50000\n"),
    ):
        (tmp_path / name).write_text(text)  # fmt: skip
    monkeypatch.setattr(memory, "_CGROUPS", ((tmp_path / "memory.max", tmp_path / "memory.current", "inactive_file"),))
    assert memory.available() == 150_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() > 1 << 20


def test_runs_record_their_peak_and_where_the_time_went(tmp_path):
    folder = write_checkpoint(tmp_path / "weights")
    arguments = ["--case", "square", "--dtype", "float32", "--weights", str(folder), "--out", str(tmp_path / "out")]
    assert call(["run", *arguments]) == 0
    found = json.loads((tmp_path / "out" / "parity.json").read_text())["resources"]
    assert found["peak_bytes"] > 100 << 20
    sides = {f"{side}.{what}" for side in ("truth", "reference", "candidate") for what in ("load", "run")}
    assert set(found["spent"]) == sides | {"stage"}
    assert 0 < sum(found["spent"][one] for one in sides) <= found["spent"]["stage"] + 0.1
