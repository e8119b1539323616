"""Faults of prompts before and behind the text encoder: templates, the dropped prefix, truncation, padding.

There is no tokenizer here: what a candidate's ids are is told from the truth's own ids.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from parity.diagnosis.fault import fault
from parity.diagnosis.faults.inside import component_fault
from parity.diagnosis.place import Array, Place, Variants
from parity.diagnosis.recipes.pipeline import PipelinePlace
from parity.diagnosis.recipes.text import PREFIX, TextPlace

# Tokens behind the prompt in every template: <|im_end|>, a line feed, <|im_start|>, assistant, a line feed.
SUFFIX = 5
_IDS = {"text": ("text.ids",), "pipeline": ("pipeline.prompt_ids", "pipeline.negative_ids")}
_MASKS = {"text": ("text.mask", "text.prompt_mask"), "pipeline": ("pipeline.prompt_mask", "pipeline.negative_mask")}
_TAKEN = ("text.prompt_embeds", "text.prompt_mask")
Rows = list[Array]


def _ids_fault(code: str, *, title: str, fix: str, seen: str = "") -> Callable:
    def enter(function: Callable[[Place], Variants]) -> Callable[[Place], Variants]:
        for component, kinds in _IDS.items():
            fault(code, at=kinds, title=title, fix=fix, seen=seen, component=component)(function)
        return function

    return enter


def _rows(p: Place) -> Rows:
    """The truth's ids of each prompt without padding, which are zeros."""
    ids = p.values.truth[p.name]
    mask = p.values.truth.get("text.mask")
    if mask is None:
        kept = p.values.truth[p.name.replace("_ids", "_mask")].sum(1) + _prefix(p)
        return [row[: int(n)] for row, n in zip(ids, kept, strict=True)]
    return [row[counts] for row, counts in zip(ids, mask, strict=True)]


def _prefix(p: Place) -> int:
    return PREFIX[p.template()]


def _padded(p: Place, rows: Rows, *, left: bool = False) -> Array:
    """Rows beside one another, padded as the truth's are."""
    ids = p.values.truth[p.name]
    lengths = [len(row) for row in _rows(p)]
    shortest = int(np.argmin(lengths))
    pad = ids[shortest, -1] if lengths[shortest] < ids.shape[1] else 0
    length = max(len(row) for row in rows)
    filled = [np.full(length - len(row), pad, ids.dtype) for row in rows]
    return np.stack([np.concatenate([f, row] if left else [row, f]) for row, f in zip(rows, filled, strict=True)])


def _with(p: Place, rows: Rows, *, left: bool = False) -> Place:
    made = _padded(p, rows, left=left)
    return p.changed(ids=lambda: made) if p.component == "text" else p.changed(given=lambda: made)


@_ids_fault("prompt.template", title="the template around the prompt is missing, doubled or another",
            fix="wrap each prompt once in the pipeline's template, system turn first", seen="the guide")  # fmt: skip
def template(p: Place) -> Variants:
    rows, drop = _rows(p), _prefix(p)
    inner = [row[drop:-SUFFIX] for row in rows]
    yield "no template", _with(p, inner)
    yield "no system turn", _with(p, [row[drop:] for row in rows])
    yield "twice", _with(p, [np.concatenate([row[:drop], row, row[-SUFFIX:]]) for row in rows])
    yield "prefix twice", _with(p, [np.concatenate([row[:drop], row]) for row in rows])
    yield "suffix twice", _with(p, [np.concatenate([row, row[-SUFFIX:]]) for row in rows])
    yield "suffix missing", _with(p, [row[:-SUFFIX] for row in rows])
    yield "an end behind the prompt in place of the suffix", _with(p, [row[: -SUFFIX + 1] for row in rows])
    yield "prompt missing", _with(p, [np.concatenate([row[:drop], row[-SUFFIX:]]) for row in rows])
    for cut in range(1, SUFFIX):
        yield f"the last {cut} tokens of the suffix missing", _with(p, [row[:-cut] for row in rows])
    for cut in range(1, drop):
        yield f"the first {cut} tokens missing", _with(p, [row[cut:] for row in rows])
    system = slice(0, drop - 3)
    yield "no turn of the user", _with(p, [np.concatenate([row[system], row[drop:]]) for row in rows])


@_ids_fault("prompt.template", title="tokens are added around the template",
            fix="tokenize the wrapped text as it is, without a begin or end token of the tokenizer's own")  # fmt: skip
def added_tokens(p: Place) -> Variants:
    """Any one token in front or behind, taken of the candidate itself."""
    rows, ids = _rows(p), p.values.captured.get(p.name)
    if ids is None or ids.shape[1] <= max(map(len, rows)):
        return
    first = ids[0, 0]
    last = [own[len(row)] for own, row in zip(ids, rows, strict=True)]
    yield f"token {int(first)} in front", _with(p, [np.concatenate([[first], row]) for row in rows])
    yield (
        f"token {int(last[0])} behind",
        _with(p, [np.concatenate([row, [one]]) for row, one in zip(rows, last, strict=True)]),
    )


@_ids_fault("prompt.template", title="another template is wrapped around the prompt",
            fix="text-to-image and editing have templates of their own; take the pipeline's")  # fmt: skip
def other_template(p: Place) -> Variants:
    """The prompt is there, whatever is around it: of the candidate's own ids what differs is told."""
    rows, ids, drop = _rows(p), p.values.captured.get(p.name), _prefix(p)
    if ids is None or len(ids) != len(rows):
        return
    inner = [row[drop:] for row in rows]
    ends = [_found(own, part) for own, part in zip(ids, inner, strict=True)]
    if any(start is None for start in ends) or all(
        np.array_equal(o[:drop], r[:drop]) for o, r in zip(ids, rows, strict=True)
    ):
        return
    prefixes = [own[:start] for own, start in zip(ids, ends, strict=True)]
    if len({tuple(one.tolist()) for one in prefixes}) > 1 or not len(prefixes[0]):
        return
    yield (
        f"a prefix of {len(prefixes[0])} tokens that is not the pipeline's",
        _with(p, [np.concatenate([one, part]) for one, part in zip(prefixes, inner, strict=True)]),
    )


def _found(row: Array, part: Array) -> int | None:
    """Where a run of ids begins in a row."""
    places = [i for i in range(len(row) - len(part) + 1) if np.array_equal(row[i : i + len(part)], part)]
    return places[-1] if places else None


@_ids_fault("prompt.truncation", title="prompts are cut at another length",
            fix="cut at 1024 tokens and the template's prefix, and do not pad to that length")  # fmt: skip
def truncation(p: Place) -> Variants:
    rows, drop = _rows(p), _prefix(p)
    longest = max(map(len, rows))
    for limit in (77, 128, 226, 256, 300, 512, 1024):
        for length in (limit, limit + drop):
            if length < longest:
                yield f"at {length} tokens", _with(p, [row[:length] for row in rows])
                yield f"to the last {length} tokens", _with(p, [row[-length:] for row in rows])
    own = p.values.captured.get(p.name)
    if own is not None and own.shape[1] < longest:
        yield f"at {own.shape[1]} tokens", _with(p, [row[: own.shape[1]] for row in rows])
        keep = own.shape[1] - SUFFIX
        yield (
            f"at {own.shape[1]} tokens with the suffix kept",
            _with(p, [np.concatenate([row[:-SUFFIX][:keep], row[-SUFFIX:]]) for row in rows]),
        )


@_ids_fault("prompt.padding", title="rows of a batch are padded otherwise",
            fix="pad behind the prompt, to the longest of the batch, with the tokenizer's padding token")  # fmt: skip
def padding(p: Place) -> Variants:
    rows = _rows(p)
    yield "in front", _with(p, rows, left=True)
    own = p.values.captured.get(p.name)
    lengths = [len(row) for row in rows]
    if own is None or own.shape[0] != len(rows):
        return
    short = int(np.argmin(lengths))
    if lengths[short] < own.shape[1]:
        pad = own[short, -1]
        filled = np.full((len(rows), own.shape[1]), pad, own.dtype)
        for made, row in zip(filled, rows, strict=True):
            made[: len(row)] = row[: own.shape[1]]
        yield (
            f"with token {int(pad)} to {own.shape[1]} tokens",
            (p.changed(ids=lambda: filled) if p.component == "text" else p.changed(given=lambda: filled)),
        )
    yield "prompts in another order", _with(p, rows[::-1])


@component_fault("prompt.drop_prefix", "text", at=_TAKEN, title="another number of the prefix's tokens is dropped",
                 fix="of the tokens that count drop 34 for text-to-image, 64 for editing")  # fmt: skip
def drop_prefix(p: TextPlace) -> Variants:
    own = p.drop()
    for count in range(0, 2 * max(PREFIX) + 1):
        if count != own:
            yield f"{count} for {own}", p.changed(drop=lambda n=count: n)
    yield "the last ones instead of the first", p.changed(taken=lambda rows: rows[:-own])
    yield "suffix dropped too", p.changed(taken=lambda rows: p.taken(rows)[:-SUFFIX])
    yield "zeros in their place", p.changed(taken=lambda rows: np.concatenate([rows[:own] * 0, rows[own:]]))


@fault("prompt.drop_prefix", at=_MASKS["pipeline"], component="pipeline",
       title="another number of the prefix's tokens is dropped",
       fix="of the tokens that count drop 34 for text-to-image, 64 for editing")  # fmt: skip
def mask_drop_prefix(p: PipelinePlace) -> Variants:
    own = PREFIX[p.template()]
    for count in range(0, 2 * max(PREFIX) + 1):
        if count != own:
            yield f"{count} for {own}", p.changed(recipe=lambda n=count: p.mask_behind(n))


@component_fault("prompt.truncation", "text", at=_TAKEN, title="prompt embeddings are cut at another length",
                 fix="cut at max_sequence_length behind the prefix; the editing pipelines do not cut")  # fmt: skip
def embeds_truncation(p: TextPlace) -> Variants:
    own = p.longest()
    length = int(p.mask().sum(1).max()) - p.drop()
    yield "not cut", p.changed(longest=lambda: None)
    if own is not None:
        yield "the prefix counted in", p.changed(longest=lambda: own - p.drop())
        yield "the prefix added", p.changed(longest=lambda: own + p.drop())
        yield (
            "to the last tokens",
            p.changed(padded=lambda rows: p.changed(longest=lambda: None).padded(rows)[:, -own:]),
        )
    for limit in sorted({77, 128, 226, 256, 300, 512, 1024} | _own_length(p)):
        if limit < length:
            yield f"at {limit}", p.changed(longest=lambda n=limit: n)


def _own_length(p: TextPlace) -> set[int]:
    found = p.values.captured.get(p.name)
    return set() if found is None or found.ndim < 2 else {found.shape[1]}


@component_fault("prompt.padding", "text", at=("text.prompt_embeds",),
                 title="rows behind shorter prompts are not zeros, or in another place",
                 fix="take the tokens that count and pad with zeros behind them")  # fmt: skip
def embeds_padding(p: TextPlace) -> Variants:
    def shifted(rows: Rows) -> Array:
        length = max(map(len, rows))
        return np.stack([np.concatenate([np.zeros((length - len(r), *r.shape[1:])), r]) for r in rows])

    def repeated(rows: Rows) -> Array:
        length = max(map(len, rows))
        return np.stack([np.concatenate([r, np.repeat(r[-1:], length - len(r), axis=0)]) for r in rows])

    yield "in front", p.changed(padded=shifted)
    yield "the last row repeated", p.changed(padded=repeated)
    yield "prompts in another order", p.changed(padded=lambda rows: p.padded(rows[::-1]))


@fault("prompt.mask", at=_MASKS["text"], component="text", title="the mask of tokens that count is another",
       fix="1 for each token of a prompt and its template, 0 for padding")  # fmt: skip
@fault("prompt.mask", at=_MASKS["pipeline"], component="pipeline", title="the mask of tokens that count is another",
       fix="1 for each token of a prompt behind the prefix, 0 for padding")  # fmt: skip
def mask(p: Place) -> Variants:
    own = p.recipe()
    ways = {
        "1 everywhere": np.ones_like(own), "0 everywhere": np.zeros_like(own), "inverted": ~(own != 0),
        "padding in front": own[:, ::-1], "one token too long": own | np.roll(own, 1, axis=1),
        "one token too short": own & np.roll(own, -1, axis=1), "prompts in another order": own[::-1],
        "the first prompt's for all": np.broadcast_to(own[:1], own.shape),
    }  # fmt: skip
    for what, way in ways.items():
        yield what, p.changed(recipe=lambda w=way: w)
