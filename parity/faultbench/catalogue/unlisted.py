"""Faults that no catalogue has: what they are called is made up, and a diagnosis should say that it does not know them.

Where a catalogue could well have a name for one, `also` says which.
"""

from __future__ import annotations

from parity.faultbench.injection import STREAMS, Injection, swap

LAYERS, TRANSFORMER, ROPE = "layers.py", "transformer.py", "rope.py"

_MODULATE = 'tap(f"modulated{half}", ‹ops.modulate(normed, by.shift, by.scale)›)'
_NORM = 'tap(f"normed{half}", ‹ops.layer_norm(x, EPS)›)'
_MID = 'x = tap("mid", ‹ops.gated_add(x, first.gate, attn)›)'
_OUT = "x = ‹ops.gated_add(x, second.gate, ffn)›"
_FFN = 'ffn = tap("ffn", ‹mlp(_normed_and_modulated(x, second, "2"))›)'
_IMG_ATTN = 'img = _finish(img, tap("attn", ‹img_attn›), img_first'
_TXT_ATTN = 'txt = _finish(txt, tap("attn", ‹txt_attn›), txt_first'
_Q, _K = 'tap("q", ‹rotate(norm_q(q), table)›)', 'tap("k", ‹rotate(norm_k(k), table)›)'
_V = 'return q, k, tap("v", ‹v›)'
_ATTEND = "joint = ‹ops.attention(q, k, v, mask, self._head_width**-0.5)›"
_GELU = "return ‹ops.gelu_tanh(self.proj(x))›"

ATTN = ("block.{b}.img.attn", "block.{b}.txt.attn")


def _one(name, marked, new, kind, *more_shows, **more):
    """A fault of either stream at one kind of checkpoint."""
    edits = (swap(LAYERS, marked, new),)
    return Injection(
        f"unlisted.{name}", "plain", edits, (f"block.{{b}}.{{s}}.{kind}", *more_shows), streams=STREAMS, **more
    )


def _attn(name, image, text, **more):
    """A fault of what attention gives, in either stream."""
    edits = (swap(LAYERS, _IMG_ATTN, image), swap(LAYERS, _TXT_ATTN, text))
    return Injection(f"unlisted.{name}", "plain", edits, ("block.{b}.{s}.attn",), streams=STREAMS, **more)


def _joint(name, new, **more):
    return Injection(f"unlisted.{name}", "plain", (swap(LAYERS, _ATTEND, new),), ATTN, **more)


_SECOND = "block.{b}.{s}.modulated2"

_IN_BLOCKS = (
    _one("softplus_scale", _MODULATE, "normed * (1 + mx.logaddexp(by.scale, 0)) + by.shift", "modulated", _SECOND),
    _one("scale_halved", _MODULATE, "normed * (1 + 0.5 * by.scale) + by.shift", "modulated", _SECOND),
    _one("shift_before_scale", _MODULATE, "(normed + by.shift) * (1 + by.scale)", "modulated", _SECOND,
         also=("modulation.formula",)),
    _one("shift_reversed", _MODULATE, "normed * (1 + by.scale) + by.shift[..., ::-1]", "modulated", _SECOND),
    _attn("channel_constant", "site.lifted(img_attn)", "site.lifted(txt_attn)", helpers="""
def lifted(y):
    return y + (mx.arange(y.shape[-1]) == 5).astype(y.dtype) * 40
"""),
    _attn("tanh_attention", "30 * mx.tanh(img_attn / 30)", "30 * mx.tanh(txt_attn / 30)"),
    _attn("attention_smoothed", "site.smooth(img_attn)", "site.smooth(txt_attn)", helpers="""
def smooth(y):
    # The mean of each token and the one before it.
    return 0.5 * (y + mx.concatenate([y[:, :1], y[:, :-1]], axis=1))
"""),
    _one("head_reversed", _Q, "site.turned(rotate(norm_q(q), table))", "q", helpers="""
def turned(q):
    # The rows of the first head from the last to the first.
    return mx.concatenate([q[:, ::-1, :1], q[:, :, 1:]], axis=2)
"""),
    _one("head_zeroed", _V, "mx.concatenate([mx.zeros_like(v[:, :, :1]), v[:, :, 1:]], axis=2)", "v"),
    _one("k_scaled", _K, "1.1 * rotate(norm_k(k), table)", "k"),
    _one("k_centred", _K, "(lambda y: y - mx.mean(y, axis=1, keepdims=True))(rotate(norm_k(k), table))", "k"),
    _one("q_noise", _Q, "site.noisy(rotate(norm_q(q), table))", "q", helpers="""
def noisy(q):
    draw = mx.random.normal(q.shape, key=mx.random.key(11)).astype(q.dtype)
    return q + 0.05 * draw
"""),
    _one("dropout", _FFN, 'site.dropped(mlp(_normed_and_modulated(x, second, "2")))', "ffn", helpers="""
def dropped(y):
    # Left on from training, with a fixed seed.
    kept = mx.random.bernoulli(0.9, y.shape, key=mx.random.key(5))
    return mx.where(kept, y / 0.9, 0).astype(y.dtype)
"""),
    _one("softplus_activation", _GELU, "(lambda y: mx.logaddexp(y, 0))(self.proj(x))", "ffn",
         also=("ffn.activation",)),
    _one("activation_squared", _GELU, "mx.square(nn.relu(self.proj(x))) * 0.2", "ffn", also=("ffn.activation",)),
    _one("ffn_gain", _FFN, '0.9 * mlp(_normed_and_modulated(x, second, "2"))', "ffn"),
    _one("gate_one_plus", _MID, "ops.gated_add(x, 1 + first.gate, attn)", "mid", also=("modulation.formula",)),
    _one("gate_tanh", _OUT, "ops.gated_add(x, mx.tanh(second.gate), ffn)", "out", also=("modulation.formula",)),
    _one("gate_positive", _MID, "ops.gated_add(x, mx.abs(first.gate), attn)", "mid"),
    _one("last_row_lost", _OUT,
         "(lambda y: mx.concatenate([y[:, :-1], mx.zeros_like(y[:, -1:])], axis=1))"
         "(ops.gated_add(x, second.gate, ffn))", "out"),
    _one("residual_halved", _OUT, "ops.gated_add(0.5 * x, second.gate, ffn)", "out"),
    _one("norm_of_absolute", _NORM, "(lambda y: (y / mx.mean(mx.abs(y), axis=-1, keepdims=True)).astype(x.dtype))"
         "(x.astype(mx.float32) - mx.mean(x.astype(mx.float32), axis=-1, keepdims=True))", "normed",
         "block.{b}.{s}.normed2", also=("norm.formula",)),
    _one("norm_clipped", _NORM, "mx.clip(ops.layer_norm(x, EPS), -2.0, 2.0)", "normed", "block.{b}.{s}.normed2",
         also=("ffn.clamped",)),
    _joint("softcap", "site.capped(q, k, v, mask, self._head_width**-0.5)", helpers="""
def capped(q, k, v, mask, scale):
    scores = scale * (q.astype(mx.float32) @ k.astype(mx.float32).swapaxes(2, 3))
    scores = 5 * mx.tanh(scores / 5)
    if mask is not None:
        scores = mx.where(mask, scores, -1e30)
    return (mx.softmax(scores, axis=-1) @ v.astype(mx.float32)).astype(q.dtype)
"""),
    _joint("window", "site.windowed(q, k, v, mask, self._head_width**-0.5, ops)", helpers="""
def windowed(q, k, v, mask, scale, ops):
    # Only the 24 nearest tokens each way.
    place = mx.arange(q.shape[2])
    near = (mx.abs(place[:, None] - place[None]) <= 24)[None, None]
    return ops.attention(q, k, v, near if mask is None else near & mask, scale)
"""),
    _joint("sink", "site.with_sink(q, k, v, mask, self._head_width**-0.5)", also=("attention.softmax",), helpers="""
def with_sink(q, k, v, mask, scale):
    # One more key whose value is zero: softmax with 1 added below the line.
    scores = scale * (q.astype(mx.float32) @ k.astype(mx.float32).swapaxes(2, 3))
    if mask is not None:
        scores = mx.where(mask, scores, -1e30)
    top = mx.maximum(mx.max(scores, axis=-1, keepdims=True), 0)
    weights = mx.exp(scores - top)
    total = mx.sum(weights, axis=-1, keepdims=True) + mx.exp(-top)
    return ((weights / total) @ v.astype(mx.float32)).astype(q.dtype)
"""),
    Injection(
        "unlisted.temb_of_block", "plain",
        (swap(LAYERS, 'tap("mod", ‹chain(self.img_mod, temb)›)', "chain(self.img_mod, mx.roll(temb, 1, axis=-1))"),
         swap(LAYERS, 'tap("mod", ‹chain(self.txt_mod, txt_temb)›)',
              "chain(self.txt_mod, mx.roll(txt_temb, 1, axis=-1))")),
        ("block.{b}.{s}.mod",), streams=STREAMS,
    ),
    Injection(
        "unlisted.silu_twice", "plain",
        (swap(LAYERS, 'tap("mod", ‹chain(self.img_mod, temb)›)', "chain(self.img_mod, ops.silu(temb))"),
         swap(LAYERS, 'tap("mod", ‹chain(self.txt_mod, txt_temb)›)', "chain(self.txt_mod, ops.silu(txt_temb))")),
        ("block.{b}.{s}.mod",), streams=STREAMS, also=("modulation.activation",),
    ),
)  # fmt: skip

_OUTSIDE = (
    Injection("unlisted.image_tokens_mixed", "plain",
              (swap(TRANSFORMER, 'img = tap("img_in", ‹self.img_in(latents)›)',
                    "(lambda y: 0.5 * (y + y[:, ::-1]))(self.img_in(latents))"),), ("img_in",)),
    Injection("unlisted.text_gain", "plain",
              (swap(TRANSFORMER, 'txt = tap("txt_in", ‹self.txt_in(txt)›)', "1.25 * self.txt_in(txt)"),), ("txt_in",)),
    Injection("unlisted.rope_damped", "plain",
              (swap(ROPE, "_table(image, frequencies), ‹_table(text, frequencies)›",
                    "_table(text, frequencies) * mx.array([1.0, 0.5])"),), ("rope.txt",)),
    # Of one timestep alone a square is not to be told from a factor.
    Injection("unlisted.time_squared", "plain",
              (swap(ROPE, "angle = TIME_SCALE * (‹timestep.astype(mx.float32)[:, None]› * frequency)",
                    "mx.square(timestep.astype(mx.float32))[:, None]"),), ("time.proj",), cases=("landscape",),
              also=("time.scale",)),
    Injection("unlisted.head_softsign", "plain",
              (swap(TRANSFORMER, 'return tap("final", ‹self.proj_out(self.norm_out(streams.img, temb))›)',
                    "(lambda y: y / (1 + 0.1 * mx.abs(y)))(self.proj_out(self.norm_out(streams.img, temb)))"),),
              ("final",)),
)  # fmt: skip

INJECTIONS = (*_IN_BLOCKS, *_OUTSIDE)
