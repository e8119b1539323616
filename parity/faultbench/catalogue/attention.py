"""Faults of attention, positions and the time embedding in the transformer."""

from __future__ import annotations

from parity.faultbench.injection import STREAMS, Injection, put, swap

LAYERS, TRANSFORMER, ROPE = "layers.py", "transformer.py", "rope.py"

_ATTEND = "joint = ‹ops.attention(q, k, v, mask, self._head_width**-0.5)›"
_Q, _K = 'tap("q", ‹rotate(norm_q(q), table)›)', 'tap("k", ‹rotate(norm_k(k), table)›)'
_PROJECT = "q, k, v = ‹(to(x).reshape(*x.shape[:2], -1, self._head_width) for to in (to_q, to_k, to_v))›"
_MERGE = "‹part.swapaxes(1, 2).flatten(2)› for part in"
_JOIN = "‹mx.concatenate([t.swapaxes(1, 2), i.swapaxes(1, 2)], axis=2)› for t, i in"
_SPLIT = "for part in ‹(joint[:, :, :text_tokens], joint[:, :, text_tokens:])›"
_LEAVE = "return ‹chain(self.to_out, of_image), self.to_add_out(of_text)›"

QK = ("block.{b}.{s}.q", "block.{b}.{s}.k")
QKV = (*QK, "block.{b}.{s}.v")
ATTN = ("block.{b}.img.attn", "block.{b}.txt.attn")


def _attend(code, variant, new, **more):
    """Another call in the place of the attention of both streams."""
    return Injection(code, variant, (swap(LAYERS, _ATTEND, new),), ATTN, **more)


def _positions(code, variant, marked, new, *shows, **more):
    return Injection(code, variant, (swap(ROPE, marked, new),), shows, **more)


_HALVES = """
def rotate_halves(x, table):
    # (x0, x_d/2), (x1, x_d/2+1), …: the pairs of most language models.
    first, second = mx.split(x.astype(mx.float32), 2, axis=-1)
    cos, sin = table[:, None, :, 0], table[:, None, :, 1]
    return mx.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(x.dtype)
"""

_ATTENTION = (
    _attend("attention.scale_missing", "plain", "ops.attention(q, k, v, mask, 1.0)"),
    _attend("attention.scale_wrong", "one_over_d", "ops.attention(q, k, v, mask, 1.0 / self._head_width)"),
    _attend(
        "attention.scale_wrong", "model_width", "ops.attention(q, k, v, mask, (q.shape[1] * self._head_width) ** -0.5)"
    ),
    _attend("attention.scale_wrong", "twice", "ops.attention(q * self._head_width**-0.5, k, v, mask, "
            "self._head_width**-0.5)"),
    _attend("attention.mask_missing", "plain", "ops.attention(q, k, v, None, self._head_width**-0.5)",
            cases=("batch",)),
    _attend("attention.mask_inverted", "all_keys", "ops.attention(q, k, v, ~mask, self._head_width**-0.5)",
            cases=("batch",)),
    Injection(
        "attention.mask_inverted", "text_keys", (swap(LAYERS, "mask = mx.concatenate([‹mask›, mx.ones(", "~mask"),),
        ATTN, cases=("batch",),
    ),
    _attend(
        "attention.causal", "plain",
        "ops.attention(q, k, v, site.causal(q.shape[2], mask), self._head_width**-0.5)",
        helpers="""
def causal(length, mask):
    lower = mx.tri(length, dtype=mx.int32).astype(mx.bool_)[None, None]
    return lower if mask is None else lower & mask
""",
    ),
    Injection(
        "attention.stream_order", "joined_image_first",
        (swap(LAYERS, _JOIN, "mx.concatenate([i.swapaxes(1, 2), t.swapaxes(1, 2)], axis=2)"),), ATTN,
    ),
    Injection(
        "attention.stream_order", "split_image_first",
        (swap(LAYERS, _SPLIT, "(joint[:, :, -text_tokens:], joint[:, :, :-text_tokens])"),), ATTN,
    ),
    Injection(
        "attention.stream_order", "mask_text_first",
        (
            swap(LAYERS, _JOIN, "mx.concatenate([i.swapaxes(1, 2), t.swapaxes(1, 2)], axis=2)"),
            swap(LAYERS, _SPLIT, "(joint[:, :, -text_tokens:], joint[:, :, :-text_tokens])"),
        ),
        ATTN, cases=("batch",), also=("attention.mask_missing",),
    ),
    Injection(
        "attention.heads_layout", "width_first",
        (swap(LAYERS, _PROJECT, "(to(x).reshape(*x.shape[:2], self._head_width, -1).swapaxes(2, 3) "
                                "for to in (to_q, to_k, to_v))"),),
        QKV, streams=STREAMS,
    ),
    Injection(
        "attention.heads_layout", "v_only",
        (swap(LAYERS, 'return q, k, tap("v", ‹v›)', "v.reshape(*v.shape[:2], v.shape[3], -1).swapaxes(2, 3)"),),
        QKV[2:], streams=STREAMS,
    ),
    Injection("attention.heads_layout", "merged_width_first",
              (swap(LAYERS, _MERGE, "part.transpose(0, 2, 3, 1).flatten(2)"),), ATTN),
    Injection(
        "attention.heads_layout", "merged_without_transpose",
        (swap(LAYERS, _MERGE, "part.reshape(part.shape[0], part.shape[2], -1)"),), ATTN,
        also=("layout.not_contiguous",),
    ),
    _attend("attention.kv_swapped", "operands", "ops.attention(q, v, k, mask, self._head_width**-0.5)"),
    Injection(
        "attention.kv_swapped", "projections",
        (swap(LAYERS, _PROJECT, "(to(x).reshape(*x.shape[:2], -1, self._head_width) for to in (to_q, to_v, to_k))"),),
        QKV[1:], streams=STREAMS, also=("weights.swapped",),
    ),
    Injection(
        "attention.out_proj_swapped", "both",
        (swap(LAYERS, _LEAVE, "(self.to_add_out(of_image), self.to_out[0](of_text))"),), ATTN,
        also=("weights.swapped",),
    ),
    Injection(
        "attention.out_proj_swapped", "text",
        (swap(LAYERS, _LEAVE, "(self.to_out[0](of_image), self.to_out[0](of_text))"),), ATTN[1:],
        also=("weights.swapped",),
    ),
    Injection(
        "attention.row_all_masked", "queries_too", (swap(LAYERS, _ATTEND, "site.both_ways(q, k, v, mask, "
        "self._head_width**-0.5)"),), ATTN[1:], cases=("batch",),
        helpers="""
def both_ways(q, k, v, mask, scale):
    # Padding is masked as a query too, with minus infinity: a row without any key gives 0/0.
    seen = mask & mask.swapaxes(2, 3)
    scores = (q.astype(mx.float32) @ k.astype(mx.float32).swapaxes(2, 3)) * scale
    weights = mx.softmax(mx.where(seen, scores, -mx.inf), axis=-1)
    return (weights @ v.astype(mx.float32)).astype(q.dtype)
""",
    ),
)  # fmt: skip

_ROTATION = (
    Injection(
        "rope.pairing", "half_split",
        (swap(LAYERS, _Q, "site.rotate_halves(norm_q(q), table)"),
         swap(LAYERS, _K, "site.rotate_halves(norm_k(k), table)")),
        QK, streams=STREAMS, helpers=_HALVES,
    ),
    Injection("rope.pairing", "k_only", (swap(LAYERS, _K, "site.rotate_halves(norm_k(k), table)"),), QK[1:],
              streams=STREAMS, helpers=_HALVES),
    Injection("rope.missing", "both", (swap(LAYERS, _Q, "norm_q(q)"), swap(LAYERS, _K, "norm_k(k)")), QK,
              also=("rope.missing_text",)),
    Injection("rope.missing", "image", (swap(LAYERS, _Q, "norm_q(q)"), swap(LAYERS, _K, "norm_k(k)")), QK,
              streams=("img",)),
    Injection("rope.missing_text", "plain", (swap(LAYERS, _Q, "norm_q(q)"), swap(LAYERS, _K, "norm_k(k)")), QK,
              streams=("txt",), also=("rope.missing",)),
    Injection("rope.missing", "k", (swap(LAYERS, _K, "norm_k(k)"),), QK[1:], streams=STREAMS,
              also=("rope.missing_text",)),
    Injection(
        "rope.sign", "both",
        (swap(LAYERS, _Q, "rotate(norm_q(q), table * mx.array([1.0, -1.0]))"),
         swap(LAYERS, _K, "rotate(norm_k(k), table * mx.array([1.0, -1.0]))")),
        QK, streams=STREAMS,
    ),
)  # fmt: skip

_GRID = 'return ‹np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)›'
_START = "text_start = ‹max(max(height // 2, width // 2) for _, height, width in img_shapes)›"
_TABLES = "(tap(name, ‹table›) for name, table in"
_FREQUENCIES = "frequencies = ‹[_frequencies(axis) for axis in axes]›"
_POWER = "np.power(‹float(THETA)›, exponent.astype(np.float64))"
_ANGLES = "np.outer(‹positions[:, i].astype(np.float32)›, f)"
TABLES = ("rope.img", "rope.txt")

_POSITIONS = (
    Injection(
        "rope.not_centred", "both",
        (swap(ROPE, "‹np.arange(height) - (height - height // 2)›", "np.arange(height)"),
         swap(ROPE, "‹np.arange(width) - (width - width // 2)›", "np.arange(width)")), TABLES[:1],
    ),
    _positions("rope.not_centred", "rows", "‹np.arange(height) - (height - height // 2)›", "np.arange(height)",
               TABLES[0]),
    Injection(
        "rope.not_centred", "other_half",
        (swap(ROPE, "‹np.arange(height) - (height - height // 2)›", "np.arange(height) - height // 2"),
         swap(ROPE, "‹np.arange(width) - (width - width // 2)›", "np.arange(width) - width // 2")), TABLES[:1],
        cases=("landscape", "edit"),
    ),
    _positions("rope.text_offset", "longest_side", _START, "max(max(height, width) for _, height, width in img_shapes)",
               TABLES[1], cases=("square", "landscape")),
    _positions("rope.text_offset", "zero", _START, "0", TABLES[1]),
    _positions("rope.text_offset", "image_count", _START,
               "sum(frames * height * width for frames, height, width in img_shapes)", TABLES[1]),
    _positions("rope.text_offset", "off_by_one", _START,
               "max(max(height // 2, width // 2) for _, height, width in img_shapes) + 1", TABLES[1]),
    _positions("rope.axes_order", "height_width", _GRID,
               'np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)[:, [0, 2, 1]]', TABLES[0],
               cases=("landscape", "square", "edit"), also=("layout.width_height",)),
    _positions("rope.axes_order", "frame_last", _GRID,
               'np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)[:, [1, 2, 0]]', TABLES[0]),
    _positions("rope.theta", "million", _POWER, "1e6", *TABLES),
    _positions("rope.theta", "small", _POWER, "2000.0", *TABLES),
    _positions("rope.theta", "axes_split", _FREQUENCIES,
               "[_frequencies(axis) for axis in (axes[1], axes[0], axes[2])]", *TABLES),
    _positions("rope.theta", "one_series", _FREQUENCIES,
               "list(np.split(_frequencies(sum(axes)), np.cumsum([axis // 2 for axis in axes])[:-1]))", *TABLES),
    Injection("rope.low_precision", "tables",
              (swap(TRANSFORMER, _TABLES, "table.astype(mx.bfloat16).astype(mx.float32)"),), TABLES),
    Injection("rope.low_precision", "tables_float16",
              (swap(TRANSFORMER, _TABLES, "table.astype(mx.float16).astype(mx.float32)"),), TABLES),
    _positions("rope.low_precision", "positions", _ANGLES,
               "np.array(mx.array(positions[:, i].astype(np.float32)).astype(mx.bfloat16).astype(mx.float32))",
               TABLES[1], cases=("long",)),
    Injection(
        "rope.text_len_from_mask", "rows_of_the_first",
        (put(TRANSFORMER, '        with scope("rope"):\n',
             "        if mask is not None:\n"
             "            rows = int(mx.sum(mask[0]).item())\n"
             "            blank = mx.broadcast_to(mx.array([1.0, 0.0]), tables[1][rows:].shape)\n"
             "            tables = (tables[0], mx.concatenate([tables[1][:rows], blank]))\n"
             '        with scope("rope"):\n'),),
        TABLES[1:], cases=("batch",),
    ),
    Injection(
        "rope.text_len_from_mask", "last_row_again",
        (put(TRANSFORMER, '        with scope("rope"):\n',
             "        if mask is not None:\n"
             "            rows = int(mx.sum(mask[0]).item())\n"
             "            last = mx.broadcast_to(tables[1][rows - 1 : rows], tables[1][rows:].shape)\n"
             "            tables = (tables[0], mx.concatenate([tables[1][:rows], last]))\n"
             '        with scope("rope"):\n'),),
        TABLES[1:], cases=("batch",),
    ),
)  # fmt: skip

_ANGLE = "angle = ‹TIME_SCALE * (timestep.astype(mx.float32)[:, None] * frequency)›"
_WAVES = "return ‹mx.concatenate([mx.cos(angle), mx.sin(angle)], axis=-1)›"
_SILU = 'x = tap("time.silu", ‹ops.silu(x)›)'

_TIME = (
    _positions("time.scale", "missing", _ANGLE, "timestep.astype(mx.float32)[:, None] * frequency", "time.proj"),
    _positions("time.scale", "twice", _ANGLE,
               "TIME_SCALE * (TIME_SCALE * (timestep.astype(mx.float32)[:, None] * frequency))", "time.proj"),
    _positions("time.halves", "sin_first", _WAVES, "mx.concatenate([mx.sin(angle), mx.cos(angle)], axis=-1)",
               "time.proj"),
    _positions("time.halves", "interleaved", _WAVES,
               "mx.stack([mx.cos(angle), mx.sin(angle)], axis=-1).reshape(angle.shape[0], -1)", "time.proj"),
    _positions("time.freq_shift", "one", "np.arange(half, dtype=np.float32) / ‹np.float32(half)›",
               "np.float32(half - 1)", "time.proj"),
    _positions("time.freq_shift", "max_period", "exponent = -‹math.log(THETA)› *", "math.log(1000)", "time.proj"),
    Injection("time.dtype", "rounded",
              (swap(TRANSFORMER, "timestep = ‹timestep.astype(img.dtype)›",
                    "timestep.astype(mx.bfloat16).astype(img.dtype)"),),
              ("time.proj",), dtypes=("float32",), cases=("square", "batch")),
    _positions("time.dtype", "thousandfold_rounded", _ANGLE,
               "(timestep * TIME_SCALE).astype(mx.bfloat16).astype(mx.float32)[:, None] * frequency", "time.proj",
               cases=("landscape", "batch")),
    Injection(
        "time.linear_order", "silu_last",
        (swap(LAYERS, _SILU, "x"), swap(LAYERS, "return ‹self.linear_2(x)›", "ops.silu(self.linear_2(x))")),
        ("time.silu", "temb"), also=("time.silu_missing",),
    ),
    Injection("time.linear_order", "silu_first",
              (swap(LAYERS, 'tap("time.linear_1", self.linear_1(‹x›))', "ops.silu(x)"), swap(LAYERS, _SILU, "x")),
              ("time.linear_1", "time.silu"), also=("time.silu_missing",)),
    Injection("time.silu_missing", "plain", (swap(LAYERS, _SILU, "x"),), ("time.silu",)),
)  # fmt: skip

INJECTIONS = (*_ATTENTION, *_ROTATION, *_POSITIONS, *_TIME)
