"""The reference: transformers' BertModel as it is, tapped by hooks and cut into stages; sentence-transformers' head.

B sentences, N tokens with padding, D width.
"""

from functools import partial
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from parity.tap import scope, tap
from reference.family import ModelPort, tap_input, tap_output


def instrument(model: BertModel) -> None:
    """Hooks on the modules of transformers; nothing of them is written again."""
    tap_output(model.embeddings.word_embeddings, "words")
    tap_output(model.embeddings, "embedded")
    for layer in model.encoder.layer:
        of_self, projection = layer.attention.self, layer.attention.output
        for name, module in (("q", of_self.query), ("k", of_self.key), ("v", of_self.value)):
            tap_output(module, name)
        tap_input(projection.dense, "attn")
        tap_output(projection.dense, "projected")
        tap_output(projection.LayerNorm, "mid")
        tap_output(layer.intermediate.dense, "up")
        tap_output(layer.intermediate, "gelu")
        tap_output(layer.output.dense, "ffn")
        tap_output(layer.output.LayerNorm, "out")


class Port(ModelPort):
    """The port: how the model is built, what of its weights it wants, and its stages."""

    name = "minilm-transformers"

    def build(self, folder: Path, dtype: torch.dtype) -> BertModel:
        """transformers' model without its pooler, which a sentence encoder does not use."""
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        model = BertModel(BertConfig.from_pretrained(folder, attn_implementation="sdpa"), add_pooling_layer=False)
        instrument(model)
        return model

    def sanitize(self, weights):
        """Without the pooler, and without positions, which are a buffer now."""
        return {key: x for key, x in weights.items() if not key.startswith("pooler.") and "position_ids" not in key}

    def stages(self, model):
        """From bytes to sentence embeddings."""

        def tokens(state):
            texts = [bytes(state[key].cpu().numpy()).decode() for key in sorted(state)]
            found = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.device)
            return {"ids": tap("ids", found["input_ids"]), "mask": tap("mask", found["attention_mask"].bool())}

        def layer(i, state):
            with scope(f"layer.{i:02d}"):
                hidden = model.encoder.layer[i](state["hidden"], state["mask"][:, None, None])
            return {"mask": state["mask"], "hidden": hidden}

        def head(state):
            weight = state["mask"][..., None].to(state["hidden"].dtype)
            pooled = tap("pooled", (state["hidden"] * weight).sum(1) / weight.sum(1).clamp(min=1e-9))
            return {"sentence": tap("sentence", torch.nn.functional.normalize(pooled, dim=1))}

        return {
            "tokens": tokens,
            "embed": lambda state: {"mask": state["mask"], "hidden": model.embeddings(state["ids"])},
            **{f"layer.{i:02d}": partial(layer, i) for i in range(len(model.encoder.layer))},
            "head": head,
        }
