"""The port protocol: how the toolkit sees one implementation of a model.

A port is opened on one component of a model in one dtype and gives a session. A session runs
**stages** (``embed``, ``block.00`` … ``head``), each a function from state to state, with its own
weights loaded and freed. State and checkpoints cross the border as numpy arrays (bfloat16 as
``ml_dtypes.bfloat16``), so the toolkit imports neither torch nor mlx.

State keys of the Qwen-Image transformer. Before ``embed``, the inputs of a case:
``latents`` B L C · ``prompt_embeds`` B S J · ``prompt_mask`` B S bool (optional) ·
``timestep`` B in 0…1 · ``img_shapes`` n 3 int (frames, height, width of each picture in
latent tokens, the same for the whole batch) · ``additional_t_cond`` B int (optional) ·
``controlnet.NN`` B L D (optional). Between stages: ``img`` B L D · ``txt`` B S D · ``temb``
B D (2B D with zero_cond_t) · ``rope.img`` L d/2 2 and ``rope.txt`` S d/2 2 (cos, sin) ·
``prompt_mask``, ``img_shapes`` and ``controlnet.NN`` passed on unchanged. After ``head``:
``sample`` B L C'.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from parity import outside
from parity.errors import MissingPackageError, ParityError, UsageError
from parity.layouts.lora import Adapter

State = dict[str, np.ndarray]

BUILTIN = {
    "reference": "reference.port:ReferencePort",
    "mlx_impl": "mlx_impl.port:MlxPort",
    "mflux": "mlx_impl.mflux_port:MfluxPort",
}
# What a port needs beyond this distribution's own dependencies. mflux pins another MLX and much that its models do
# not import, so it is installed without its dependencies.
INSTALL = {"mflux": 'pip install "mlx-parity[mflux]" && pip install --no-deps mflux==0.24.0'}


class Session(Protocol):
    """One component of a model, opened in one dtype."""

    stages: tuple[str, ...]

    def load(self, stage: str) -> None:
        """Bring the stage's weights into memory."""

    def free(self, stage: str) -> None:
        """Give the stage's weights back."""

    def run(
        self, stage: str, state: Mapping[str, np.ndarray], want: Collection[str], *, precision: str = "default"
    ) -> tuple[State, State]:
        """Run one loaded stage.

        Args:
            stage: one of `stages`.
            state: arrays by name; floating ones in the session's dtype, rotary tables in float32
                (float64 where the session computes in float64).
            want: names of the checkpoints to return; all others are not even copied.
            precision: one of the port's `precisions` of the session's dtype.

        Returns:
            the state for the next stage, and the checkpoints by full name.
        """


class Port(Protocol):
    """One implementation of a model."""

    name: str

    def open(
        self,
        weights: Path,
        *,
        dtype: str,
        hold: str | None = None,
        component: str = "transformer",
        adapters: Sequence[Adapter] = (),
    ) -> Session:
        """Open one component of a model's folder in the diffusers layout.

        Args:
            weights: the folder with ``model_index.json``; a transformer's own folder will do for it.
            dtype: ``float32``, ``bfloat16``, ``float16``; a reference also takes ``float64``.
            hold: dtype the weights are rounded to before they are widened to `dtype`
                (the truth of a bfloat16 run is float64 arithmetic on weights held in bfloat16).
            component: one of `parity.components.COMPONENTS`.
            adapters: LoRAs that the transformer wears, wherever it takes part. Handed over only where there
                are some, so that a port that knows nothing of them works without.

        Raises:
            ValueError: the port has no such component.
        """

    def precisions(self, dtype: str) -> tuple[str, ...]:
        """Legitimate precision modes of a dtype on this machine; ``default`` comes first."""

    def environment(self) -> dict[str, Any]:
        """Versions, device and everything else that changes its numbers."""


def open_port(spec: str | Port) -> Port:
    """Find a port by its short name or as ``package[.module][:attribute]``; one that is found already is given back.

    A package alone means ``package.port:MlxPort``, so that a copy of ``mlx_impl`` under another
    name is a port at once. Modules are looked for in the working directory as well. Nothing is
    imported before this call.

    Raises:
        MissingPackageError: the framework behind it is not installed.
        UsageError: there is no such module or attribute.
    """
    if not isinstance(spec, str):
        return spec
    # A port that lies beside the user's work, and is installed nowhere, is found as `python -m` would find it.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    target = BUILTIN.get(spec) or (spec if ":" in spec else f"{spec}.port:MlxPort")
    module_name, _, attribute = target.partition(":")
    if ":" in spec:
        _put_blas_in_place()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing and (module_name == missing or module_name.startswith(missing + ".")):
            raise UsageError(
                f"no port {spec!r}: module {missing!r} is not on the path; known: {', '.join(BUILTIN)}, "
                "or package.module:attribute"
            ) from None
        mend = f"install it by: {INSTALL[spec]}" if spec in INSTALL else "`parity doctor` names the command"
        raise MissingPackageError(
            f"port {spec!r} needs the package {missing!r}, which is not installed; {mend}"
        ) from error
    except Exception as error:
        if spec in BUILTIN:
            raise
        raise UsageError(f"port {spec!r}: importing {module_name} raised {outside.spell(error)}") from error
    if not hasattr(module, attribute):
        raise UsageError(f"module {module_name!r} has no {attribute!r}; a port is named package.module:attribute")
    try:
        return getattr(module, attribute)()
    except ParityError:
        raise
    except Exception as error:
        if spec in BUILTIN:
            raise
        raise UsageError(f"port {spec!r}: calling {attribute}() raised {outside.spell(error)}") from error


def _put_blas_in_place() -> None:
    """Before a module from outside loads MLX: with the BLAS that MLX's CPU wheel links, a port has up to three times
    the noise at long products, and takes thirty times as long; see ``mlx_impl/blas.py``.
    """
    with suppress(ModuleNotFoundError):
        importlib.import_module("mlx_impl.blas")


def spell(spec: str | Port) -> str:
    """How reports and plans name a port that was given by name or as an object."""
    return spec if isinstance(spec, str) else spec.name


def environment(port: Port) -> dict[str, Any]:
    """A port's environment as reports show it: file names for absolute paths, for they are sent to others."""
    found = {"port": port.name, **port.environment()}
    return {k: Path(v).name if isinstance(v, str) and Path(v).is_absolute() else v for k, v in found.items()}
