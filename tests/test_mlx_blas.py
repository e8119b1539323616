"""Which BLAS is put under MLX. A process can do it once, so each case is a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

linux = pytest.mark.skipif(sys.platform != "linux", reason="MLX uses Accelerate elsewhere")

SHOW = "import mlx_impl; b = mlx_impl.installed(); print(b.kind, b.path, b.note, sep='|')"
SPEED = """
import time, mlx_impl, mlx.core as mx
a = mx.ones((700, 700)); mx.eval(a @ a)
best = 9.0
for _ in range(3):
    start = time.perf_counter(); mx.eval(a @ a); best = min(best, time.perf_counter() - start)
print(2 * 700**3 / best / 1e9)
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {key: value for key, value in os.environ.items() if key not in ("PARITY_BLAS", "MLX_ENABLE_TF32")}
    return subprocess.run([sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True)


def shown(**environment: str) -> list[str]:
    result = python(SHOW, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().split("|")


@linux
def test_none_leaves_what_mlx_came_with():
    assert shown(PARITY_BLAS="none")[:2] == ["none", "None"]


@linux
def test_auto_finds_an_optimised_one_and_it_is_used():
    kind, path, _ = shown()
    if kind == "none":
        pytest.skip("neither OpenBLAS nor the mkl wheel is installed")
    assert os.path.exists(path)
    fast, slow = (float(python(SPEED, PARITY_BLAS=wanted).stdout) for wanted in ("auto", "none"))
    assert fast > 3 * slow


@linux
def test_a_path_is_taken_as_it_is():
    kind, path, _ = shown()
    if kind == "none":
        pytest.skip("neither OpenBLAS nor the mkl wheel is installed")
    assert shown(PARITY_BLAS=path)[:2] == ["other", path]


@linux
@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ("fastest", "ValueError: PARITY_BLAS=fastest: expected one of"),
        ("/nowhere/libblas.so", "OSError: PARITY_BLAS=/nowhere/libblas.so"),
        ("/lib/x86_64-linux-gnu/libc.so.6", "OSError: PARITY_BLAS=/lib/x86_64-linux-gnu/libc.so.6"),
    ],
)
def test_what_is_not_there_is_an_error_of_one_line(wanted, error):
    result = python(SHOW, PARITY_BLAS=wanted)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith(error)


@linux
def test_too_late_is_said():
    result = python("import mlx.core; " + SHOW)
    assert result.stdout.startswith("none|None|mlx.core was imported before")


@linux
def test_a_second_copy_sees_the_first_ones_library():
    if shown()[0] == "none":
        pytest.skip("neither OpenBLAS nor the mkl wheel is installed")
    result = python("import mlx_impl; b = mlx_impl.blas.install('auto'); print(b.kind, b.path)")
    assert result.stdout.split() == shown()[:2]


@pytest.mark.parametrize(("given", "seen"), [({}, "0"), ({"MLX_ENABLE_TF32": "1"}, "1")])
def test_tf32_is_off_unless_asked_for(given, seen):
    result = python("import mlx_impl, os; print(os.environ['MLX_ENABLE_TF32'])", **given)
    assert result.stdout.strip() == seen
