"""What each symptom of a picture is called, what to change, where it is described, and what would confirm it."""

from __future__ import annotations

from dataclasses import dataclass

_GUIDE = "the guide"
_TABLE = "the catalogue of porting faults"


@dataclass(frozen=True)
class Entry:
    """One cause that a picture can show.

    Attributes:
        title: what is wrong, in a few words.
        fix: what to change, in one line.
        source: where it is described.
        confirm: checkpoints of a trace that would confirm it.
    """

    title: str
    fix: str
    source: str
    confirm: tuple[str, ...]


IMAGE = ("pipeline.image",)
DECODED = ("vae.decode.image", "pipeline.image")

ENTRIES: dict[str, Entry] = {
    "picture.black": Entry(
        "the picture is black", "look for NaN, which is cast to 0: trace the run and take the first checkpoint that "
        "is not finite; float16 overflows in ffn and attn, and a wrong order of scale and shift blackens as well",
        "the guide; sd.cpp#968", ("block.00.img.ffn", "norm_out", "final", "vae.decode.image"),
    ),
    "picture.constant": Entry(
        "the picture has one colour", "see which checkpoint before the decoder is constant: a residual or a weight "
        "that is missing, or latents that are zero", _TABLE, ("final", "step.00.latents", "vae.decode.image"),
    ),
    "picture.noise": Entry(
        "the picture is noise", "compare a trace: the denoiser's output, its sign and the schedule; wrong chunks of "
        "the modulation, positions or missing weights leave noise", _GUIDE,
        ("block.00.img.modulated", "block.00.img.attn", "final", "pipeline.sigmas", "step.00.latents"),
    ),
    "picture.grain": Entry(
        "noise lies over the picture", "keep img_mod and txt_mod at 8 bits or in bf16, and latents in float32 between "
        "steps; see that the last step goes to sigma 0", "mflux#484",
        ("block.00.img.mod", "pipeline.sigmas", "step.00.latents"),
    ),
    "picture.tiled": Entry(
        "the same small picture repeats", "swap the halves of the time embedding (cos first) and check the axes of "
        "the positions", "flashinfer#3819", ("time.proj", "rope.img", "block.00.img.q", "img_in"),
    ),
    "picture.banding": Entry(
        "few levels a channel", "convert to float32 before scaling to 0…255, and round once: a narrow dtype before "
        "the conversion leaves steps", _TABLE, DECODED,
    ),
    "picture.partly_black": Entry(
        "parts of the picture are black", "look for NaN in parts of the decoder's input or output, which are cast to "
        "0, and for tiles that were never written", _TABLE, ("step.00.latents", "vae.decode.latents", *DECODED),
    ),
    "picture.partly_noise": Entry(
        "a part of the picture is what lay in memory", "evaluate the array before its buffer is read, and read as "
        "many bytes as it has", _TABLE, DECODED,
    ),
    "layout.chw_hwc": Entry(
        "channels first taken for channels last", "transpose to H W C and make the result contiguous before its "
        "bytes are read", "the guide; mlx-rs#77, #310", DECODED,
    ),
    "layout.not_contiguous": Entry(
        "a transposed view read as a flat buffer", "make the transposed view contiguous before its bytes are read",
        "the guide; mlx-rs#77, #310", DECODED,
    ),
    "layout.width_height": Entry(
        "height and width exchanged", "pass (height, width) in the order in which the buffer lies, and make a "
        "transposed view contiguous", _TABLE, ("step.00.latents", *DECODED),
    ),
    "layout.row_stride": Entry(
        "wrong row length", "read rows by the buffer's own stride: the bytes from one row to the next, with its "
        "padding", _TABLE, DECODED,
    ),
    "layout.patch_order": Entry(
        "patches unpacked in another axis order", "unpack as (h/2, w/2, C, 2, 2) → (C, h/2, 2, w/2, 2)", _TABLE,
        ("img_in", "step.00.latents", "vae.decode.latents"),
    ),
    "layout.channel_order": Entry(
        "channels in another order", "write R, G, B in this order; some libraries take B, G, R", _TABLE, IMAGE,
    ),
    "layout.flipped": Entry(
        "mirrored or turned", "count rows from the top and columns from the left", _TABLE, IMAGE,
    ),
    "layout.transposed": Entry(
        "rows and columns exchanged", "transpose to (height, width, channels) before writing", _TABLE, IMAGE,
    ),
    "layout.rows_shifted": Entry(
        "the buffer starts too early or too late", "add the view's offset to the base of its buffer", _TABLE, IMAGE,
    ),
    "image.range": Entry(
        "[-1, 1] and [0, 1] mixed up", "map the decoder's output once: x / 2 + 0.5, clipped to 0…1", _TABLE, DECODED,
    ),
    "image.wrapped": Entry(
        "values beyond the range came round", "clip to 0…255 before the cast to bytes", _TABLE, DECODED,
    ),
    "image.inverted": Entry(
        "light and dark exchanged", "take the decoder's output as it is, not 1 − x", _TABLE, DECODED,
    ),
    "image.tone": Entry(
        "each value is another, the same everywhere", "compare the mapping of the decoder's output to bytes, gamma "
        "among it", _TABLE, DECODED,
    ),
    "vae.tiling": Entry(
        "tiles of the decoder show", "blend overlapping tiles as the reference does, and keep the last, smaller ones",
        _TABLE, ("vae.decode.latents", *DECODED),
    ),
}  # fmt: skip
