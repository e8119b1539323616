"""MiniLM in MLX, with taps where the values are made. Attribute names equal the checkpoint's keys.

B sentences, N tokens with padding, D width, H heads, d head width.
"""

import json
from functools import partial

import mlx.core as mx
import mlx.nn as nn
from tokenizers import Tokenizer

from mlx_impl.family import ModelPort
from parity.tap import scope, tap


class Layer(nn.Module):
    """One layer of BERT: attention, then a feed-forward network, each with a norm behind its residual."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        width, hidden, self.heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
        for name in ("query", "key", "value", "dense"):
            setattr(self, name, nn.Linear(width, width))
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=config["layer_norm_eps"]) for _ in range(2))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        """x: B N D, mask: B N."""
        q, k, v = (tap(n, m(x)) for n, m in (("q", self.query), ("k", self.key), ("v", self.value)))
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1).swapaxes(1, 2) for y in (q, k, v))
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask[:, None, None])
        attn = tap("attn", y.swapaxes(1, 2).reshape(x.shape))
        mid = tap("mid", self.norm1(tap("projected", self.dense(attn)) + x))
        ffn = tap("ffn", self.down(tap("gelu", nn.gelu(tap("up", self.up(mid))))))
        return tap("out", self.norm2(ffn + mid))


class MiniLM(nn.Module):
    """Embeddings, layers, and the mean over tokens, of length 1."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.words = nn.Embedding(config["vocab_size"], width)
        self.places = nn.Embedding(config["max_position_embeddings"], width)
        self.types = nn.Embedding(config["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, eps=config["layer_norm_eps"])
        self.layers = [Layer(config) for _ in range(config["num_hidden_layers"])]

    def embed(self, ids: mx.array) -> mx.array:
        """B N to B N D."""
        x = tap("words", self.words(ids)) + self.types.weight[0] + self.places.weight[: ids.shape[1]]
        return tap("embedded", self.norm(x))

    def head(self, x: mx.array, mask: mx.array) -> mx.array:
        """B N D to B D."""
        weight = mask[..., None].astype(x.dtype)
        pooled = tap("pooled", (x * weight).sum(1) / weight.sum(1))
        return tap("sentence", pooled / mx.linalg.norm(pooled, axis=-1, keepdims=True))


# Names in the checkpoint -> ours.
RENAMED = {
    "embeddings.word_embeddings": "words", "embeddings.position_embeddings": "places",
    "embeddings.token_type_embeddings": "types", "embeddings.LayerNorm": "norm", "encoder.layer.": "layers.",
    "attention.self.": "", "attention.output.LayerNorm": "norm1", "attention.output.dense": "dense",
    "intermediate.dense": "up", "output.LayerNorm": "norm2", "output.dense": "down",
}  # fmt: skip


class Port(ModelPort):
    """The port: how the model is built, what its weights are called, and its stages."""

    name = "minilm-mlx"

    def build(self, folder):
        """Without weights."""
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_padding()
        return MiniLM(json.loads((folder / "config.json").read_text()))

    def sanitize(self, weights):
        """Our names; the pooler is not part of a sentence encoder."""
        kept = {key: x for key, x in weights.items() if not key.startswith("pooler.") and "position_ids" not in key}
        for theirs, ours in RENAMED.items():
            kept = {key.replace(theirs, ours): x for key, x in kept.items()}
        return kept

    def stages(self, model):
        """From bytes to sentence embeddings."""

        def tokens(state):
            found = self._tokenizer.encode_batch([bytes(state[key]).decode() for key in sorted(state)])
            ids, mask = (mx.array([getattr(one, key) for one in found]) for key in ("ids", "attention_mask"))
            return {"ids": tap("ids", ids), "mask": tap("mask", mask.astype(mx.bool_))}

        def layer(i, state):
            with scope(f"layer.{i:02d}"):
                return {"mask": state["mask"], "hidden": model.layers[i](state["hidden"], state["mask"])}

        return {
            "tokens": tokens,
            "embed": lambda state: {"mask": state["mask"], "hidden": model.embed(state["ids"])},
            **{f"layer.{i:02d}": partial(layer, i) for i in range(len(model.layers))},
            "head": lambda state: {"sentence": model.head(state["hidden"], state["mask"])},
        }
