"""Other implementations that are right: other kernels, other orders of summation, other roundings. None may alarm."""

from __future__ import annotations

from parity.faultbench.injection import Injection, put, swap

LAYERS, TRANSFORMER, ROPE, OPS, WEIGHTS = "layers.py", "transformer.py", "rope.py", "ops.py", "weights.py"

_ATTEND = "joint = ‹ops.attention(q, k, v, mask, self._head_width**-0.5)›"
_GELU = "return ‹ops.gelu_tanh(self.proj(x))›"
_NORM = 'tap(f"normed{half}", ‹ops.layer_norm(x, EPS)›)'
_MODULATE = 'tap(f"modulated{half}", ‹ops.modulate(normed, by.shift, by.scale)›)'
_MID = 'x = tap("mid", ‹ops.gated_add(x, first.gate, attn)›)'
_OUT = "x = ‹ops.gated_add(x, second.gate, ffn)›"
_LINEAR = "    def __call__(self, x: mx.array) -> mx.array:\n        return ‹ops.linear(x, self.weight, self.bias)›"
_Q, _K = 'tap("q", ‹rotate(norm_q(q), table)›)', 'tap("k", ‹rotate(norm_k(k), table)›)'

CASES = ("square", "landscape", "batch", "long", "edit")


def _other(variant, *edits, helpers="", cases=CASES, **more):
    return Injection(None, variant, edits, cases=cases, helpers=helpers, **more)


INJECTIONS = (
    _other("unchanged", cases=(*CASES, "quantized", "lora", "text", "text-edit", "scheduler", "vae", "pipeline")),
    _other("attention_unfused", swap(LAYERS, _ATTEND, "site.unfused(q, k, v, mask, self._head_width**-0.5)"),
           helpers="""
def unfused(q, k, v, mask, scale):
    scores = (q.astype(mx.float32) @ k.astype(mx.float32).swapaxes(2, 3)) * scale
    if mask is not None:
        scores = mx.where(mask, scores, -mx.inf)
    return (mx.softmax(scores, axis=-1) @ v.astype(mx.float32)).astype(q.dtype)
"""),
    _other("attention_of_the_library",
           swap(LAYERS, _ATTEND,
                "mx.fast.scaled_dot_product_attention(q, k, v, scale=self._head_width**-0.5, mask=mask)")),
    _other("attention_image_first",
           swap(LAYERS, "‹mx.concatenate([t.swapaxes(1, 2), i.swapaxes(1, 2)], axis=2)› for t, i in",
                "mx.concatenate([i.swapaxes(1, 2), t.swapaxes(1, 2)], axis=2)"),
           swap(LAYERS, "for part in ‹(joint[:, :, :text_tokens], joint[:, :, text_tokens:])›",
                "(joint[:, :, -text_tokens:], joint[:, :, :-text_tokens])"),
           swap(LAYERS, "mask = ‹mx.concatenate([mask, mx.ones(img.shape[:2], dtype=mx.bool_)], axis=1)›[:, None",
                "mx.concatenate([mx.ones(img.shape[:2], dtype=mx.bool_), mask], axis=1)")),
    _other("q_scaled_first",
           swap(LAYERS, _ATTEND, "ops.attention((q.astype(mx.float32) * self._head_width**-0.5), "
                                 "k.astype(mx.float32), v.astype(mx.float32), mask, 1.0).astype(v.dtype)")),
    _other("gelu_by_tanh", swap(LAYERS, _GELU, "site.gelu(self.proj(x))"), helpers="""
def gelu(x):
    y = x.astype(mx.float32)
    return (0.5 * y * (1 + mx.tanh(0.7978845608028654 * (y + 0.044715 * y * y * y)))).astype(x.dtype)
"""),
    _other("gelu_of_the_library", swap(LAYERS, _GELU, "nn.gelu_approx(self.proj(x))"), cases=CASES[:3]),
    _other("norm_of_the_library", swap(LAYERS, _NORM, "mx.fast.layer_norm(x, None, None, EPS)")),
    _other("norm_by_hand", swap(LAYERS, _NORM, "site.layer_norm(x)"), helpers="""
def layer_norm(x):
    y = x.astype(mx.float32)
    mean = mx.mean(y, axis=-1, keepdims=True)
    return ((y - mean) * mx.rsqrt(mx.var(y, axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)
"""),
    _other("qk_norm_of_the_library",
           swap(LAYERS, _Q, "rotate(mx.fast.rms_norm(q, norm_q.weight, EPS), table)"),
           swap(LAYERS, _K, "rotate(mx.fast.rms_norm(k, norm_k.weight, EPS), table)")),
    _other("modulation_rounded", swap(LAYERS, _MODULATE, "normed * (1 + by.scale) + by.shift")),
    _other("residual_rounded", swap(LAYERS, _MID, "x + first.gate * attn"),
           swap(LAYERS, _OUT, "x + second.gate * ffn")),
    _other("silu_of_the_library",
           swap(OPS, "    return ‹_gated(wide, wide).astype(x.dtype)›\n\n\n@fused\ndef gelu_tanh",
                "(wide * mx.sigmoid(wide)).astype(x.dtype)")),
    _other("linear_by_rows",
           swap(LAYERS, _LINEAR, "site.by_rows(lambda part: ops.linear(part, self.weight, self.bias), x)"), helpers="""
def by_rows(layer, x):
    if x.ndim < 3 or x.shape[1] < 8:
        return layer(x)
    return mx.concatenate([layer(x[:, start : start + 7]) for start in range(0, x.shape[1], 7)], axis=1)
"""),
    _other("linear_in_two_halves",
           swap(LAYERS, _LINEAR, "site.in_halves(x, self.weight, self.bias)"), helpers="""
def in_halves(x, weight, bias):
    # The sum over the inputs in two parts, in float32.
    half = x.shape[-1] // 2
    y, w = x.astype(mx.float32), weight.astype(mx.float32)
    whole = y[..., :half] @ w[:, :half].T + y[..., half:] @ w[:, half:].T
    return (whole + bias.astype(mx.float32)).astype(x.dtype)
"""),
    _other("linear_inputs_backwards",
           swap(LAYERS, _LINEAR, "ops.linear(x[..., ::-1], self.weight[:, ::-1], self.bias)")),
    _other("rotation_of_complex_numbers",
           swap(LAYERS, _Q, "site.turned(norm_q(q), table)"), swap(LAYERS, _K, "site.turned(norm_k(k), table)"),
           helpers="""
def turned(x, table):
    numbers = x.astype(mx.float32).view(mx.complex64)
    turn = table.view(mx.complex64).swapaxes(1, 2)
    return (numbers * turn).view(mx.float32).astype(x.dtype)
"""),
    _other("modulation_by_slices",
           swap(LAYERS, "chunks = ‹mx.split(mod[:, None, :], 6, axis=-1)›",
                "[mod[:, None, i * mod.shape[-1] // 6 : (i + 1) * mod.shape[-1] // 6] for i in range(6)]")),
    _other("ffn_in_float32",
           swap(LAYERS, "return chain(‹self.net›, x)",
                "[lambda y: ops.gelu_tanh(ops.linear(y.astype(mx.float32), self.net[0].proj.weight, "
                "self.net[0].proj.bias)), lambda y: ops.linear(y, self.net[2].weight, self.net[2].bias)"
                ".astype(x.dtype)]")),
    _other("norm_and_modulation_in_float32",
           swap(LAYERS, _MODULATE,
                "ops.modulate(ops.layer_norm(x.astype(mx.float32), EPS), by.shift, by.scale).astype(x.dtype)")),
    _other("sinusoid_of_the_library",
           swap(ROPE, "frequency = ‹mx.array(np.exp(exponent.astype(np.float64)).astype(np.float32))›",
                "mx.exp(mx.array(exponent))")),
    _other("tables_rounded_late",
           swap(ROPE, "angle = ‹np.concatenate(parts, axis=1).astype(np.float64)›", "np.concatenate(parts, axis=1)")),
    _other("weights_through_numpy",
           put(WEIGHTS, '    arrays = dict(_cast(checkpoint, f"{prefix}.", dtype, hold))\n',
               '    arrays = dict(_cast(checkpoint, f"{prefix}.", dtype, hold))\n'
               "    arrays = {key: site.through_numpy(array) for key, array in arrays.items()}\n"),
           helpers="""
def through_numpy(array):
    if array.dtype == mx.bfloat16:
        return mx.array(np.array(array.view(mx.uint16))).view(mx.bfloat16)
    return mx.array(np.array(array))
"""),
    _other("heads_by_slices",
           swap(LAYERS, "‹part.swapaxes(1, 2).flatten(2)› for part in",
                "mx.concatenate([part[:, i] for i in range(part.shape[1])], axis=-1)")),
)  # fmt: skip
