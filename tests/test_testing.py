"""`assert_parity`: the three ways to say what is compared, and what it raises."""

from types import SimpleNamespace

import numpy as np
import pytest
from mini import write_checkpoint, write_suite

from parity.cli import call
from parity.errors import UsageError
from parity.ports import open_port
from parity.runfolder import read_run
from parity.testing import ParityAssertionError, assert_parity, observing

X = {"x": np.random.default_rng(0).standard_normal((4, 8))}


def double(state):
    return {"y": state["x"] * 2}


def almost(state):
    return {"y": state["x"] * np.asarray(2.01, state["x"].dtype)}


class Faulty:
    """The MLX port with one checkpoint changed."""

    name = "faulty"

    def __init__(self, checkpoint, change):
        self.port, self.checkpoint, self.change = open_port("mlx_impl"), checkpoint, change

    def open(self, weights, **options):
        session = self.port.open(weights, **options)
        run = session.run

        def changed(stage, state, want, **more):
            after, values = run(stage, state, want, **more)
            if self.checkpoint in values:
                value = self.change(values.pop(self.checkpoint))
                values |= {} if value is None else {self.checkpoint: value}
            return after, values

        session.run = changed
        return session

    def precisions(self, dtype):
        return self.port.precisions(dtype)

    def environment(self):
        return self.port.environment()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return {"weights": write_checkpoint(folder / "weights"), "suite": str(write_suite(folder))}


@pytest.fixture(scope="module")
def golden(tmp_path_factory, model):
    """A golden trace of the suite's case with all values kept, and the reference's own values."""
    out = tmp_path_factory.mktemp("golden") / "g"
    told = ["--weights", str(model["weights"]), "--out", str(out), "--keep", "*"]
    assert call(["trace", "record", model["suite"], *told]) == 0
    from parity.golden import read_golden

    read = read_golden(out)
    return out, {name: np.array(read.values(name)) for name in read.graph.expected}


def test_functions_at_parity_give_their_run():
    assert assert_parity(double, double, inputs=X)["verdict"] == "parity"


def test_functions_that_differ_fail():
    with pytest.raises(ParityAssertionError) as raised:
        assert_parity(almost, double, inputs=X, dtype="float32")
    assert str(raised.value).startswith("divergence at y (functions.float32.accumulated)\n")
    assert raised.value.run["verdict"] == "divergence"
    assert raised.value.page is None
    assert isinstance(raised.value, AssertionError)


def test_an_error_within_the_noise_of_the_dtype_is_none():
    near = {"y": np.float32(2.001)}
    assert_parity(lambda s: {"y": s["x"] * near["y"].astype(s["x"].dtype)}, double, inputs=X, dtype="bfloat16")
    with pytest.raises(ParityAssertionError):
        assert_parity(lambda s: {"y": s["x"] * near["y"].astype(s["x"].dtype)}, double, inputs=X, dtype="float32")


def test_incomplete_fails():
    with pytest.raises(ParityAssertionError, match="incomplete: 1 missing"):
        assert_parity(lambda s: {}, double, inputs=X)


def test_there_is_no_tolerance_to_give():
    with pytest.raises(TypeError):
        assert_parity(double, double, inputs=X, rtol=1e-3)


def test_ports_by_name(model):
    run = assert_parity("mlx_impl", "reference", case="one", dtype="float32", **model)
    assert run["verdict"] == "parity"
    assert {case["mode"] for case in run["cases"]} == {"isolated", "accumulated"}
    assert run["ports"]["candidate"] == "mlx_impl"


def test_a_port_as_an_object(model):
    run = assert_parity(open_port("mlx_impl"), open_port("reference"), detail="kinds", **model)
    assert run["verdict"] == "parity"
    assert run["ports"]["candidate"] == open_port("mlx_impl").name
    faulty = Faulty("block.01.img.attn", lambda x: x * np.float32(1.001))
    with pytest.raises(ParityAssertionError, match=r"divergence at block\.01\.img\.attn") as raised:
        assert_parity(faulty, **model)
    assert "block.01.img.attn" in str(raised.value)
    assert "  parent" in str(raised.value)
    with pytest.raises(ParityAssertionError, match=r"incomplete: \d missing"):
        assert_parity(Faulty("block.01.img.ffn", lambda x: None), **model)


def test_values_against_a_golden_trace(golden, tmp_path):
    folder, values = golden
    as_port = {name: x.astype(np.float32) if x.dtype == np.float64 else x for name, x in values.items()}
    assert assert_parity(as_port, folder)["verdict"] == "parity"
    wrong = as_port | {"block.01.img.attn": as_port["block.01.img.attn"] * np.float32(1.001)}
    with pytest.raises(ParityAssertionError, match=r"divergence at block\.01\.img\.attn") as raised:
        assert_parity(wrong, str(folder))
    assert "worst elements" in str(raised.value)
    del wrong["block.01.img.attn"], wrong["block.00.img.ffn"]
    with pytest.raises(ParityAssertionError, match="incomplete: 2 missing"):
        assert_parity(wrong, folder)
    np.savez(tmp_path / "dump.npz", **as_port)
    assert assert_parity(tmp_path / "dump.npz", folder)["verdict"] == "parity"
    assert assert_parity(str(tmp_path / "dump.npz"), folder)["verdict"] == "parity"


@pytest.mark.parametrize(
    ("sides", "options", "said"),
    [
        ((double, double), {}, "needs inputs"),
        ((double, double), {"inputs": X, "suite": "default"}, "takes no suite; it takes inputs"),
        (("mlx_impl", "reference"), {"inputs": X}, "of ports takes no inputs"),
        (("mlx_impl", "reference"), {"suite": "nope"}, "no suite 'nope'"),
        (("mlx_impl", "/no/where"), {}, "there is no such folder"),
        (("mlx_impl", "/no/where"), {"dtype": "float32"}, "of golden takes no dtype"),
        ((double, "reference"), {}, "assert_parity of function and str"),
        (({"y": X["x"]}, double), {}, "assert_parity of dict and function"),
        ((None, None), {}, "assert_parity of NoneType and NoneType"),
    ],
)
def test_what_is_no_comparison_is_one_line(sides, options, said):
    with pytest.raises(UsageError, match=said) as raised:
        assert_parity(*sides, **options)
    assert "\n" not in str(raised.value)


def test_an_observer_gets_every_run_and_its_page(tmp_path, model):
    told = []
    folders = iter([tmp_path / "a", tmp_path / "b", tmp_path / "c"])

    def folder():
        path = next(folders)
        path.mkdir()
        return path

    observer = SimpleNamespace(folder=folder, told=lambda run, page: told.append((run["verdict"], page)))
    with observing(observer):
        assert_parity(double, double, inputs=X)
        with pytest.raises(ParityAssertionError, match=f"page: {tmp_path}"):
            assert_parity(almost, double, inputs=X)
        assert_parity("mlx_impl", **model)
    assert_parity(double, double, inputs=X)
    assert told == [
        (v, tmp_path / d / "report.html") for v, d in (("parity", "a"), ("divergence", "b"), ("parity", "c"))
    ]
    for verdict, page in told:
        assert read_run(page.parent)["verdict"] == verdict
        assert page.read_text().startswith("<!doctype html>")
    assert (tmp_path / "c" / "trace").is_dir()
