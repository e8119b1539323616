"""Where each tensor of a model is stored, whatever layout its files have: names, shapes and packing, never values.

    diffusers   the folders and names of diffusers and transformers
    mflux       folders ``transformer/ text_encoder/ vae/`` with MLX's names and axes, packed or not, bits per layer
    mlx-rs      the same with ``.inner.`` in packed layers and short names of the time embedding
    single      one file whose keys have a prefix, as ComfyUI has them

Layouts are detected from names, never asked for. Canonical names are those of the first.
"""

from __future__ import annotations

from parity.layouts.entries import Entry, Located, Packing, Place
from parity.layouts.survey import locate

__all__ = ["Entry", "Located", "Packing", "Place", "locate"]
