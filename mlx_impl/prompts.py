"""Prompts as diffusers 0.42.1's Qwen-Image pipelines give them to the text encoder, and what they take of it.

B prompts, N tokens with the template, S tokens behind its prefix, J width of the text encoder.

A template wraps each prompt; the tokens of its prefix are dropped from what the encoder makes, and rows are padded
with zeros to the longest. Tokens come from transformers' own Qwen2Tokenizer, on the files of the model.

Positions. The editing pipelines do not hand on which tokens are pictures (``mm_token_type_ids``), without which
transformers 5 numbers all tokens one after the other: ``positions="sequence"``, the default, is what diffusers 0.42.1
computes with transformers 5.24 (diffusers#14194). ``positions="grid"`` gives the tokens of a picture their rows and
columns, as the model was trained, as transformers 4 did, and as transformers 5 does when it is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from parity.tap import scope, tap

from .mrope import Grid, grid_positions, sequence_positions
from .text_config import TextEncoderConfig

if TYPE_CHECKING:
    from .text_encoder import Qwen2_5_VLTextModel, StreamedTextEncoder

# Longest prompt that the template of text-to-image leaves; the editing pipelines do not cut.
MAX_TOKENS = 1024
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"

_TEMPLATE = "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
_DESCRIBE = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background:"
)
_EDIT = (
    "Describe the key features of the input image (color, shape, size, texture, objects, background), then explain "
    "how the user's text instruction should alter or modify the image. Generate a new image that meets the user's "
    "requirements while maintaining consistency with the original input where appropriate."
)


@dataclass(frozen=True)
class Template:
    """What a pipeline puts around a prompt.

    Attributes:
        system: text of the system's turn.
        drop: tokens of the prefix, up to the user's turn.
        editing: pictures go before the prompt, and nothing is cut.
        numbered: pictures have names, ``Picture 1: ``, and there may be several or none.
    """

    system: str
    drop: int
    editing: bool = False
    numbered: bool = False

    def wrap(self, prompt: str, pictures: int) -> str:
        """The whole text of one prompt."""
        if self.numbered:
            shown = "".join(f"Picture {number}: {PICTURE}" for number in range(1, pictures + 1))
        else:
            shown = PICTURE if self.editing else ""
        return _TEMPLATE.format(system=self.system, user=shown + prompt)


TEMPLATES = {
    "image": Template(_DESCRIBE, 34),
    "edit": Template(_EDIT, 64, editing=True),
    "edit_plus": Template(_EDIT, 64, editing=True, numbered=True),
}
POSITIONS = ("sequence", "grid")


@dataclass(frozen=True)
class Tokens:
    """Prompts as the encoder takes them.

    Attributes:
        ids: B N int64.
        mask: B N bool, True for tokens that count.
        position_ids: B 3 N int64, frame, row and column.
        drop: tokens of the template's prefix.
        editing: whether it is a template of an editing pipeline, which do not shorten what they made.
        features: rows that the vision tower makes of the pictures; the encoder must be given so many.
    """

    ids: np.ndarray
    mask: np.ndarray
    position_ids: np.ndarray
    drop: int
    editing: bool
    features: int


class Prompter:
    """Turns prompts into tokens.

    Args:
        root: the folder of the whole model, with ``tokenizer`` and ``text_encoder`` in it.

    Raises:
        FileNotFoundError: there is no tokenizer.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root)
        if not (self._root / "tokenizer" / "tokenizer_config.json").is_file():
            raise FileNotFoundError(f"{self._root} has no tokenizer/tokenizer_config.json")

    def __call__(
        self,
        prompts: Sequence[str],
        template: str = "image",
        grids: Sequence[Grid] = (),
        *,
        positions: str = "sequence",
    ) -> Tokens:
        """Wrap prompts into a template and turn them into tokens, padded to the longest.

        Args:
            prompts: one for each picture to be made.
            template: ``image`` (text-to-image, image-to-image, inpaint), ``edit`` or ``edit_plus``.
            grids: (frames, rows, columns) in patches of the pictures that an editing template shows.
            positions: ``sequence`` or ``grid``; see the head of the file.

        Raises:
            ValueError: an unknown template or setting, text that is no Unicode, a number of pictures that does
                not fit the prompts, or picture tokens within a prompt to be edited by.
        """
        wanted = _known("template", template, TEMPLATES)
        _known("positions", positions, dict.fromkeys(POSITIONS))
        if isinstance(prompts, str) or not prompts:
            raise ValueError("prompts: expected a list of at least one")
        texts = [wanted.wrap(_checked(prompt), len(grids)) for prompt in prompts]
        if wanted.editing:
            texts = self._expanded(texts, grids)
            found = self._processor_tokenizer(texts, padding=True)
        elif grids:
            raise ValueError(f"template {template!r} shows no pictures, but {len(grids)} are given")
        else:
            longest = MAX_TOKENS + wanted.drop
            found = self._tokenizer(texts, padding=True, truncation=True, max_length=longest)
        ids = np.array(found["input_ids"], np.int64)
        mask = np.array(found["attention_mask"], np.int64).astype(bool)
        if positions == "grid" and grids:
            config = self._config
            position_ids = grid_positions(ids, mask, grids, config.image_token_id, config.spatial_merge_size)
        else:
            position_ids = sequence_positions(mask)
        features = sum(map(self._tokens_of, grids))
        return Tokens(ids, mask, position_ids, wanted.drop, wanted.editing, features)

    def _tokens_of(self, grid: Grid) -> int:
        return int(np.prod(grid)) // self._config.spatial_merge_size**2

    def _expanded(self, texts: Sequence[str], grids: Sequence[Grid]) -> list[str]:
        """As many picture tokens as the vision tower makes, for each one; transformers' Qwen2VLProcessor.

        Raises:
            ValueError: the number of pictures does not fit. A picture token in a prompt counts, as there.
        """
        counts = [text.count(IMAGE_TOKEN) for text in texts]
        if sum(counts) != len(grids):
            raise ValueError(
                f"{len(texts)} prompts have {sum(counts)} pictures ({IMAGE_TOKEN}), but {len(grids)} are given; "
                "the editing pipelines take one prompt at a time"
            )
        if any(VIDEO_TOKEN in text for text in texts):
            raise ValueError(f"a prompt has {VIDEO_TOKEN}, but there are no videos")
        pending = iter(grids)
        expanded = []
        for text in texts:
            first, *others = text.split(IMAGE_TOKEN)
            shown = (IMAGE_TOKEN * self._tokens_of(next(pending)) + other for other in others)
            expanded.append(first + "".join(shown))
        return expanded

    @cached_property
    def _config(self) -> TextEncoderConfig:
        return TextEncoderConfig.from_folder(self._root / "text_encoder")

    @cached_property
    def _tokenizer(self) -> Any:
        return _load(self._root / "tokenizer")

    @cached_property
    def _processor_tokenizer(self) -> Any:
        """The editing pipelines use the one that their processor brings."""
        folder = self._root / "processor"
        return _load(folder) if (folder / "tokenizer_config.json").is_file() else self._tokenizer


def encode(
    model: Qwen2_5_VLTextModel | StreamedTextEncoder,
    tokens: Tokens,
    image_features: mx.array | None = None,
    max_sequence_length: int = MAX_TOKENS,
) -> tuple[mx.array, mx.array | None]:
    """Prompt embeddings as the pipelines give them to the transformer.

    Args:
        image_features: n J, what the vision tower makes of all pictures.
        max_sequence_length: S at most; the editing pipelines of diffusers do not heed it.

    Returns:
        B S J in the model's dtype, and B S bool, None where all tokens count.

    Raises:
        ValueError: features that do not fit the pictures, or none for them; see also `check_max_sequence_length`.
    """
    check_max_sequence_length(max_sequence_length)
    given = 0 if image_features is None else len(image_features)
    if given != tokens.features:
        raise ValueError(f"{given} rows of picture features, but the prompts' pictures make {tokens.features}")
    hidden = model(tokens.ids, tokens.mask, tokens.position_ids, image_features)
    return extract(hidden, tokens.mask, tokens.drop, None if tokens.editing else max_sequence_length)


def check_max_sequence_length(length: int) -> None:
    """Raise a ValueError where the pipelines would, or would go on with no token at all."""
    if not 1 <= length <= MAX_TOKENS:
        raise ValueError(f"max_sequence_length is {length}, expected 1 … {MAX_TOKENS}")


def extract(
    hidden: mx.array, mask: np.ndarray, drop: int, max_sequence_length: int | None
) -> tuple[mx.array, mx.array | None]:
    """Take the tokens that count, without the first `drop` of each prompt, and pad with zeros to the longest.

    Args:
        hidden: B N J. mask: B N bool.
        max_sequence_length: S at most, or None.

    Returns:
        B S J, and B S bool, None where all of them count.
    """
    lengths = np.maximum(mask.sum(axis=1) - drop, 0)
    # Where in its row each kept token lies; tokens that don't count come last.
    order = np.argsort(~mask, axis=1, kind="stable")[:, drop : drop + lengths.max()]
    kept = np.arange(lengths.max()) < lengths[:, None]
    if max_sequence_length is not None:
        order, kept = order[:, :max_sequence_length], kept[:, :max_sequence_length]
    embeds = mx.take_along_axis(hidden, mx.array(order)[..., None], axis=1)
    embeds = mx.where(mx.array(kept)[..., None], embeds, mx.array(0, embeds.dtype))
    with scope("text"):
        embeds, kept = tap("prompt_embeds", embeds), tap("prompt_mask", mx.array(kept))
    return embeds, None if bool(mx.all(kept)) else kept


def _checked(prompt: str) -> str:
    """The prompt, if it can be written in UTF-8: half of a surrogate pair is no character."""
    if not isinstance(prompt, str):
        raise ValueError(f"a prompt is {type(prompt).__name__}, expected str")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"prompt: character {error.start} is U+{ord(prompt[error.start]):04X}, half of a surrogate pair: "
            "the text was decoded wrongly"
        ) from None
    return prompt


def _known(what: str, name: str, known: dict[str, Any]) -> Any:
    if name not in known:
        raise ValueError(f"{what} {name!r} is none of {', '.join(known)}")
    return known[name]


def _load(folder: Path) -> Any:
    """The tokenizer of a folder; transformers takes a second to import."""
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer.from_pretrained(folder)
