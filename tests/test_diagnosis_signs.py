"""Signs without an experiment of the catalogue: a kernel that is wrong, other weights, and what is neither."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mini import write_checkpoint
from stages import stage_of

from mlx_impl.replay import MlxReplay
from parity.components.transformer import TransformerCase
from parity.diagnosis.inquiry import wrong_of
from parity.diagnosis.othermap import other_map
from parity.diagnosis.signs import signs

NAME = "block.00.img.v"
CASE = TransformerCase(name="one", seed=0, images=((128, 128),), text_tokens=(5,), timestep=0.9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"))


def _wrong(folder, change):
    stage = stage_of(folder, "block.00", {NAME: lambda values: change(values[NAME], values)}, case=CASE)
    return stage, next(one for one in wrong_of(stage, stage.local()) if one.name == NAME)


class Broken(MlxReplay):
    """MLX with a product that makes zeros of the rows from 32 on, if it has more than 40."""

    def run(self, calls):
        answers = super().run(calls)
        for call, answer in zip(calls, answers, strict=True):
            if call["op"] == "linear" and len(call["arrays"]["x"]) > 40:
                answer[32:] = 0
        return answers


def _rows_lost(x, _):
    return np.where(np.arange(x.shape[1])[:, None, None] < 32, x, 0)


def test_rows_that_are_lost_from_a_tile_on_speak_of_a_kernel(folder) -> None:
    _, wrong = _wrong(folder, _rows_lost)

    (cause,) = signs(wrong)

    assert (cause.code, cause.confidence) == ("backend.kernel", "likely")
    assert cause.details == ["right but for rows 32 to 63 of 64"]


def test_a_library_that_makes_the_product_wrong_again_is_named_with_its_boundary(folder) -> None:
    _, wrong = _wrong(folder, _rows_lost)

    cause = signs(wrong, backends=[Broken()])[0]

    assert cause.code == "backend.kernel"
    assert any("rows >= 41" in detail for detail in cause.details), cause.details


def test_a_library_that_is_right_is_not_accused_of_more_than_the_sign(folder) -> None:
    _, wrong = _wrong(folder, _rows_lost)

    (cause,) = signs(wrong, backends=[MlxReplay()])

    assert cause.confidence == "likely"


@pytest.mark.parametrize(
    "change",
    [
        lambda x, _: np.where(np.arange(x.shape[1])[:, None, None] == 7, 0, x),
        lambda x, _: x * 1.5,
        lambda x, _: np.where(np.arange(x.shape[2])[:, None] == 1, 0, x),
    ],
    ids=["a row", "all scaled", "a head"],
)
def test_other_differences_speak_of_no_kernel_and_of_no_weights(folder, change) -> None:
    _, wrong = _wrong(folder, change)

    assert signs(wrong) == []


def _other_layer(x, values):
    weight = np.random.default_rng(0).standard_normal((x[0, 0].size, x[0, 0].size)) / 8
    return (values["block.00.img.modulated"] @ weight.T).reshape(x.shape)


@pytest.mark.parametrize(("bend", "proven"), [(lambda y: y, True), (np.tanh, False)], ids=["linear", "bent"])
def test_other_weights_are_proven_by_states_drawn_at_random(folder, bend, proven) -> None:
    stage, wrong = _wrong(folder, lambda x, values: bend(_other_layer(x, values)))
    weight = np.random.default_rng(0).standard_normal((64, 64)) / 8

    def again(state):
        x = np.asarray(state["img"], np.float64)
        normed = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
        y = bend(normed @ weight.T)
        return {NAME: y.reshape(*y.shape[:2], 2, 32).astype(np.float32), "block.00.img.modulated": normed}

    stage.again = again

    assert other_map(wrong, stage) is proven
    (cause,) = signs(wrong, stage)
    assert (cause.code, cause.confidence) == ("weights.random", "proven" if proven else "possible")


def test_the_library_of_this_machine_is_the_one_that_is_asked() -> None:
    assert MlxReplay().version == mx.__version__
