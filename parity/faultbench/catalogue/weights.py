"""Faults of loading: weights missing, exchanged, transposed, packed otherwise; of LoRA, layout and the backend."""

from __future__ import annotations

from parity.faultbench.injection import STREAMS, Injection, put, swap

LAYERS, TRANSFORMER, WEIGHTS, LORA, OPS = "layers.py", "transformer.py", "weights.py", "lora.py", "ops.py"

# One stage's arrays before they are loaded; `prefix` is of the module they belong to.
_LOAD = '    arrays = dict(_cast(checkpoint, f"{prefix}.", dtype, hold))\n'

LINEARS = ("block.{b}.{s}.mod", "block.{b}.{s}.q", "block.{b}.{s}.k", "block.{b}.{s}.v", "block.{b}.{s}.attn",
           "block.{b}.{s}.ffn")  # fmt: skip
OUTSIDE = ("img_in", "txt_in", "time.linear_1", "temb", "norm_out.mod", "final")
# Names of the same layers in both streams.
_NAMES = {
    "q": ("attn.to_q", "attn.add_q_proj"), "k": ("attn.to_k", "attn.add_k_proj"), "v": ("attn.to_v", "attn.add_v_proj"),
    "attn": ("attn.to_out.0", "attn.to_add_out"), "mod": ("img_mod.1", "txt_mod.1"),
    "ffn": ("img_mlp.net.2", "txt_mlp.net.2"),
}  # fmt: skip


def _of_block(code, variant, body, *shows, stream=None, **more):
    """Lines that change a block's `arrays`; of one stream where it is said."""
    asked = f"site.loads(prefix, {stream!r})" if stream else "site.loads(prefix)"
    lines = "".join(f"        {line}\n" for line in body)
    streams = {"streams": (stream,)} if stream else {}
    edit = put(WEIGHTS, _LOAD, f"{_LOAD}    if {asked}:\n{lines}")
    return Injection(code, variant, (edit,), shows, **streams, **more)


def _of_part(code, variant, part, body, *shows, **more):
    """Lines that change the `arrays` of a module outside of the blocks."""
    lines = "".join(f"        {line}\n" for line in body)
    edit = put(WEIGHTS, _LOAD, f"{_LOAD}    if prefix == {part!r}:\n{lines}")
    return Injection(code, variant, (edit,), shows, **more)


def _each_stream(code, variant, kind, body, *, leaf="weight", **more):
    """The same fault of one kind of layer in either stream: an injection for each."""
    for index, stream in enumerate(STREAMS):
        key = f"{_NAMES[kind][index]}.{leaf}"
        other = f"{_NAMES[kind][1 - index]}.{leaf}"
        lines = [line.format(key=key, other=other) for line in body]
        yield _of_block(code, f"{variant}_{stream}", lines, f"block.{{b}}.{{s}}.{kind}", stream=stream, **more)


_SWAP = 'arrays["{0}"], arrays["{1}"] = arrays["{1}"], arrays["{0}"]'

_WEIGHTS = (
    *_each_stream("weights.missing", "ffn", "ffn", ['arrays["{key}"] = mx.zeros_like(arrays["{key}"])']),
    *_each_stream("weights.missing", "q", "q", ['arrays["{key}"] = mx.zeros_like(arrays["{key}"])']),
    _of_block(
        "weights.missing", "qk_norms",
        ['arrays["attn.norm_q.weight"] = mx.ones_like(arrays["attn.norm_q.weight"])',
         'arrays["attn.norm_k.weight"] = mx.ones_like(arrays["attn.norm_k.weight"])'],
        "block.{b}.{s}.q", "block.{b}.{s}.k", stream="img", also=("norm.weight_missing",),
    ),
    _of_part("weights.missing", "txt_norm", "txt_norm", ['arrays["weight"] = mx.ones_like(arrays["weight"])'],
             "txt_norm", also=("norm.weight_missing",)),
    *_each_stream("weights.random", "attn", "attn",
                  ['arrays["{key}"] = mx.random.uniform(-0.09, 0.09, arrays["{key}"].shape, '
                   'key=mx.random.key(3)).astype(dtype)'], also=("weights.missing", "weights.unused")),
    *_each_stream("weights.random", "mod", "mod",
                  ['arrays["{key}"] = 0.02 * mx.random.normal(arrays["{key}"].shape, '
                   'key=mx.random.key(4)).astype(dtype)'], also=("weights.missing", "weights.unused")),
    _of_part("weights.random", "proj_out", "proj_out",
             ['arrays["weight"] = mx.random.normal(arrays["weight"].shape, key=mx.random.key(5)).astype(dtype)'],
             "final"),
    _of_block("weights.swapped", "q_k", [_SWAP.format("attn.to_q.weight", "attn.to_k.weight"),
                                        _SWAP.format("attn.to_q.bias", "attn.to_k.bias")],
              "block.{b}.{s}.q", "block.{b}.{s}.k", stream="img"),
    _of_block("weights.swapped", "k_v_text", [_SWAP.format("attn.add_k_proj.weight", "attn.add_v_proj.weight"),
                                             _SWAP.format("attn.add_k_proj.bias", "attn.add_v_proj.bias")],
              "block.{b}.{s}.k", "block.{b}.{s}.v", stream="txt", also=("attention.kv_swapped",)),
    _of_block("weights.swapped", "mlp_streams",
              [_SWAP.format(f"img_mlp.net.{one}", f"txt_mlp.net.{one}")
               for one in ("0.proj.weight", "0.proj.bias", "2.weight", "2.bias")],
              "block.{b}.{s}.ffn"),
    _of_block("weights.swapped", "mod_streams",
              [_SWAP.format(f"img_mod.1.{one}", f"txt_mod.1.{one}") for one in ("weight", "bias")],
              "block.{b}.{s}.mod"),
    _of_block("weights.swapped", "weights_without_biases", [_SWAP.format("attn.to_q.weight", "attn.to_v.weight")],
              "block.{b}.{s}.q", "block.{b}.{s}.v", stream="img"),
    Injection(
        "weights.swapped", "next_block",
        (put(WEIGHTS, _LOAD,
             f"{_LOAD}    if site.loads(prefix):\n"
             '        number = int(prefix.rpartition(".")[2])\n'
             '        number = (number + 1) % checkpoint.config.num_layers\n'
             '        arrays = dict(_cast(checkpoint, f"transformer_blocks.{number}.", dtype, hold))\n'),),
        LINEARS,
    ),
    *(
        _of_block(
            "weights.swapped", f"first_block_{kind}_{stream}",
            ['which = 1 if prefix == "transformer_blocks.0" else 0',
             'others = dict(_cast(checkpoint, f"transformer_blocks.{which}.", dtype, hold))',
             f'arrays |= {{key: others[key] for key in others if key.startswith("{name}.")}}'],
            f"block.{{b}}.{{s}}.{kind}", stream=stream,
        )
        for kind, name, stream in (("ffn", "img_mlp", "img"), ("attn", "attn.to_add_out", "txt"))
    ),
    *_each_stream("weights.transposed", "v", "v", ['arrays["{key}"] = arrays["{key}"].T']),
    *_each_stream("weights.transposed", "attn", "attn", ['arrays["{key}"] = arrays["{key}"].T']),
    _of_part("weights.transposed", "time_linear_2", "time_text_embed",
             ['key = "timestep_embedder.linear_2.weight"', "arrays[key] = arrays[key].T"], "temb"),
    *_each_stream("weights.bias_missing", "q", "q", ['arrays["{key}"] = mx.zeros_like(arrays["{key}"])'], leaf="bias"),
    *_each_stream("weights.bias_missing", "mod", "mod", ['arrays["{key}"] = mx.zeros_like(arrays["{key}"])'],
                  leaf="bias"),
    *_each_stream("weights.bias_missing", "attn", "attn", ['arrays["{key}"] = mx.zeros_like(arrays["{key}"])'],
                  leaf="bias"),
    _of_part("weights.bias_missing", "img_in", "img_in", ['arrays["bias"] = mx.zeros_like(arrays["bias"])'], "img_in"),
    _of_part("weights.bias_missing", "head", "proj_out", ['arrays["bias"] = mx.zeros_like(arrays["bias"])'], "final"),
    *_each_stream("quant.modulation_low_bits", "four", "mod",
                  ['arrays["{key}"] = mx.dequantize(*mx.quantize(arrays["{key}"].astype(mx.float32), '
                   'group_size=64, bits=4), group_size=64, bits=4).astype(dtype)']),
)  # fmt: skip


def _packed(code, variant, arguments, shows=LINEARS, **more):
    """Packed layers computed from other words, scales or biases."""
    call = f'ops.quantized_linear(x, {arguments}, self.get("bias"), group_size=self.group_size, bits=self.bits)'
    marked = """        return ‹ops.quantized_linear(
            x,
            self.weight,
            self.scales,
            self.get("biases"),
            self.get("bias"),
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )›"""
    edit = swap(LAYERS, marked, call)
    return Injection(code, variant, (edit,), shows, cases=("quantized",), outside=OUTSIDE, **more)


_QUANT = (
    _packed("quant.group_size", "half",
            "self.weight, site.regrouped(self.scales), site.regrouped(self.biases)",
            helpers="""
def regrouped(scales):
    # Scales of groups half as long, laid out one after the other and cut to the number there is room for.
    return mx.repeat(scales, 2, axis=-1)[:, : scales.shape[-1]]
"""),
    _packed("quant.bits", "three_of_four", "self.weight & 0x77777777, self.scales, self.biases"),
    _packed("quant.packing", "nibbles",
            "((self.weight >> 4) & 0x0F0F0F0F) | ((self.weight & 0x0F0F0F0F) << 4), self.scales, self.biases"),
    _packed("quant.packing", "signed", "self.weight ^ 0x88888888, self.scales, self.biases"),
    _packed("quant.packing", "centred", "self.weight, self.scales, self.biases - 8 * self.scales"),
    _packed("quant.packing", "words_reversed",
            "site.reversed_words(self.weight), self.scales, self.biases", helpers="""
def reversed_words(words):
    # The first value in the highest four bits instead of the lowest.
    parts = [((words >> (4 * i)) & 0xF) << (4 * (7 - i)) for i in range(8)]
    return sum(parts[1:], parts[0])
"""),
    Injection(
        "weights.bias_missing", "taken_for_quantization",
        (swap(LAYERS, """            self.get("biases"),
            ‹self.get("bias")›,""", "None"),),
        LINEARS, cases=("quantized",),
        outside=OUTSIDE,
    ),
)  # fmt: skip

_SIDES = "        for side in self._sides:\n            y = y + side(x)\n"

_NO_SIDES = f"        if site.at():\n            return y\n{_SIDES}"

_LORA = (
    Injection("lora.not_applied", "plain", (put(LORA, _SIDES, _NO_SIDES),), LINEARS, cases=("lora",), outside=OUTSIDE),
    Injection("lora.not_applied", "square_layers",
              (put(LORA, _SIDES, _NO_SIDES.replace("site.at()", "site.at() and y.shape[-1] == x.shape[-1]")),),
              ("block.{b}.{s}.q", "block.{b}.{s}.k", "block.{b}.{s}.v", "block.{b}.{s}.attn"), cases=("lora",),
              outside=("temb",)),
    Injection("lora.scale", "alpha_ignored", (put(LORA, "_split(alpha / pair.rank)", "_split(1.0)"),),
              (*OUTSIDE, *LINEARS), cases=("lora",), only="all"),
    Injection("lora.scale", "user_scale_ignored",
              (put(LORA, "adapter.scale * pair.multiplier", "pair.multiplier"),),
              (*OUTSIDE, *LINEARS), cases=("lora",), only="all"),
    Injection("lora.scale", "alpha_for_alpha_over_rank",
              (put(LORA, "_split(alpha / pair.rank)", "_split(alpha)"),),
              (*OUTSIDE, *LINEARS), cases=("lora",), only="all"),
    Injection(
        "lora.lost_in_precision", "fused_bfloat16",
        (swap(LORA, "        y = ‹self.base(x)›\n", "site.fused(self.base, self._sides, x)"),
         put(LORA, _SIDES, _NO_SIDES)),
        LINEARS, cases=("lora",), outside=OUTSIDE,
        helpers="""
def fused(base, sides, x):
    # The delta added to the weights in bfloat16, where most of it is rounded away.
    weight = base.weight.astype(mx.bfloat16)
    for side in sides:
        delta = side.scale * (side.up.astype(mx.float32) @ side.down.astype(mx.float32))
        weight = weight + delta.astype(mx.bfloat16)
    return (x.astype(mx.float32) @ weight.astype(mx.float32).T + base.bias.astype(mx.float32)).astype(x.dtype)
""",
    ),
)  # fmt: skip

_IMG_IN = 'img = tap("img_in", self.img_in(‹latents›))'
_TXT_IN = 'txt = tap("txt_in", self.txt_in(‹txt›))'
_FINAL = 'return tap("final", ‹self.proj_out(self.norm_out(streams.img, temb))›)'

_LAYOUT = (
    Injection("layout.rows_shifted", "three",
              (swap(TRANSFORMER, _TXT_IN, "mx.concatenate([txt[:, 3:], txt[:, :3]], axis=1)"),), ("txt_in",)),
    Injection("layout.rows_shifted", "one_with_zeros",
              (swap(TRANSFORMER, _TXT_IN, "mx.concatenate([mx.zeros_like(txt[:, :1]), txt[:, :-1]], axis=1)"),),
              ("txt_in",)),
    Injection("layout.rows_shifted", "image",
              (swap(TRANSFORMER, _IMG_IN, "mx.concatenate([latents[:, 5:], latents[:, :5]], axis=1)"),), ("img_in",)),
    Injection("layout.not_contiguous", "img_in",
              (swap(TRANSFORMER, _IMG_IN, "latents.swapaxes(1, 2).reshape(latents.shape)"),), ("img_in",),
              cases=("landscape", "square")),
    Injection("layout.not_contiguous", "txt_in",
              (swap(TRANSFORMER, _TXT_IN, "txt.swapaxes(1, 2).reshape(txt.shape)"),), ("txt_in",)),
    Injection("layout.not_contiguous", "final",
              (swap(TRANSFORMER, _FINAL, "(lambda y: y.swapaxes(1, 2).reshape(y.shape))"
                                         "(self.proj_out(self.norm_out(streams.img, temb)))"),), ("final",)),
    Injection("layout.patch_order", "img_in",
              (swap(TRANSFORMER, _IMG_IN, "latents.reshape(*latents.shape[:2], -1, 4).swapaxes(2, 3)"
                                          ".reshape(latents.shape)"),), ("img_in",)),
    Injection("layout.patch_order", "columns_first",
              (swap(TRANSFORMER, _IMG_IN, "latents.reshape(*latents.shape[:2], -1, 2, 2).swapaxes(3, 4)"
                                          ".reshape(latents.shape)"),), ("img_in",)),
    Injection("layout.patch_order", "final",
              (swap(TRANSFORMER, _FINAL, "(lambda y: y.reshape(*y.shape[:2], 4, -1).swapaxes(2, 3).reshape(y.shape))"
                                         "(self.proj_out(self.norm_out(streams.img, temb)))"),), ("final",)),
    Injection("layout.width_height", "positions",
              (put(TRANSFORMER, "            img_shapes, txt.shape[1], self.config.axes_dims_rope,",
                   "            [(f, w, h) for f, h, w in img_shapes], txt.shape[1], self.config.axes_dims_rope,"),),
              ("rope.img",), cases=("landscape",), also=("rope.axes_order",)),
)  # fmt: skip

_LINEAR = "    def __call__(self, x: mx.array) -> mx.array:\n        return ‹ops.linear(x, self.weight, self.bias)›"

_BACKEND = (
    Injection(
        "backend.precision_mode", "tf32",
        (swap(LAYERS, _LINEAR, "ops.linear(site.tf32(x), site.tf32(self.weight), self.bias)"),),
        LINEARS, dtypes=("float32",), outside=OUTSIDE,
        helpers="""
def tf32(x):
    # 10 bits behind the point, rounded to nearest.
    bits = x.view(mx.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(mx.float32)
""",
    ),
    Injection(
        "backend.precision_mode", "bfloat16_products",
        (swap(LAYERS, _LINEAR, "ops.linear(x.astype(mx.bfloat16), self.weight.astype(mx.bfloat16), self.bias)"
                               ".astype(x.dtype)"),),
        LINEARS, dtypes=("float32",), outside=OUTSIDE,
    ),
    Injection(
        "backend.kernel", "rows_from_32",
        (swap(LAYERS, "return ‹ops.gelu_tanh(self.proj(x))›", "site.short(ops.gelu_tanh(self.proj(x)))"),),
        ("block.{b}.img.ffn",), streams=("img",),
        helpers="""
def short(y):
    # A kernel that writes no rows from 32 on.
    return mx.concatenate([y[:, :32], mx.zeros_like(y[:, 32:])], axis=1)
""",
    ),
    Injection(
        "backend.kernel", "last_tile",
        (swap(LAYERS, 'return q, k, tap("v", ‹v›)', "site.torn(v)"),),
        ("block.{b}.img.v",), streams=("img",),
        helpers="""
def torn(v):
    # The last tile of 16 rows holds what the one before it should.
    return mx.concatenate([v[:, :-16], v[:, -32:-16]], axis=1) if v.shape[1] >= 32 else v
""",
    ),
)  # fmt: skip

INJECTIONS = (*_WEIGHTS, *_QUANT, *_LORA, *_LAYOUT, *_BACKEND)
