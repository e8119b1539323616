"""Faults of libraries and of the reference, which no change to a recipe shows: an operation replayed does."""

from __future__ import annotations

from parity.diagnosis.fault import known

known(
    "backend.kernel",
    title="a kernel of the library is wrong at certain shapes, dtypes, versions or devices",
    fix="upgrade the library, or compute this operation in pieces, in float32 or on another device",
    seen="mlx#3797, mlx#3631, mlx#2333, mlx#3979; `parity doctor` lists the known ones of this machine",
)
known(
    "backend.precision_mode",
    title="products of reduced precision on one side: TF32 or a reduced accumulator",
    fix="MLX_ENABLE_TF32=0, or torch.backends.cuda.matmul.allow_tf32 = False",
    seen="mlx#3860",
)
known(
    "reference.also_bad",
    title="the reference itself is as far from the truth",
    fix="judge in a dtype, on a device or with a version in which the reference is right",
    seen="diffusers#14824, ComfyUI#14837",
)
