"""Operations replayed: kernels that are broken on purpose are found with their boundary, right ones raise no alarm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_impl.replay import OPS, MlxReplay
from parity import known_bugs
from parity.diagnosis import referee
from parity.diagnosis import sweep as sweeping
from parity.diagnosis.backend import check, measure
from parity.diagnosis.elsewhere import Elsewhere
from parity.diagnosis.judge import ACCUMULATOR, LIMIT
from parity.diagnosis.reference_bad import also_bad
from parity.diagnosis.sweep import boundaries, sweep
from parity.errors import UsageError

MLX = MlxReplay()


class Library:
    """A library with two devices that computes in float32 and rounds once, and is wrong where `fault` says so."""

    package, version = "mlx", "0.32.4"

    def __init__(self, fault=lambda made, arrays, call: made, devices=("gpu", "cpu")):
        self.fault, self._devices = fault, devices
        self.calls = 0

    def devices(self):
        return self._devices

    def run(self, calls):
        return [self._one(call) for call in calls]

    def _one(self, call):
        self.calls += 1
        held = referee.DTYPES[call["dtype"]]
        arrays = referee.rounded(call["arrays"], held)
        made = referee.rounding_runs(call["op"], arrays, call["options"], held)[0]
        return self.fault(made, arrays, call)


def zeros_from(rows, inputs=None):
    """Zeros from so many rows on, on the GPU; only with so many inputs or fewer."""

    def fault(made, arrays, call):
        m, k = arrays["x"].shape
        bad = call["device"] == "gpu" and m >= rows and (inputs is None or k <= inputs)
        return np.zeros_like(made) if bad else made

    return fault


def given(op, rows=48, inputs=128, outputs=40, seed=0):
    """Inputs and options of an operation."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    if op in ("linear", "quantized_linear"):
        arrays = {"x": normal(rows, inputs), "weight": normal(outputs, inputs) / inputs**0.5, "bias": normal(outputs)}
        if op == "linear":
            return arrays, {}
        packed = mx.quantize(mx.array(arrays["weight"]), group_size=64, bits=4)
        names = ("weight", "scales", "biases")
        return arrays | dict(zip(names, map(np.array, packed), strict=True)), {"group_size": 64, "bits": 4}
    if op == "layer_norm":
        return {"x": 3 * normal(rows, inputs) + 1}, {"eps": 1e-6}
    if op == "rms_norm":
        return {"x": 3 * normal(rows, inputs), "weight": normal(inputs)}, {"eps": 1e-6}
    if op == "gelu":
        return {"x": 3 * normal(rows, inputs)}, {}
    if op == "conv":
        return {"x": normal(2, 9, 7, 16), "weight": normal(8, 3, 3, 16), "bias": normal(8)}, {"stride": 2, "padding": 1}
    q, k, v = (normal(2, 3, n, 64) for n in (rows, outputs, outputs))
    arrays = {"q": q, "k": k, "v": v}
    if op == "sdpa masked":
        arrays["mask"] = rng.random((2, 1, 1, outputs)) < 0.7
        arrays["mask"][..., 0] = True
    return arrays, {"scale": 0.125}


ALL = [*OPS, "sdpa masked"]


def test_every_operation_has_a_referee():
    assert set(OPS) == set(referee.OPS)


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_right_library_raises_no_alarm(op, seed):
    arrays, options = given(op, rows=37 + seed, seed=seed)
    library = Library()
    assert check(op.split()[0], arrays, [library], options=options) == []
    assert library.calls > 20


@pytest.mark.parametrize("op", ALL)
def test_mlx_itself_raises_no_alarm_on_the_cpu(op):
    """Its packed products in half precision do: they are added up in half precision there."""
    arrays, options = given(op, inputs=1024, seed=3)
    found = check(op.split()[0], arrays, [MLX], options=options)
    assert all(not one.failed for one in measure(op.split()[0], arrays, [MLX], options=options))
    if op != "quantized_linear":
        assert found == []
        return
    (one,) = found
    assert (one.code, one.evidence["mode"]) == ("backend.precision_mode", ACCUMULATOR)
    assert all("float32" in way for way in one.right)
    assert not any("float32" in way for way in one.wrong)


def test_a_kernel_that_is_wrong_from_some_size_on_is_told_from_a_wrong_port():
    arrays, options = given("quantized_linear", rows=48, inputs=64)
    library = Library(zeros_from(16, inputs=64))
    (one,) = check("quantized_linear", arrays, [library], options=options)
    assert (one.code, one.confidence) == ("backend.kernel", "proven")
    assert {"mlx 0.32.4 on cpu in float32, whole", "mlx 0.32.4 on gpu in bfloat16, rows"} <= set(one.right)
    assert set(one.wrong) == {
        f"mlx 0.32.4 on gpu in {d}, {c}" for d in referee.DTYPES for c in ("whole", "alone", "columns")
    }
    assert one.evidence["wrong_zeros"]
    assert one.evidence["wrong_rows"] == [0, 47]
    assert "on gpu" in one.sentence


def test_the_candidates_own_value_decides_whether_it_had_the_wrong_kernel():
    arrays, options = given("linear", rows=48)
    library = Library(zeros_from(16))
    right = referee.exact("linear", arrays, options)
    (had,) = check("linear", arrays, [library], value=np.zeros((1, 48, 40), np.float32))
    (had_not,) = check("linear", arrays, [library], value=right.astype(np.float32).reshape(1, 48, 40))
    assert (had.confidence, had.evidence["candidate_has_it"]) == ("proven", True)
    assert (had_not.confidence, had_not.evidence["candidate_has_it"]) == ("likely", False)


def test_a_known_bug_is_named():
    bugs = known_bugs.matching({"candidate": {"mlx": "0.32.4", "device": "NVIDIA H100 80GB HBM3"}})
    arrays, options = given("quantized_linear", inputs=64)
    (one,) = check("quantized_linear", arrays, [Library(zeros_from(16))], options=options, bugs=bugs)
    assert one.known == ("mlx-cuda-quantized-64-inputs",)
    arrays, options = given("quantized_linear", inputs=128)
    (other,) = check("quantized_linear", arrays, [Library(zeros_from(16))], options=options, bugs=bugs)
    assert other.known == ()


@pytest.mark.parametrize("what", ["dtype", "tile", "not finite", "alone"])
def test_the_ways_that_are_right_say_where_the_fault_is(what):
    def fault(made, arrays, call):
        made = made.copy()
        if what == "dtype" and call["dtype"] == "bfloat16":
            made[:] = made[::-1]
        elif what == "tile" and call["device"] == "gpu" and len(made) > 20:
            made[16:18, :1] += 5
        elif what == "not finite" and call["device"] == "gpu" and len(made) > 20:
            made[7] = np.nan
        elif what == "alone" and not call["alone"] and call["device"] == "gpu" and len(made) > 20:
            made *= 1.5
        return made

    arrays, _ = given("linear")
    (one,) = check("linear", arrays, [Library(fault)])
    assert one.code == "backend.kernel"
    ways = {"dtype": "in bfloat16", "tile": "on gpu", "not finite": "on gpu", "alone": "on gpu"}
    assert ways[what] in one.sentence.split("; right")[0]
    rows = {"tile": [16, 17], "not finite": [7, 7]}
    assert one.evidence.get("wrong_rows") == rows.get(what, one.evidence.get("wrong_rows"))
    if what == "alone":
        assert not any(way.endswith("alone") for way in one.wrong)


@pytest.mark.parametrize(("op", "truncate"), [("linear", True), ("linear", False), ("conv", False), ("sdpa", False)])
def test_a_shorter_mantissa_is_a_precision_mode_and_no_broken_kernel(op, truncate):
    arrays, options = given(op, inputs=512)

    def tf32(made, a, call):
        if call["dtype"] != "float32" or call["device"] != "gpu":
            return made
        return referee.exact(op, a, options, referee.shorter(10, truncate)).astype(np.float32)

    (one,) = check(op, arrays, [Library(tf32)], options=options)
    assert (one.code, one.evidence["mode"]) == ("backend.precision_mode", "TF32 (factors of 10 bits)")
    assert one.evidence["excess"] > LIMIT


def test_noise_that_is_no_rounding_of_inputs_is_a_reduced_accumulator_unless_it_lies_unevenly():
    rng = np.random.default_rng(0)

    def even(made, arrays, call):
        noise = rng.standard_normal(made.shape).astype(np.float32) * 1e-3
        return made + noise if call["dtype"] == "float32" and call["device"] == "gpu" else made

    def uneven(made, arrays, call):
        found = even(made, arrays, call)
        found[5:6] += 0.1 if found is not made else 0
        return found

    arrays, _ = given("linear")
    assert [one.evidence.get("mode") for one in check("linear", arrays, [Library(even)])] == [ACCUMULATOR]
    whole = [one for one in check("linear", arrays, [Library(uneven)]) if any("whole" in way for way in one.wrong)]
    assert [one.code for one in whole] == ["backend.kernel"]


def test_where_all_ways_are_wrong_alike_the_operation_is_another_one():
    """A port with another epsilon, say, described as this one: nothing speaks against the library."""
    arrays, options = given("layer_norm")
    assert check("layer_norm", arrays, [Library(lambda made, *_: made * 1.1)], options=options) == []


def test_values_beyond_half_precision_are_not_held_against_it():
    arrays, _ = given("linear")
    arrays["x"] = arrays["x"] * 1e6
    measured = measure("linear", arrays, [Library()])
    assert {one.way.dtype for one in measured} == {"float32", "bfloat16"}


def test_a_library_that_refuses_is_heard_and_not_called_wrong():
    def refuse(made, arrays, call):
        return "ValueError: not on this device" if call["device"] == "gpu" else made

    arrays, _ = given("linear")
    assert check("linear", arrays, [Library(refuse)]) == []
    failed = {one.way.device for one in measure("linear", arrays, [Library(refuse)]) if one.failed}
    assert failed == {"gpu"}


def test_rows_that_attend_to_nothing_are_not_judged():
    arrays, options = given("sdpa masked")
    arrays["mask"][1] = False
    assert check("sdpa", arrays, [MLX], options=options) == []


def test_of_many_rows_some_are_looked_at_and_a_broken_block_is_still_found():
    def block(made, arrays, call):
        made = made.copy()
        if call["device"] == "gpu" and len(made) > 2000:
            made[1024:1088] = 0
        return made

    arrays, _ = given("linear", rows=3000, inputs=32, outputs=8)
    (one,) = check("linear", arrays, [Library(block)], dtypes=("float32",))
    assert 1024 <= one.evidence["wrong_rows"][0] <= one.evidence["wrong_rows"][1] < 1088
    assert check("linear", arrays, [Library()], dtypes=("float32",)) == []


@pytest.mark.parametrize("boundary", [1, 2, 3, 16, 100, 1365, 1366, 4096])
def test_a_boundary_is_found_to_the_element(boundary):
    arrays, _ = given("linear", inputs=32, outputs=4)
    library = Library(zeros_from(boundary))
    found = sweep("linear", arrays, library, vary="rows", device="gpu", dtype="float32")
    assert found.wrong == [(boundary, None)]
    assert sweep("linear", arrays, library, vary="rows", device="cpu", dtype="float32").wrong == []
    assert library.calls < 120


def test_a_boundary_is_said_in_words():
    arrays, options = given("quantized_linear", rows=48, inputs=64, outputs=24)
    ends = {"device": "gpu", "dtype": "bfloat16", "options": options}
    found = boundaries("quantized_linear", arrays, Library(zeros_from(16, inputs=64)), **ends)
    assert [one.sentence for one in found] == [
        "wrong for rows >= 16 at inputs = 64, outputs = 24",
        "wrong for inputs <= 64 at rows = 48, outputs = 24",
    ]
    right = sweep("quantized_linear", arrays, Library(), vary="rows", **ends)
    assert right.sentence == "right for rows from 1 to 4096 at inputs = 64, outputs = 24"
    assert boundaries("quantized_linear", arrays, Library(), **ends) == []


@pytest.mark.parametrize(
    ("wrong", "ranges", "multiple"),
    [
        (lambda n: 100 <= n <= 1000, [(100, 1000)], 0),
        (lambda n: n == 64, [(64, 64)], 0),
        (lambda n: n > 300 and n % 64, [(301, None)], 64),
        (lambda n: n % 2, [(1, None)], 2),
        (lambda n: True, [(1, None)], 0),
    ],
)
def test_ranges_and_multiples_are_found(wrong, ranges, multiple):
    def fault(made, arrays, call):
        return -made if wrong(arrays["x"].shape[0]) else made

    arrays, _ = given("linear", inputs=32, outputs=4)
    found = sweep("linear", arrays, Library(fault), vary="rows", device="gpu", dtype="float32")
    assert (found.wrong, found.multiple) == (ranges, multiple)


def test_keys_of_attention_and_widths_of_norms_can_be_varied():
    arrays, options = given("sdpa masked")
    bad = Library(lambda made, a, call: made * 2 if a["k"].shape[2] > 500 else made)
    found = sweep("sdpa", arrays, bad, vary="keys", device="gpu", dtype="float32", options=options, largest=1024)
    assert found.wrong == [(501, None)]
    arrays, options = given("rms_norm")
    bad = Library(lambda made, a, call: made * 2 if a["x"].shape[1] >= 333 else made)
    found = sweep("rms_norm", arrays, bad, vary="inputs", device="gpu", dtype="float32", options=options)
    assert found.wrong == [(333, None)]
    with pytest.raises(ValueError, match="no size 'keys'"):
        sweep("rms_norm", arrays, bad, vary="keys", device="gpu", dtype="float32", options=options)


def test_no_probe_is_larger_than_what_is_allowed(monkeypatch):
    monkeypatch.setattr(sweeping, "PROBE_ELEMENTS", 1000)
    arrays, _ = given("linear", rows=8, inputs=32, outputs=4)
    found = sweep("linear", arrays, Library(), vary="rows", device="gpu", dtype="float32")
    assert max(found.probes) * 32 <= 1000


def test_mlx_is_swept_without_alarm():
    arrays, options = given("quantized_linear", rows=16, inputs=64, outputs=16)
    for vary in ("rows", "inputs", "outputs"):
        ends = {"device": "cpu", "dtype": "float32", "options": options, "largest": 512}
        assert sweep("quantized_linear", arrays, MLX, vary=vary, **ends).wrong == []


@pytest.mark.parametrize("op", ["quantized_linear", "sdpa masked"])
def test_another_interpreter_answers_the_same(op):
    arrays, options = given(op)
    other = Elsewhere(Path(sys.executable))
    assert (other.package, other.version, other.devices()) == ("mlx", mx.__version__, MLX.devices())
    calls = [
        {"op": op.split()[0], "arrays": arrays, "options": options, "device": "cpu", "dtype": dtype, "alone": False}
        for dtype in ("float32", "bfloat16", "no dtype")
    ]
    here, there = MLX.run(calls), other.run(calls)
    for a, b in zip(here[:2], there[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert isinstance(here[2], str)
    assert there[2] == here[2]


def test_a_version_that_is_wrong_beside_one_that_is_right(tmp_path):
    """GIVEN another interpreter that doubles from 16 rows on, THEN its library is at fault and not this one."""
    script = tmp_path / "replay.py"
    source = Path(Elsewhere.__init__.__globals__["SCRIPT"]).read_text()
    broken = source.replace("version = mx.__version__", 'version = "0.0.1"').replace(
        "            return np.array(made)",
        "            return np.array(made) * (2 if call['arrays']['x'].shape[0] >= 16 else 1)",
    )
    assert broken != source
    script.write_text(broken)
    arrays, _ = given("linear")
    (one,) = check("linear", arrays, [MLX, Elsewhere(Path(sys.executable), script)], dtypes=("float32",))
    assert one.sentence.startswith("mlx 0.0.1: linear of 48 rows, 128 inputs, 40 outputs is wrong")
    assert all("rows" in way for way in one.right)


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("/nowhere/python", "cannot be run: No such file"),
        ("/bin/false", "cannot replay: exit code 1"),
        ("/bin/true", "cannot replay"),
    ],
)
def test_an_interpreter_that_cannot_replay_is_an_error_of_one_line(python, said):
    with pytest.raises(UsageError, match=said) as error:
        Elsewhere(Path(python))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"--python {python}: ")


def test_without_mlx_there_it_is_said(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    python.chmod(0o755)
    with pytest.raises(UsageError, match="No module named 'mlx'"):
        Elsewhere(python)


def test_the_file_for_another_interpreter_imports_nothing_of_this_project():
    code = f"import runpy, sys; runpy.run_path({str(Elsewhere.__init__.__globals__['SCRIPT'])!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", timeout=60)
    assert done.returncode == 0, done.stderr
    assert not {"parity", "mlx_impl", "ml_dtypes"} & {name.partition(".")[0] for name in done.stdout.split()}


def row(**changes):
    figures = {"nan": 0, "inf": 0}
    return {
        "name": "block.00.img.ffn", "status": "measured", "precision": 0.5, "rel_rmse": 0.6,
        "reference": dict(figures), "candidate": dict(figures),
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "both are far from the truth"),
        ({"rel_rmse": 3.0}, None),
        ({"rel_rmse": 0.01}, None),
        ({"precision": 0.01, "rel_rmse": 0.01}, None),
        ({"precision": None}, None),
        ({"rel_rmse": None}, None),
        ({"status": "missing", "reference": None, "candidate": None}, None),
        (
            {"reference": {"nan": 0, "inf": 3}, "candidate": {"nan": 2, "inf": 0}},
            "both have values that are not finite",
        ),
        ({"reference": {"nan": 0, "inf": 3}}, None),
        ({"candidate": {"nan": 0, "inf": 3}}, None),
    ],
)
def test_the_reference_is_also_bad_where_both_are(changes, reason):
    found = also_bad([row(**changes)])
    assert [one.reason for one in found] == ([reason] if reason else [])
