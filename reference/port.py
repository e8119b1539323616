"""The reference as a port: diffusers and transformers, one component at a time."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from parity.layouts.lora import ADAPTED, Adapter
from reference import precision as precisions_
from reference.session import DTYPES, StagedSession


class ReferencePort:
    """diffusers on the best device of this machine.

    Args:
        device: a torch device; CUDA where there is one, else the CPU, when None.
    """

    name = "diffusers"

    def __init__(self, device: str | None = None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def open(
        self,
        weights: Path,
        *,
        dtype: str,
        hold: str | None = None,
        component: str = "transformer",
        adapters: Sequence[Adapter] = (),
    ) -> StagedSession:
        """See `parity.ports.Port.open`."""
        session = _session(component)
        # The components around the transformer know nothing of LoRA.
        loras = {"adapters": adapters} if adapters and component in ADAPTED else {}
        return session(Path(weights), self.device, DTYPES[dtype], DTYPES[hold or dtype], **loras)

    def precisions(self, dtype: str) -> tuple[str, ...]:
        """See `parity.ports.Port.precisions`."""
        return precisions_.modes(DTYPES[dtype], self.device)

    def environment(self) -> dict[str, Any]:
        """Versions, device, threads and matmul precision of this process."""
        cuda = self.device.type == "cuda"
        return {
            "torch": torch.__version__,
            "diffusers": version("diffusers"),
            "transformers": version("transformers"),
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "threads": torch.get_num_threads(),
            "tf32": bool(cuda and torch.backends.cuda.matmul.allow_tf32),
            "half_gemm": "native" if cuda else "float32 accumulation, rounded once",
        }


def _session(component: str) -> type[StagedSession]:
    """A component's session. Loaded when asked for: the text encoder takes seconds to import."""
    match component:
        case "transformer":
            from reference.transformer_port import TransformerSession

            return TransformerSession
        case "text":
            from reference.text_port import TextSession

            return TextSession
        case "vision":
            from reference.vision_port import VisionSession

            return VisionSession
        case "vae":
            from reference.vae_port import VaeSession

            return VaeSession
        case "scheduler":
            from reference.scheduler_port import SchedulerSession

            return SchedulerSession
        case "pipeline":
            from reference.pipeline_port import PipelineSession

            return PipelineSession
        case _:
            raise ValueError(f"no component {component!r}")
