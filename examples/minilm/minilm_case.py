"""The cases of a MiniLM sentence encoder, and its checkpoints: what is compared, and what each is computed from.

B sentences, N tokens with padding, D width.

State keys. Inputs of a case: ``sentence.NN`` UTF-8 bytes of one sentence. Between stages: ``ids`` B N, ``mask`` B N
bool, ``hidden`` B N D. At the end: ``sentence`` B D of length 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from parity.components.base import Case
from parity.listed import Listing


@dataclass(frozen=True, kw_only=True)
class MiniLMCase(Case):
    """Sentences that are encoded as one batch."""

    component: ClassVar[str] = "minilm"
    folders: ClassVar[tuple[str, ...]] = (".",)
    files: ClassVar[tuple[str, ...]] = ("config.json", "tokenizer.json", "tokenizer_config.json")

    sentences: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """What the page says of the inputs."""
        return {"batch": len(self.sentences), "prompts": list(self.sentences), "seed": self.seed}

    def inputs(self, configs: Any, dtype: str) -> dict[str, np.ndarray]:
        """Each sentence as its bytes: a state holds arrays, and tokens are checkpoints too."""
        return {f"sentence.{i:02d}": np.frombuffer(s.encode(), np.uint8) for i, s in enumerate(self.sentences)}

    def graph(self, configs: Any, level: str) -> dict[str, Any]:
        """Names in the order in which they are made, each behind what it is computed from."""
        graph = Listing()
        graph.stage("tokens")
        graph.add("ids", exact=True)
        graph.add("mask", exact=True)
        graph.stage("embed")
        graph.add("words", "ids")
        hidden = graph.add("embedded", "words", level="kinds")
        for i in range(configs["."]["num_hidden_layers"]):
            with graph.scope(f"layer.{i:02d}"):
                for name in ("q", "k", "v"):
                    graph.add(name, hidden, level="full")
                graph.add("attn", "q", "k", "v", "mask", level="kinds")
                graph.add("projected", "attn")
                graph.add("mid", "projected", hidden)
                graph.add("up", "mid", level="full")
                graph.add("gelu", "up", level="full")
                graph.add("ffn", "gelu", level="kinds")
                hidden = graph.add("out", "ffn", "mid")
        graph.stage("head")
        graph.add("pooled", hidden, "mask")
        graph.add("sentence", "pooled", level="kinds")
        return graph.listed(level)
