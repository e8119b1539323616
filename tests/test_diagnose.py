"""``parity diagnose`` as a user meets it: a run, a dump, pictures, mistakes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from mini import write_checkpoint, write_suite
from PIL import Image
from skimage import data
from stages import stage_of

import mlx_impl
from parity.cli import call

RIGHT = "ops.modulate(normed, by.shift, by.scale)"
WRONG = "ops.modulate(normed, by.scale, by.shift)"


def _port(folder: Path, name: str, old: str = "", new: str = "") -> str:
    """A copy of the MLX port with one line of its layers changed."""
    package = folder / name
    shutil.copytree(Path(mlx_impl.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    source = (package / "layers.py").read_text()
    assert source.count(old) == 1 or not old
    (package / "layers.py").write_text(source.replace(old, new) if old else source)
    return name


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, model):
    """Run folders by the port they are of."""
    work = tmp_path_factory.mktemp("runs")
    sys.path.insert(0, str(work))
    suite = str(write_suite(work))
    ports = {
        "swapped_port": (RIGHT, WRONG), "right_port": ("", ""),
        # A gate in the place of the shift, and another activation: one fault of the catalogue, one of none.
        "odd_port": (RIGHT, "ops.modulate(normed, by.shift, by.scale) + 0.1 * mx.sin(normed * by.gate)"),
    }  # fmt: skip
    for name, (old, new) in ports.items():
        _port(work, name, old, new)
        out = str(work / f"run_{name}")
        call(["run", suite, "--weights", str(model), "--candidate", name, "--out", out, "--jobs", "1"])
    yield {name: work / f"run_{name}" for name in ports}
    sys.path.remove(str(work))


def _diagnose(capsys, *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    code = call(["diagnose", *map(str, arguments)])
    return code, capsys.readouterr().out


def test_swapped_shift_and_scale_are_proven_with_the_line_to_change(runs, capsys) -> None:
    code, out = _diagnose(capsys, runs["swapped_port"])

    assert code == 1
    assert "modulation.order  proven" in out
    assert "shift1, scale1, gate1, shift2, scale2, gate2 = split(mod, 6, axis=-1)" in " ".join(out.split())
    assert "This port is the reference with modulation.order at block.00.img.modulated" in " ".join(out.split())


def test_the_json_form_says_the_same_and_lies_in_the_run_folder(runs, capsys) -> None:
    _, out = _diagnose(capsys, runs["swapped_port"], "--format", "json")
    found = json.loads(out)

    (cause,) = found["causes"]
    assert (cause["code"], cause["confidence"], cause["source"]) == ("modulation.order", "proven", "the guide")
    assert cause["where"] == [
        f"block.{b:02d}.{s}.modulated{h}" for b in (0, 1) for h in ("", "2") for s in ("img", "txt")
    ]
    assert found["explained"]
    assert found["first_divergence"]["checkpoint"] == "block.00.img.modulated"
    saved = json.loads((runs["swapped_port"] / "diagnosis.json").read_text())
    assert {key: saved[key] for key in found if key != "seconds"} == {k: v for k, v in found.items() if k != "seconds"}
    assert "modulation.order" in (runs["swapped_port"] / "report.html").read_text()


def test_markdown_for_a_step_summary(runs, capsys) -> None:
    _, out = _diagnose(capsys, runs["swapped_port"], "--format", "md")

    assert "### `modulation.order` (proven)" in out


def test_a_right_port_has_nothing_to_explain(runs, capsys) -> None:
    code, out = _diagnose(capsys, runs["right_port"])

    assert code == 0
    assert "Nothing is wrong" in out


def test_a_fault_of_no_catalogue_is_called_unexplained(runs, capsys) -> None:
    code, out = _diagnose(capsys, runs["odd_port"], "--format", "json")
    found = json.loads(out)

    assert code == 1
    assert not found["explained"]
    assert found["causes"] == []
    assert {one["where"] for one in found["unexplained"]} >= {"block.00.img.modulated", "block.01.txt.modulated2"}


def test_a_dump_of_three_tensors_is_enough(model, tmp_path, capsys) -> None:
    from safetensors.numpy import save_file

    name = "block.01.img.modulated"

    def swapped(values):
        place = values.place(name)
        return place.changed(modulate=lambda x, shift, scale: place.modulate(x, scale, shift)).recipe()

    captured = stage_of(model, "block.01", {name: swapped}).values.captured
    file = tmp_path / "dump.safetensors"
    save_file({key: captured[key] for key in (name, "block.01.img.normed", "block.01.img.mod")}, file)

    code, out = _diagnose(capsys, file, "--weights", model)

    assert code == 1
    assert "modulation.order  proven" in out


@pytest.fixture
def picture(tmp_path):
    good = data.astronaut()[:256, :384]
    broken = np.ascontiguousarray(good.transpose(2, 0, 1)).reshape(good.shape)
    Image.fromarray(good).save(tmp_path / "good.png")
    Image.fromarray(broken).save(tmp_path / "broken.png")
    return tmp_path


def test_planes_read_as_pixels_are_named_from_the_picture_alone(picture, capsys) -> None:
    code, out = _diagnose(capsys, picture / "broken.png")

    assert code == 1
    assert "layout.chw_hwc  likely" in out


def test_with_the_picture_as_it_should_be_they_are_proven_and_shown(picture, capsys) -> None:
    arguments = ("--reference", picture / "good.png", "--out", picture / "found")
    code, out = _diagnose(capsys, picture / "broken.png", *arguments)

    assert code == 1
    assert "layout.chw_hwc  proven" in out
    assert list((picture / "found").glob("*.png"))


def test_a_sound_picture_is_left_alone(picture, capsys) -> None:
    assert _diagnose(capsys, picture / "good.png")[0] == 0


def test_the_catalogue_is_listed_with_titles(capsys) -> None:
    code, out = _diagnose(capsys, "--list")

    assert code == 0
    for code in ("modulation.order", "rope.pairing", "picture.noise"):
        assert out.count(f"{code} ") == 1, code


def test_the_catalogue_has_every_code_once_in_json(capsys) -> None:
    codes = [one["code"] for one in json.loads(_diagnose(capsys, "--list", "--format", "json")[1])]

    assert codes == sorted(set(codes))
    assert {"modulation.order", "picture.noise", "layout.chw_hwc", "backend.kernel"} <= set(codes)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to diagnose"),
        (["nowhere"], "there is no such file or folder"),
        (["{empty}"], "empty"),
        (["{old}"], "run it again"),
    ],
)
def test_mistakes_are_one_line(arguments, said, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "parity.json").write_text(json.dumps({"schema": 2, "cases": [], "verdict": "parity"}))
    places = {"empty": tmp_path / "empty", "old": tmp_path / "old"}

    code = call(["diagnose", *(one.format(**places) for one in arguments)])

    err = " ".join(capsys.readouterr().err.split())
    assert code == 2
    assert "error:" in err
    assert said in err or "no trace" in err
    assert "Traceback" not in err


def test_a_reference_that_is_not_finite_itself_is_said_to_be(model, tmp_path, capsys) -> None:
    suite = str(write_suite(tmp_path))
    out = tmp_path / "run"
    call(["run", suite, "--weights", str(model), "--out", str(out), "--jobs", "1"])
    run = json.loads((out / "parity.json").read_text())
    for row in run["cases"][0]["checkpoints"]:
        if row["name"] == "final":
            row["reference"]["inf"] = row["candidate"]["inf"] = 3
    (out / "parity.json").write_text(json.dumps(run))

    code, text = _diagnose(capsys, out, "--format", "json")

    (cause,) = json.loads(text)["causes"]
    assert code == 1
    assert (cause["code"], cause["where"]) == ("reference.also_bad", ["final"])


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"images": [[1 << 20, 1 << 20]]}, "expected at most"),
        ({"text_tokens": [10**9]}, "expected at most"),
        ({"images": "x"}, "cannot be made again"),
        ({"nonsense": 1}, "cannot be made again"),
    ],
    ids=["large pictures", "long prompts", "another type", "a strange key"],
)
def test_a_hostile_run_folder_is_one_line(runs, tmp_path, capsys, request_, said) -> None:
    run = json.loads((runs["right_port"] / "parity.json").read_text())
    for row in run["cases"]:
        row["request"] |= request_
    (tmp_path / "parity.json").write_text(json.dumps(run))

    code = call(["diagnose", str(tmp_path)])

    err = " ".join(capsys.readouterr().err.split())
    assert code == 2
    assert said in err
