"""The bases that authors build their ports on: weights loaded, rounded, renamed and checked, taps from hooks."""

import subprocess
import sys

import ml_dtypes
import mlx.nn as mnn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from torch import nn

from mlx_impl.family import ModelPort as MlxBase
from parity.tap import tap
from reference import precision
from reference.family import ModelPort as TorchBase
from reference.family import tap_input, tap_output


class Pair(nn.Module):
    """Returns a tuple, as layers of transformers do, and has a buffer that no file holds."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("scale", torch.full((1,), 0.1), persistent=False)

    def forward(self, x):
        return self.fc(x * self.scale), None


class TorchPort(TorchBase):
    name = "pair"

    def build(self, folder, dtype):
        model = Pair()
        tap_input(model.fc, "scaled")
        tap_output(model, "out")
        return model

    def sanitize(self, weights):
        return {key.removeprefix("old."): x for key, x in weights.items()}

    def stages(self, model):
        return {"only": lambda state: {"x": model(state["x"])[0], "ids": state["ids"]}}


class MlxModel(mnn.Module):
    def __init__(self):
        super().__init__()
        self.fc = mnn.Linear(4, 4)

    def __call__(self, x):
        return tap("out", self.fc(tap("scaled", x * 0.1)))


class MlxPort(MlxBase):
    name = "pair-mlx"

    def build(self, folder):
        return MlxModel()

    def sanitize(self, weights):
        return {key.removeprefix("old."): x for key, x in weights.items()}

    def stages(self, model):
        return {"only": lambda state: {"x": model(state["x"]), "ids": state["ids"]}}


WEIGHTS = {
    "old.fc.weight": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32),
    "old.fc.bias": np.arange(4, dtype=np.float32) / 7,
}
STATE = {"x": np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32), "ids": np.arange(3)}


def weights(folder, **changes):
    save_file({key: x for key, x in (WEIGHTS | changes).items() if x is not None}, folder / "model.safetensors")
    return folder


def run(port, folder, dtype, hold=None, state=STATE):
    session = port.open(folder, dtype=dtype, hold=hold, component="pair")
    assert session.stages == ("only",)
    session.load("only")
    found = session.run("only", state, ("scaled", "out"))
    session.free("only")
    session.load("only")  # as isolated mode and accumulated mode of the next stage do
    return found


@pytest.mark.parametrize("port", [TorchPort(device="cpu"), MlxPort()])
def test_a_whole_model_is_a_session(tmp_path, port):
    after, values = run(port, weights(tmp_path), "float32")
    expected = STATE["x"] * np.float32(0.1) @ WEIGHTS["old.fc.weight"].T + WEIGHTS["old.fc.bias"]
    np.testing.assert_allclose(values["scaled"], STATE["x"] * np.float32(0.1), rtol=1e-6)
    np.testing.assert_allclose(values["out"], expected, rtol=1e-5)
    np.testing.assert_array_equal(after["x"], values["out"])
    assert after["ids"] is STATE["ids"]


def test_the_truth_holds_what_the_run_holds(tmp_path):
    state = {"x": STATE["x"].astype(np.float64), "ids": STATE["ids"]}
    _, values = run(TorchPort(device="cpu"), weights(tmp_path), "float64", "bfloat16", state)
    held = {key: x.astype(ml_dtypes.bfloat16).astype(np.float64) for key, x in WEIGHTS.items()}
    scale = float(ml_dtypes.bfloat16(0.1))  # a constant of the model is held as well
    expected = state["x"] * scale @ held["old.fc.weight"].T + held["old.fc.bias"]
    assert values["out"].dtype == np.float64
    np.testing.assert_allclose(values["out"], expected, rtol=1e-14)


@pytest.mark.parametrize("port", [TorchPort(device="cpu"), MlxPort()])
@pytest.mark.parametrize(
    "changes", [{"old.fc.bias": None}, {"more": np.zeros(1, np.float32)}, {"old.fc.bias": np.zeros(5, np.float32)}]
)
def test_weights_that_are_not_the_models_are_refused(tmp_path, port, changes):
    session = port.open(weights(tmp_path, **changes), dtype="float32")
    with pytest.raises((ValueError, RuntimeError), match=r"bias|more"):
        session.load("only")


@pytest.mark.parametrize("name", ["default", "math"])
def test_an_additive_mask_is_the_boolean_one(name):
    q, k, v = (torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(3))
    seen = torch.tensor([True, True, False, True, False])[None, None, None]
    added = torch.zeros(1, 1, 1, 5).masked_fill(~seen, torch.finfo(torch.bfloat16).min).bfloat16()
    with precision.mode(name, torch.bfloat16, torch.device("cpu")):
        expected, found = (F.scaled_dot_product_attention(q, k, v, attn_mask=mask) for mask in (seen, added))
        unmasked = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(expected, found)
    assert not torch.equal(expected, unmasked)


def test_a_port_that_loads_mlx_first_still_has_the_good_blas(tmp_path):
    (tmp_path / "eager.py").write_text(
        "import mlx.core\nfrom mlx_impl.blas import installed\n\n"
        "class Port:\n    name = 'eager'\n    def environment(self):\n        return {'note': installed().note}\n"
    )
    script = "from parity.ports import open_port, environment; print(environment(open_port('eager:Port'))['note'])"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "too late" not in done.stdout


def test_a_half_precision_session_stays_in_it(tmp_path):
    state = {"x": STATE["x"].astype(ml_dtypes.bfloat16), "ids": STATE["ids"]}
    for port in (TorchPort(device="cpu"), MlxPort()):
        after, values = run(port, weights(tmp_path), "bfloat16", state=state)
        assert after["x"].dtype == values["out"].dtype == ml_dtypes.bfloat16
