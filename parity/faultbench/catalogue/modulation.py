"""Faults of modulation, norms, gates, residuals and feed-forward in the transformer's blocks, and of its head."""

from __future__ import annotations

from parity.faultbench.injection import STREAMS, Injection, put, swap

LAYERS, TRANSFORMER = "layers.py", "transformer.py"

_CHUNKS = "return ‹Modulation(*chunks[:3]), Modulation(*chunks[3:])›"
_MODULATE = 'tap(f"modulated{half}", ‹ops.modulate(normed, by.shift, by.scale)›)'
_NORM = 'tap(f"normed{half}", ‹ops.layer_norm(x, EPS)›)'
_MID = 'x = tap("mid", ‹ops.gated_add(x, first.gate, attn)›)'
_OUT = "x = ‹ops.gated_add(x, second.gate, ffn)›"
_FFN = 'ffn = tap("ffn", ‹mlp(_normed_and_modulated(x, second, "2"))›)'
_Q, _K = 'tap("q", rotate(‹norm_q(q)›, table))', 'tap("k", rotate(‹norm_k(k)›, table))'
_HEAD_SPLIT = "scale, shift = ‹mx.split(mod[:, None, :], 2, axis=-1)›"
_HEAD = 'return tap("norm_out", ‹ops.modulate(ops.layer_norm(x, EPS), shift, scale)›)'

BOTH = ("block.{b}.{s}.modulated", "block.{b}.{s}.modulated2")
GATES = ("block.{b}.{s}.mid", "block.{b}.{s}.out")
FOUR = ("block.{b}.{s}.modulated", "block.{b}.{s}.mid", "block.{b}.{s}.modulated2", "block.{b}.{s}.out")
NORMS = ("block.{b}.{s}.normed", "block.{b}.{s}.normed2")
QK = ("block.{b}.{s}.q", "block.{b}.{s}.k")


def _in_block(code, variant, marked, new, *shows, **more):
    return Injection(code, variant, (swap(LAYERS, marked, new),), shows, streams=STREAMS, **more)


def _order(variant, order, shows):
    """Chunks taken in another order: shift, scale, gate of the first half, then of the second."""
    first, second = (f"Modulation(*(chunks[i] for i in {part}))" for part in (order[:3], order[3:]))
    return _in_block("modulation.order", variant, _CHUNKS, f"({first}, {second})", *shows)


def _embed(code, variant, marked, new, *shows, **more):
    return Injection(code, variant, (swap(TRANSFORMER, marked, new),), shows, **more)


def _head(code, variant, marked, new, *shows, **more):
    return Injection(code, variant, (swap(LAYERS, marked, new),), shows, **more)


_ORDER = (
    _order("swapped", (1, 0, 2, 4, 3, 5), BOTH),
    _order("gate_first", (1, 2, 0, 4, 5, 3), FOUR),
    _order("scale_gate_shift", (2, 0, 1, 5, 3, 4), FOUR),
    _order("shift_gate_scale", (0, 2, 1, 3, 5, 4), FOUR),
    _order("halves", (3, 4, 5, 0, 1, 2), FOUR),
    _order("pairs", (0, 2, 4, 1, 3, 5), FOUR),
    _order("first_half_swapped", (1, 0, 2, 3, 4, 5), BOTH[:1]),
    _order("second_half_swapped", (0, 1, 2, 4, 3, 5), BOTH[1:]),
    _in_block(
        "modulation.order", "interleaved", "chunks = ‹mx.split(mod[:, None, :], 6, axis=-1)›",
        "[mod[:, None, i::6] for i in range(6)]", *FOUR,
    ),
    _in_block("modulation.order", "second_gate", _MID, "ops.gated_add(x, second.gate, attn)", GATES[0]),
)  # fmt: skip

_MODULATION = (
    _in_block("modulation.one_plus_missing", "both", _MODULATE, "normed * by.scale + by.shift", *BOTH),
    _in_block(
        "modulation.one_plus_missing", "second", _MODULATE,
        "normed * by.scale + by.shift if half else ops.modulate(normed, by.shift, by.scale)", BOTH[1],
    ),
    _head("modulation.one_plus_missing", "head", _HEAD, "ops.layer_norm(x, EPS) * scale + shift", "norm_out"),
    _in_block("modulation.shift_missing", "both", _MODULATE, "normed * (1 + by.scale)", *BOTH),
    _in_block(
        "modulation.shift_missing", "first", _MODULATE,
        "ops.modulate(normed, by.shift, by.scale) if half else normed * (1 + by.scale)", BOTH[0],
    ),
    _head("modulation.shift_missing", "head", _HEAD, "ops.layer_norm(x, EPS) * (1 + scale)", "norm_out"),
    _in_block("modulation.gate_missing", "plain", _MID, "x + attn", GATES[0]),
    _in_block("ffn.gate_missing", "plain", _OUT, "x + ffn", GATES[1]),
    Injection(
        "modulation.silu_missing", "both",
        (
            swap(LAYERS, 'tap("mod", ‹chain(self.img_mod, temb)›)', "self.img_mod[1](temb)"),
            swap(LAYERS, 'tap("mod", ‹chain(self.txt_mod, txt_temb)›)', "self.txt_mod[1](txt_temb)"),
        ),
        ("block.{b}.{s}.mod",), streams=STREAMS,
    ),
    _head(
        "modulation.silu_missing", "head", 'tap("norm_out.mod", self.linear(‹ops.silu(temb)›))', "temb", "norm_out.mod"
    ),
    _head("norm_out.order", "shift_first", _HEAD_SPLIT, "mx.split(mod[:, None, :], 2, axis=-1)[::-1]", "norm_out"),
    _head("norm_out.order", "interleaved", _HEAD_SPLIT, "(mod[:, None, 0::2], mod[:, None, 1::2])", "norm_out"),
)  # fmt: skip

_NORMS = (
    _in_block("norm.eps", "block", _NORM, "ops.layer_norm(x, 1e-5)", *NORMS),
    _in_block("norm.eps", "block_large", _NORM, "ops.layer_norm(x, 1e-3)", *NORMS),
    _in_block("norm.eps", "qk", _Q, "ops.rms_norm(q, norm_q.weight, 1e-5)", QK[0]),
    _embed(
        "norm.eps", "txt_norm", 'tap("txt_norm", ‹self.txt_norm(prompt_embeds)›)',
        "mx.fast.rms_norm(prompt_embeds, self.txt_norm.weight, 1e-5)", "txt_norm",
    ),
    _in_block("norm.rms_for_layer", "block", _NORM, "ops.rms_norm(x, mx.ones((x.shape[-1],), x.dtype), EPS)", *NORMS),
    _head(
        "norm.rms_for_layer", "head", _HEAD,
        "ops.modulate(ops.rms_norm(x, mx.ones((x.shape[-1],), x.dtype), EPS), shift, scale)", "norm_out",
    ),
    _in_block("norm.rms_for_layer", "layer_for_q", _Q, "ops.layer_norm(q, EPS) * norm_q.weight", QK[0]),
    _embed(
        "norm.rms_for_layer", "layer_for_txt_norm", 'tap("txt_norm", ‹self.txt_norm(prompt_embeds)›)',
        "self.txt_norm(prompt_embeds - mx.mean(prompt_embeds, axis=-1, keepdims=True))", "txt_norm",
    ),
    Injection("norm.qk_missing", "both", (swap(LAYERS, _Q, "q"), swap(LAYERS, _K, "k")), QK, streams=STREAMS),
    _in_block("norm.qk_missing", "k", _K, "k", QK[1]),
    Injection(
        "norm.qk_after_rope", "both",
        (
            swap(LAYERS, 'tap("q", ‹rotate(norm_q(q), table)›)', "norm_q(rotate(q, table))"),
            swap(LAYERS, 'tap("k", ‹rotate(norm_k(k), table)›)', "norm_k(rotate(k, table))"),
        ),
        QK, streams=STREAMS,
    ),
    Injection(
        "norm.qk_swapped", "streams",
        (
            swap(LAYERS, "self.to_v, ‹self.norm_q›, self.norm_k, img_table", "self.norm_added_q"),
            swap(LAYERS, "self.norm_q, ‹self.norm_k›, img_table", "self.norm_added_k"),
            swap(LAYERS, "self.add_v_proj, ‹self.norm_added_q›, self.norm_added_k, txt_table", "self.norm_q"),
            swap(LAYERS, "self.norm_added_q, ‹self.norm_added_k›, txt_table", "self.norm_k"),
        ),
        QK, streams=STREAMS, also=("weights.swapped",),
    ),
    Injection(
        "norm.qk_swapped", "q_for_k", (swap(LAYERS, _Q, "norm_k(q)"), swap(LAYERS, _K, "norm_q(k)")), QK,
        streams=STREAMS, also=("weights.swapped",),
    ),
    _embed("norm.txt_missing", "plain", 'tap("txt_norm", ‹self.txt_norm(prompt_embeds)›)', "prompt_embeds", "txt_norm"),
)  # fmt: skip

_REST = (
    _in_block("residual.missing", "mid", _MID, "first.gate * attn", GATES[0]),
    _in_block("residual.missing", "out", _OUT, "second.gate * ffn", GATES[1]),
    _in_block("residual.missing", "mid_after_norm", _MID, "ops.gated_add(ops.layer_norm(x, EPS), first.gate, attn)",
              GATES[0]),
    _in_block("residual.missing", "out_after_norm", _OUT, "ops.gated_add(ops.layer_norm(x, EPS), second.gate, ffn)",
              GATES[1]),
    *(
        _in_block("ffn.activation", name, "return ‹ops.gelu_tanh(self.proj(x))›", new, "block.{b}.{s}.ffn")
        for name, new in (
            ("exact", "nn.gelu(self.proj(x))"),
            ("silu", "ops.silu(self.proj(x))"),
            ("relu", "nn.relu(self.proj(x))"),
            ("quick", "(lambda y: y * mx.sigmoid(1.702 * y))(self.proj(x))"),
        )
    ),
    _in_block("ffn.clamped", "ffn", _FFN, 'mx.clip(mlp(_normed_and_modulated(x, second, "2")), -50.0, 50.0)',
              "block.{b}.{s}.ffn"),
    _in_block("ffn.clamped", "out", "if ‹x.dtype == mx.float16›:", "True", GATES[1]),
    _in_block(
        "ffn.fp16_overflow", "out", _OUT,
        "(x.astype(mx.float16) + (second.gate * ffn).astype(mx.float16)).astype(x.dtype)", GATES[1],
    ),
    _in_block(
        "ffn.fp16_overflow", "net_2", "return chain(‹self.net›, x)",
        "[*self.net[:2], lambda h: self.net[2]((h * 64).astype(mx.float16).astype(h.dtype)) / 64]",
        "block.{b}.{s}.ffn",
    ),
    Injection(
        "cond.zero_cond_t_missing", "timestep",
        (swap(TRANSFORMER, "mx.concatenate([timestep, ‹mx.zeros_like(timestep)›])", "timestep"),),
        ("time.proj",), cases=("edit",),
    ),
    Injection(
        "cond.zero_cond_t_missing", "tokens",
        (put(TRANSFORMER, "return mx.arange(streams.img.shape[1]) >= math.prod(streams.img_shapes[0])",
             "first = streams.img.shape[1] if site.at() else math.prod(streams.img_shapes[0])\n"
             "        return mx.arange(streams.img.shape[1]) >= first"),),
        tuple(one.replace("{s}", "img") for one in FOUR), cases=("edit",),
    ),
)  # fmt: skip

INJECTIONS = (*_ORDER, *_MODULATION, *_NORMS, *_REST)
