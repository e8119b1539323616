"""Editing with several pictures, as diffusers' ``QwenImageEditPlusPipeline``.

The transformer of Edit-2511 treats condition pictures as free of noise (``zero_cond_t`` of its
config); the pipeline is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..images import CONDITION_AREA
from .edit import Edit


@dataclass(frozen=True, kw_only=True, eq=False)
class EditPlus(Edit):
    """A picture made from others as the prompt says; it calls them Picture 1, Picture 2 and so on.

    Attributes:
        pictures: H W 3 uint8 each, at least one.
        condition_area: pixels of a condition picture as the vision tower is shown it.
    """

    template: ClassVar[str] = "edit_plus"

    condition_area: int = CONDITION_AREA

    @property
    def _condition_area(self) -> int:
        return self.condition_area

    def _check_count(self) -> None:
        if not self.pictures:
            raise ValueError("no picture to edit, expected at least one")
