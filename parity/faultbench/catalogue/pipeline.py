"""Faults around the transformer: prompts, text encoder, noise levels, guidance, VAE, picture."""

from __future__ import annotations

from parity.faultbench.injection import Injection, put, swap

PROMPTS, TEXT, MROPE = "prompts.py", "text_encoder.py", "mrope.py"
SCHEDULER, VAE = "scheduler.py", "vae.py"
DENOISING, DECODING = "pipelines/denoising.py", "pipelines/decoding.py"
LATENTS = "pipelines/latents.py"

_WRAP = "return ‹_TEMPLATE.format(system=self.system, user=shown + prompt)›"
_CUT = "if ‹max_sequence_length is not None›:"
_MASK = "return mx.array(‹causal & mask.astype(bool)[:, None, None, :]›)"
_EMBEDS = ("text.prompt_embeds", "text.prompt_mask")
_IDS = ("text.ids", "text.mask", "text.position_ids", *_EMBEDS)
# What is as long as the ids are, or made of the noise levels.
_FOLLOW = ("text.mask", "pipeline.prompt_mask", "pipeline.negative_mask", "sched.timesteps", "pipeline.timesteps")


def _text(code, variant, file, marked, new, *shows, cases=("text",), **more):
    return Injection(code, variant, (swap(file, marked, new),), shows, cases=cases, follows=_FOLLOW, **more)


_TEXT = (
    _text("prompt.template", "missing", PROMPTS, _WRAP, "shown + prompt", *_IDS),
    _text("prompt.template", "twice", PROMPTS, _WRAP,
          "_TEMPLATE.format(system=self.system, user=_TEMPLATE.format(system=self.system, user=shown + prompt))",
          *_IDS),
    _text("prompt.template", "no_assistant", PROMPTS, _WRAP,
          "_TEMPLATE.format(system=self.system, user=shown + prompt).removesuffix('<|im_start|>assistant\\n')", *_IDS),
    _text("prompt.drop_prefix", "one_less", PROMPTS, "Template(_DESCRIBE, ‹34›)", "33", *_EMBEDS),
    _text("prompt.drop_prefix", "none", PROMPTS, "Template(_DESCRIBE, ‹34›)", "0", *_EMBEDS),
    _text("prompt.drop_prefix", "of_edits", PROMPTS, "Template(_DESCRIBE, ‹34›)", "64", *_EMBEDS),
    _text("prompt.truncation", "not_cut", PROMPTS, _CUT, "False", *_EMBEDS, cases=("text-cut",)),
    Injection("prompt.truncation", "prefix_counted",
              (put(PROMPTS, "order, kept = order[:, :max_sequence_length], kept[:, :max_sequence_length]",
                   "order, kept = order[:, : max_sequence_length - 4], kept[:, : max_sequence_length - 4]"),),
              _EMBEDS, cases=("text-cut",)),
    _text("prompt.truncation", "without_prefix", PROMPTS, "longest = ‹MAX_TOKENS + wanted.drop›", "MAX_TOKENS", *_IDS,
          cases=("text-long",)),
    _text("text.causal_mask", "padding_only", TEXT, _MASK,
          "np.broadcast_to(mask.astype(bool)[:, None, None, :], (len(mask), 1, mask.shape[1], mask.shape[1]))",
          "text.layer.{b}.attn", only="all"),
    _text("text.causal_mask", "strict", TEXT, _MASK,
          "(causal & ~np.eye(mask.shape[1], dtype=bool)) & mask.astype(bool)[:, None, None, :]",
          "text.layer.{b}.attn", only="all"),
    _text("text.hidden_layer", "before_norm", TEXT, 'return tap("norm", ‹self.norm(hidden)›)', "hidden", "text.norm"),
    _text("text.mrope", "sections", MROPE, "axis = ‹np.repeat(np.arange(len(sections)) % 3, sections)›",
          "np.repeat(np.arange(len(sections)) % 3, sections[::-1])", "text.rope", cases=("text-edit",)),
    _text("text.mrope", "interleaved", MROPE, "axis = ‹np.repeat(np.arange(len(sections)) % 3, sections)›",
          "np.arange(pairs) % 3", "text.rope", cases=("text-edit",)),
    _text("text.mrope", "one_axis", MROPE, "axis = ‹np.repeat(np.arange(len(sections)) % 3, sections)›",
          "np.zeros(pairs, np.int64)", "text.rope", cases=("text-edit",)),
    _text("rope.theta", "text", MROPE, "np.power(‹theta›, exponent.astype(np.float64))", "10000.0", "text.rope"),
    Injection("rope.pairing", "text",
              (swap(MROPE, "return ‹mx.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)›",
                    "site.interleaved(x, cos, sin)"),),
              ("text.layer.{b}.q", "text.layer.{b}.k"), cases=("text",),
              helpers="""
def interleaved(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    return mx.stack([first * cos - second * sin, second * cos + first * sin], axis=-1).reshape(x.shape)
"""),
    _text("weights.bias_missing", "text_q", TEXT, 'q = tap("q", rotate(‹self.q_proj(x)›.reshape(heads), table))',
          "(self.q_proj(x) - self.q_proj.bias)", "text.layer.{b}.q"),
    _text("residual.missing", "text_mid", TEXT,
          'x = tap("mid", ‹x + tap("attn", self.self_attn(normed, table, mask))›)',
          'tap("attn", self.self_attn(normed, table, mask))', "text.layer.{b}.mid"),
    _text("attention.scale_missing", "text", TEXT, "joint = ‹ops.attention(q, k, v, mask, self._head**-0.5)›",
          "ops.attention(q, k, v, mask, 1.0)", "text.layer.{b}.attn"),
    _text("ffn.activation", "text_gelu", TEXT, "tap(\"gated\", ‹ops.silu(self.gate_proj(x))› * self.up_proj(x))",
          "ops.gelu_tanh(self.gate_proj(x))", "text.layer.{b}.gated"),
    _text("norm.eps", "text", TEXT, 'normed = tap("normed", ‹self.input_layernorm(x)›)',
          "mx.fast.rms_norm(x, self.input_layernorm.weight, 1e-3)", "text.layer.{b}.normed"),
)  # fmt: skip

_SHIFT = "sigmas = ‹weight / (weight + (1 / sigmas - 1))›"
_LEVELS = ("sched.sigmas", "sched.timesteps")
_MOVED = "moved = ‹sample.astype(mx.float32) + width * model_output›"


def _sched(code, variant, marked, new, *shows, cases=("scheduler",), **more):
    return Injection(code, variant, (swap(SCHEDULER, marked, new),), shows, cases=cases, follows=_FOLLOW, **more)


_SCHEDULER = (
    _sched("sched.shift_missing", "plain", _SHIFT, "sigmas", *_LEVELS),
    _sched("sched.shift_missing", "constant", _SHIFT, "3.0 * sigmas / (1 + 2.0 * sigmas)", *_LEVELS,
           also=("sched.mu",)),
    _sched("sched.terminal_missing", "plain", "return self._stretched(sigmas) if ‹self.config.shift_terminal› else",
           "None", *_LEVELS, cases=("scheduler", "strength")),
    _sched("sched.mu", "base", "return ‹image_tokens * slope + offset›", "config.base_shift", "sched.mu", *_LEVELS),
    _sched("sched.mu", "pixels", "return ‹image_tokens * slope + offset›", "4 * image_tokens * slope + offset",
           "sched.mu", *_LEVELS, cases=("scheduler", "strength")),
    _sched("sched.mu", "flux", "slope = ‹(config.max_shift - config.base_shift) / "
           "(config.max_image_seq_len - config.base_image_seq_len)›", "(1.15 - 0.5) / (4096 - 256)", "sched.mu",
           *_LEVELS),
    _sched("latents.dtype", "scheduler_bfloat16", _MOVED,
           "sample.astype(mx.bfloat16).astype(mx.float32) + width * model_output", "sched.step.{b}.sample",
           dtypes=("float32",), only="all"),
)  # fmt: skip

_GUIDE = "noise_pred = ‹guide(noise_pred, against, prepared.guidance)›"
_RESCALE = "return ‹combined * (_norm(cond) / _norm(combined))›"
_IMAGE = 'return tap("image", mx.clip(‹pictures * 0.5 + 0.5›, 0, 1))'
_SHOWN = 'return tap("image", ‹mx.clip(pictures * 0.5 + 0.5, 0, 1)›)'
_UNPACK = "unpacked = vae.denormalize(‹unpack(latents, rows, columns)›[:, None])"
_TILES = "pictures = (‹vae.decode(unpacked) if whole else vae_tiling.decode(vae, unpacked)›)[:, 0]"


def _pipe(code, variant, file, marked, new, *shows, cases=("pipeline",), **more):
    more = {"dtypes": ("float32",), "only": "all", "follows": _FOLLOW} | more
    return Injection(code, variant, (swap(file, marked, new),), shows, cases=cases, **more)


_PIPELINE = (
    _pipe("cfg.off", "plain", DENOISING, _GUIDE, "noise_pred", "step.{b}.noise_pred"),
    _pipe("cfg.norm_missing", "plain", DENOISING, _RESCALE, "combined", "step.{b}.noise_pred"),
    _pipe("cfg.norm_missing", "whole", DENOISING, _RESCALE,
          "combined * (mx.sqrt(mx.sum(cond * cond)) / mx.sqrt(mx.sum(combined * combined)))", "step.{b}.noise_pred",
          also=("cfg.norm",)),
    _pipe("cfg.branch", "prompt_twice", DENOISING, 'predict(transformer, "uncond", ‹prepared.negative›, prepared,',
          "prepared.prompt", "step.{b}.uncond"),
    _pipe("cfg.branch", "exchanged", DENOISING, _GUIDE, "guide(against, noise_pred, prepared.guidance)",
          "step.{b}.noise_pred"),
    _pipe("cfg.branch", "zeros", DENOISING, 'predict(transformer, "uncond", ‹prepared.negative›, prepared,',
          "type(prepared.negative)(mx.zeros_like(prepared.negative.embeds), prepared.negative.mask)",
          "step.{b}.uncond"),
    _pipe("latents.dtype", "bfloat16", SCHEDULER, "return ‹moved.astype(model_output.dtype)›",
          "moved.astype(mx.bfloat16).astype(model_output.dtype)", "step.{b}.latents"),
    _pipe("latents.dtype", "promoted", SCHEDULER, "return ‹moved.astype(model_output.dtype)›", "moved",
          "step.{b}.latents", dtypes=("bfloat16",)),
    _pipe("image.range", "minus_one", DECODING, _IMAGE, "pictures", "pipeline.image"),
    _pipe("image.range", "twice", DECODING, _IMAGE, "(pictures * 0.5 + 0.5) * 0.5 + 0.5", "pipeline.image"),
    _pipe("image.range", "levels", DECODING, _SHOWN,
          "mx.floor(mx.clip(pictures * 0.5 + 0.5, 0, 1) * 255) / 255", "pipeline.image"),
    _pipe("layout.chw_hwc", "plain", DECODING, _SHOWN,
          "mx.moveaxis(mx.clip(pictures * 0.5 + 0.5, 0, 1), -1, 1).reshape(pictures.shape)", "pipeline.image",
          also=("layout.not_contiguous",)),
    _pipe("layout.not_contiguous", "image", DECODING, _SHOWN,
          "mx.clip(pictures * 0.5 + 0.5, 0, 1).swapaxes(1, 2).reshape(pictures.shape)", "pipeline.image",
          also=("layout.width_height",)),
    _pipe("layout.width_height", "unpack", DECODING, _UNPACK,
          "unpack(latents, columns, rows).reshape(len(latents), 2 * rows, 2 * columns, -1)", "pipeline.image"),
    Injection(
        "layout.patch_order", "unpack",
        (put(LATENTS, "    blocks = tokens.reshape(batch, rows, columns, channels // 4, 2, 2)\n"
                      "    return blocks.transpose(0, 1, 4, 2, 5, 3)",
             "    blocks = tokens.reshape(batch, rows, columns, 2, 2, channels // 4)\n"
             "    return blocks.transpose(0, 1, 3, 2, 4, 5)"),),
        ("pipeline.image",), cases=("pipeline",), dtypes=("float32",), only="all",
    ),
    Injection(
        "layout.patch_order", "unpack_transposed",
        (put(LATENTS, "return blocks.transpose(0, 1, 4, 2, 5, 3)", "return blocks.transpose(0, 1, 5, 2, 4, 3)"),),
        ("pipeline.image",), cases=("pipeline",), dtypes=("float32",), only="all",
    ),
    Injection(
        "layout.patch_order", "pack",
        (put(LATENTS, "return blocks.transpose(0, 1, 3, 5, 2, 4)", "return blocks.transpose(0, 1, 3, 2, 4, 5)"),),
        ("pipeline.image_latents", "pipeline.latents"), cases=("image-to-image",), dtypes=("float32",), only="all",
    ),
    _pipe("vae.tiling", "seams", DECODING, _TILES,
          "site.tiles(vae, unpacked)", "pipeline.image", cases=("pipeline-tiles",),
          helpers="""
def tiles(vae, z):
    # Each tile a picture of its own, laid side by side.
    rows = []
    for top in range(0, z.shape[2], 8):
        rows.append(mx.concatenate(
            [vae.decode(z[:, :, top : top + 8, left : left + 8]) for left in range(0, z.shape[3], 8)], axis=3
        ))
    return mx.concatenate(rows, axis=2)
"""),
    _pipe("vae.tiling", "blended", DECODING, _TILES,
          "vae_tiling.decode_blended(vae, unpacked, vae_tiling.BlendedTiles(64, 64, 48, 48))", "pipeline.image",
          cases=("pipeline-tiles",)),
    _pipe("vae.stats", "pipeline_none", VAE, "return ‹latents / (1 / std) + mean›", "latents", "pipeline.image"),
    _pipe("sched.mu", "pipeline_pixels", SCHEDULER, "return ‹image_tokens * slope + offset›",
          "4 * image_tokens * slope + offset", "pipeline.sigmas", "pipeline.timesteps", cases=("pipeline",)),
    _pipe("prompt.template", "pipeline", PROMPTS, _WRAP, "shown + prompt", "pipeline.prompt_ids",
          "pipeline.prompt_mask", "pipeline.prompt_embeds", "pipeline.negative_ids", "pipeline.negative_mask",
          "pipeline.negative_embeds"),
)  # fmt: skip

_BACK = "return ‹latents / (1 / std) + mean›"
_THERE = "return ‹(latents - mean) / std if divide else (latents - mean) * (1 / std)›"
_CONVERT = "return mx.contiguous(‹mx.moveaxis(array, 1, -1)›) if array.ndim > 1 else array"


def _vae(code, variant, marked, new, *shows, file=VAE, **more):
    return Injection(code, variant, (swap(file, marked, new),), shows, cases=("vae",), **more)


_VAE = (
    _vae("vae.stats", "not_denormalised", _BACK, "latents", "vae.decode.latents"),
    _vae("vae.stats", "reciprocal", _BACK, "latents * (1 / std) + mean", "vae.decode.latents"),
    _vae("vae.stats", "mean_missing", _BACK, "latents * std", "vae.decode.latents"),
    _vae("vae.stats", "one_factor", _BACK, "latents / 0.18215", "vae.decode.latents"),
    _vae("vae.stats", "not_normalised", _THERE, "latents", "vae.encode.latents"),
    _vae("vae.stats", "times_std", _THERE, "(latents - mean) * std", "vae.encode.latents"),
    *(
        Injection(
            "layout.conv_weight", variant,
            (put(VAE, "return {key: _channels_last(key, array) for key, array in super().read(prefix).items()}",
                 "found = super().read(prefix)\n        if not prefix.startswith(site.PART):\n"
                 "            return {key: _channels_last(key, array) for key, array in found.items()}\n"
                 f"        return {{key: {new} if array.ndim > 2 else array for key, array in found.items()}}"),),
            (shows,), cases=("vae",), helpers=f'PART = "{part}"',
        )
        for variant, new, part, shows in (
            ("read_as_stored", "array.reshape(array.shape[0], *array.shape[2:], array.shape[1])", "decoder.conv_in",
             "vae.decode.conv_in"),
            ("rows_columns", "mx.contiguous(mx.moveaxis(array, 1, -1).swapaxes(2, 3))", "encoder.conv_in",
             "vae.encode.conv_in"),
            ("flipped", "mx.contiguous(mx.moveaxis(array, 1, -1)[:, :, ::-1, ::-1])", "decoder.conv_out",
             "vae.decode.image"),
        )
    ),
)  # fmt: skip

INJECTIONS = (*_TEXT, *_SCHEDULER, *_PIPELINE, *_VAE)
