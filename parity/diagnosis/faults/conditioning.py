"""Faults of what only some models have: a timestep of zero for condition pictures, a second condition of layered ones.

B batch, L image tokens, D width. With zero_cond_t, temb is 2B D: the second half is for a timestep of 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from parity.diagnosis.fault import fault
from parity.diagnosis.place import Array, Variants
from parity.diagnosis.recipes.transformer import TransformerPlace

MODULATED = ("modulated", "modulated2", "mid", "out")
ZERO = "zero_cond_t: modulate tokens of condition pictures with temb's second half, all others with its first"


def _halved(p: TransformerPlace) -> bool:
    return bool(p.config.get("zero_cond_t"))


@fault(
    "cond.zero_cond_t_missing", at=MODULATED, title="condition pictures are not modulated for a timestep of zero",
    fix=ZERO, seen="vllm-omni#776",
)  # fmt: skip
def zero_cond_t_missing(p: TransformerPlace) -> Variants:
    """One half for all tokens, halves exchanged, another border between the pictures."""
    if not _halved(p) or p.stream != "img":
        return
    sizes = [int(np.prod(shape)) for shape in p.fed("img_shapes")]
    made, total, text = sizes[0], sum(sizes), p.entering("txt").shape[1]
    index = np.arange(total)
    borders = {
        "the timestep for all": index < 0,
        "zero for all": index >= 0,
        "exchanged": index < made,
        "only the last picture": index >= total - sizes[-1],
        "border moved by the text": index >= made + text,
        "border at the text's length": index >= text,
        "border moved back by the text": index >= made - text,
        "one token late": index >= made + 1,
        "one token early": index >= made - 1,
    }
    tried = [index >= made]
    for detail, condition in borders.items():
        if not any(np.array_equal(condition, one) for one in tried):
            tried.append(condition)
            yield detail, p.changed(per_token=_per_token(condition))
    if len(p.entering()) == 1:
        yield "both halves go on as a batch", p.changed(per_token=lambda chunk: chunk[:, None])
    else:
        alternating = lambda chunk: p.per_token(np.concatenate([chunk[::2], chunk[1::2]]))  # noqa: E731
        yield "samples alternate between the halves", p.changed(per_token=alternating)


def _per_token(condition: Array) -> Callable[[Array], Array]:
    def per_token(chunk: Array) -> Array:
        now, zero = np.split(chunk, 2)
        return np.where(condition[None, :, None], zero[:, None], now[:, None])

    return per_token


@fault(
    "cond.zero_cond_t_missing", at=("mod", "norm_out.mod"), title="text or head is modulated for a timestep of zero",
    fix="text stream and norm_out use temb's first half", seen="vllm-omni#776",
)  # fmt: skip
def wrong_half(p: TransformerPlace) -> Variants:
    """The second half, both, or every other sample."""
    if not _halved(p) or (p.kind == "mod" and p.stream == "img"):
        return
    yield "the second half", p.changed(temb=lambda: np.roll(p.temb(), len(p.temb()) // 2, axis=0))
    whole = lambda: p.linear(p.silu(p.temb()), p.layers()[0])  # noqa: E731
    yield "both halves", p.changed(recipe=whole)
    if len(p.temb()) > 2:
        yield "every other sample", p.changed(temb=lambda: np.concatenate([p.temb()[::2], p.temb()[1::2]]))


@fault(
    "cond.zero_cond_t_missing", at=("time.proj",), title="there is no timestep of zero for condition pictures",
    fix="timestep = concatenate([timestep, timestep * 0]) with zero_cond_t", seen="vllm-omni#776",
)  # fmt: skip
def timestep_missing(p: TransformerPlace) -> Variants:
    """Not doubled, or with something else in the second half."""
    given = lambda: p.fed("timestep")  # noqa: E731
    if not _halved(p):
        yield "doubled without the flag", p.changed(timestep=lambda: np.concatenate([given(), given() * 0]))
        return
    yield "not doubled", p.changed(timestep=given)
    yield "the timestep twice", p.changed(timestep=lambda: np.concatenate([given(), given()]))
    yield "zeros first", p.changed(timestep=lambda: np.concatenate([given() * 0, given()]))
    yield "ones for zeros", p.changed(timestep=lambda: np.concatenate([given(), given() * 0 + 1]))
    if len(given()) > 1:
        yield "alternating", p.changed(timestep=lambda: np.stack([given(), given() * 0], axis=1).reshape(-1))


@fault(
    "cond.additional_t_missing", at=("temb",), title="the additional condition is not added to the time embedding",
    fix="temb + addition_t_embedding.weight[additional_t_cond]",
)  # fmt: skip
def additional_t_missing(p: TransformerPlace) -> Variants:
    """Left out, or another row of its table."""
    index = p.optional("additional_t_cond")
    if index is None:
        return
    table = p.weight("time_text_embed.addition_t_embedding.weight")

    def added(rows: Array) -> TransformerPlace:
        return p.changed(recipe=lambda: p.recipe() - table[index] + rows)

    yield "left out", added(np.zeros_like(table[index]))
    yield "the other row", added(table[1 - index])
    for row in (0, 1):
        if (index != row).any() and (index == row).any():
            yield f"row {row} for all", added(np.broadcast_to(table[row], table[index].shape))
    yield "subtracted", added(-table[index])
    yield "added twice", added(2 * table[index])
