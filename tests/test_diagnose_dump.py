"""Dumped tensors are diagnosed from themselves: a few of one block are enough."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from mini import write_checkpoint
from stages import CASE, stage_of

from parity import model_folder
from parity.diagnosis.fault import catalogue
from parity.diagnosis.from_dump import diagnose
from parity.errors import UsageError

BLOCK = "block.01"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return model_folder.inspect(folder)


def _dump(folder, *stages, dtype="float32", changes=None):
    """Everything that the reference made in some stages, and the inputs."""
    config = model_folder.inspect(folder).configs
    dump = dict(CASE.inputs(config, dtype))
    for name in stages:
        stage = stage_of(folder, name, changes if name == BLOCK else None, dtype=dtype)
        dump |= stage.values.captured
    return dump


def _swap(values):
    place = values.place(f"{BLOCK}.img.modulated")
    return place.changed(modulate=lambda x, shift, scale: place.modulate(x, scale, shift)).recipe()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_clean_dump_is_clean(folder, model, dtype) -> None:
    dump = _dump(folder, "embed", "block.00", BLOCK, "head", dtype=dtype)

    found = diagnose(dump, model, catalogue())

    assert (found.causes, found.unexplained, found.would_decide) == ([], [], [])
    checkpoints = len(dump.keys() - set(CASE.inputs(model.configs, dtype)))
    assert found.notes[0].startswith(f"{checkpoints} of {len(dump)} tensors were judged")


def test_three_tensors_prove_what_happened_between_them(folder, model) -> None:
    names = [f"{BLOCK}.img.{kind}" for kind in ("normed", "mod", "modulated")]
    whole = _dump(folder, BLOCK, changes={names[-1]: _swap})

    found = diagnose({name: whole[name] for name in names}, model, catalogue())

    (cause,) = found.causes
    assert (cause.code, cause.confidence, cause.where) == ("modulation.order", "proven", [names[-1]])
    assert found.first["checkpoint"] == names[-1]
    assert set(found.would_decide) == {"block.00.img.out", "temb"}


def test_bfloat16_stored_as_float32_is_judged_as_what_it_is(folder, model) -> None:
    dump = {name: array.astype(np.float32) if array.dtype.kind not in "biu" else array
            for name, array in _dump(folder, BLOCK, dtype="bfloat16").items()}  # fmt: skip
    dump = {name: array for name, array in dump.items() if name.startswith(BLOCK)}

    found = diagnose(dump, model, catalogue())

    assert (found.causes, found.unexplained) == ([], [])


def test_tensors_without_their_parents_say_what_would_decide(folder, model) -> None:
    dump = {"block.01.img.ffn": _dump(folder, BLOCK)["block.01.img.ffn"]}

    with pytest.raises(UsageError, match=r"made of block\.01\.img\.modulated2"):
        diagnose(dump, model, catalogue())


def test_names_that_are_no_checkpoints_are_refused(model) -> None:
    with pytest.raises(UsageError, match="no tensor of it has the name"):
        diagnose({"layers.0.out": np.zeros((1, 2), np.float32)}, model, catalogue())


@pytest.mark.parametrize(
    ("change", "said"), [(lambda x: x[0], "lack a batch dimension"), (lambda x: x[None], "have a batch dimension")]
)
def test_a_batch_dimension_more_or_less_is_mended_and_said(folder, model, change, said) -> None:
    one = dataclasses.replace(CASE, text_tokens=(5,))
    stage = stage_of(folder, BLOCK, {f"{BLOCK}.img.modulated": _swap}, case=one)
    names = [f"{BLOCK}.img.{kind}" for kind in ("normed", "mod", "modulated")]

    found = diagnose({name: change(stage.values.captured[name]) for name in names}, model, catalogue())

    assert [cause.code for cause in found.causes] == ["modulation.order"]
    assert any(said in note for note in found.notes)
