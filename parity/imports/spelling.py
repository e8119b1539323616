"""Names that are no checkpoints: which ones are checkpoints spelled otherwise, and which are nearest to the others."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from parity.safetensors_header import shown
from parity.tracefile import unknown_names

_LONGEST = 200
# Words that a port may put before a name: `model.transformer.block.00.img.attn`.
_BEFORE = 3
_SAME = {"blocks": "block", "layer": "block", "layers": "block", "image": "img", "text": "txt"}


def words_of(name: str) -> tuple[str, ...]:
    """A name without what spellings differ in: case, separators, plurals, zeros in front."""
    words = re.findall(r"[a-z]+|\d+", name[:_LONGEST].lower())
    return tuple(word.lstrip("0") or "0" if word.isdigit() else _SAME.get(word, word) for word in words)


def meant(strangers: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """Those of some names that are known ones spelled otherwise: name -> known one.

    ``block.7.img.attn``, ``transformer.blocks.07.img.attn`` and ``block_07_img_attn`` are ``block.07.img.attn``.
    """
    plain = {words_of(name): name for name in known}
    found = {}
    for name in strangers:
        words = words_of(name)
        tails = (words[start:] for start in range(min(len(words), _BEFORE + 1)))
        right = next((plain[tail] for tail in tails if tail in plain), None)
        if right is not None:
            found[name] = right
    return found


def suggested(strangers: Sequence[str], known: Collection[str], at_most: int) -> str:
    """Some names with the nearest known ones, and how many more there are."""
    near = unknown_names(strangers[:at_most], known, at_most=at_most)
    told = [shown(name) + (f" (nearest: {', '.join(near[name])})" if near.get(name) else "") for name in near]
    return listed(told, len(strangers))


def listed(told: Sequence[str], count: int) -> str:
    """Some entries, and how many more there are."""
    return "; ".join(told) + (f" and {count - len(told):,} more" if count > len(told) else "")
