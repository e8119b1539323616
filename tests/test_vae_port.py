"""The two VAE sessions side by side: every checkpoint within three floors, and a broken port that is not."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_impl import vae_layers
from mlx_impl.port import MlxPort
from parity.components import build_graph
from parity.components.vae import VaeCase
from parity.lockstep import Lockstep, Unit
from parity.verdict import judge
from reference import synthetic_vae
from reference.port import ReferencePort
from reference.weights import Shards

CASES = {
    "square": VaeCase(name="square", image=(48, 48), seed=0),
    "landscape": VaeCase(name="landscape", image=(32, 56), seed=1),
    "batch": VaeCase(name="batch", image=(32, 24), batch=2, seed=2),
    "latents": VaeCase(name="latents", image=(40, 48), seed=3, start="latents"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    synthetic_vae.write(path, base_dim=16, seed=0)
    return path


def compared(folder, case, dtype, modes=("isolated",)):
    """Judged rows of each mode, and the last chains."""
    config = Shards(folder, "vae").config
    graph = build_graph(case.graph({"vae": config}, "full"))
    lockstep = Lockstep(Unit(case, dtype, modes, graph, draws=3), ReferencePort("cpu"), MlxPort(), folder)
    chains = lockstep.start(case.inputs({"vae": config}, dtype))
    rows = {mode: [] for mode in modes}
    for stage in lockstep.stages:
        chains, result = lockstep.run(stage, chains)
        for mode in modes:
            rows[mode] += result.rows[mode]
    return {mode: judge(found, graph, isolated=mode == "isolated") for mode, found in rows.items()}, chains


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_every_checkpoint_matches_in_isolation(folder, name, dtype):
    judged, _ = compared(folder, CASES[name], dtype)
    others = {row["name"]: row for row in judged["isolated"] if row["verdict"] != "match"}
    assert others == {}
    assert max(row["excess"] for row in judged["isolated"]) <= 3


def test_pictures_are_equal_to_a_step_of_8_bits(folder):
    """float32, each side feeding itself."""
    judged, chains = compared(folder, CASES["landscape"], "float32", ("isolated", "accumulated"))
    assert {row["verdict"] for rows in judged.values() for row in rows} == {"match"}
    theirs, ours = (chains[side]["sample"] for side in ("reference", "candidate"))
    assert theirs.shape == ours.shape == (1, 3, 1, 32, 56)
    assert theirs.std() > 0.1
    assert np.abs(theirs - ours).max() < 1e-4 < 2 / 255


def oldest_slice(self, x):
    """A causal convolution that takes a picture for the oldest frame that its kernel sees, not for the newest."""
    return convolved(self, x) if x.shape[1] > 1 else convolved(self, x, newest=0)


def convolved(self, x, newest=-1):
    weight = self.weight[:, newest]
    padding = ((self.weight.shape[2] // 2,) * 2, (self.weight.shape[3] // 2,) * 2)
    return vae_layers.conv2d(x.flatten(0, 1), weight, self.bias, padding=padding).reshape(*x.shape[:-1], -1)


def test_a_wrong_slice_of_the_kernel_is_found_where_it_is(folder, monkeypatch):
    monkeypatch.setattr(vae_layers.CausalConv3d, "__call__", oldest_slice)
    judged, _ = compared(folder, CASES["latents"], "float32")
    sources = {row["name"] for row in judged["isolated"] if row["source"]}
    assert "vae.decode.conv_in" in sources
    assert "vae.decode.up.02.resnet.00.conv1" in sources
    matching = {row["name"] for row in judged["isolated"] if row["verdict"] == "match"}
    # Kernels of one pixel and plain convolutions are as before.
    assert {"vae.decode.latents", "vae.decode.post_quant_conv", "vae.decode.up.00.resnet.00.norm1"} <= matching


def test_stages_and_shapes_are_the_reference_s(folder):
    config = Shards(folder, "vae").config
    case = CASES["batch"]
    graph = build_graph(case.graph({"vae": config}, "full"))
    sessions = [
        port.open(folder, dtype="float32", component="vae") for port in (ReferencePort("cpu"), MlxPort())
    ]  # fmt: skip
    assert sessions[0].stages == sessions[1].stages == graph.stages
    states = [case.inputs({"vae": config}, "float32")] * 2
    for stage in graph.stages:
        found = []
        for side, session in enumerate(sessions):
            session.load(stage)
            states[side], values = session.run(stage, states[side], graph.names_of(stage))
            session.free(stage)
            found.append({name: (value.shape, value.dtype) for name, value in values.items()})
        assert found[0] == found[1]
        ours, theirs = ({key: array.shape for key, array in state.items()} for state in states)
        assert ours == theirs


def test_freed_stages_hold_no_weights(folder):
    session = MlxPort().open(folder, dtype="float32", component="vae")
    mx.clear_cache()
    before = mx.get_active_memory()
    session.load("vae.decode.up.00")
    loaded = mx.get_active_memory() - before
    session.free("vae.decode.up.00")
    assert loaded > 1e5
    assert mx.get_active_memory() - before < 0.05 * loaded
    with pytest.raises(ValueError, match="not loaded"):
        session.run("vae.decode.up.00", {"hidden": np.zeros((1, 64, 1, 4, 4), np.float32)}, ())
