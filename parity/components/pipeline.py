"""A whole pipeline as a component: prompts and pictures in, a picture out, one stage for each denoising step.

B prompts, L latent tokens of the picture made, M of condition pictures, S text tokens, J text-encoder
width, C channels of a latent token, N tokens of a prompt with its template, n steps that are done, SS
one of them, H W pixels.

State keys. Inputs of a case: ``kind`` and, for each prompt, ``prompt.NN`` and ``negative.NN`` as UTF-8
in uint8 · ``size`` 2 int (height, width) · ``steps`` 1 int · ``sched.guidance`` 1 float64 ·
``latents`` B L C, the initial noise · ``image.NN`` H W 3 uint8 · of image-to-image and inpainting also
``strength_percent`` 1 int and ``posterior_noise`` 1 L C · of inpainting ``mask.00`` H W uint8 · of edits
``areas`` 2 int (pixels of a condition picture for the vision tower and for the VAE).
After ``pipeline.encode``, for the steps: ``latents`` · ``prompt_embeds`` B S J and, where tokens are
padding, ``prompt_mask`` B S bool · the same with ``negative_`` under guidance · ``sched.guidance`` ·
``sched.sigmas`` n + 1 and ``sched.timesteps`` n of the steps that are done · ``img_shapes`` pictures 3
int, of the picture made first · of edits ``image_latents`` B M C · of inpainting ``image_latents`` and
``noise`` B L C and ``repaint`` B L C bool. A step replaces ``latents``. After ``pipeline.decode``: ``image``
B H W 3 in 0…1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from parity.components.base import DTYPES, Case, Configs, State
from parity.components.transformer import PIXELS_PER_TOKEN
from parity.errors import UsageError
from parity.names import LEVELS, Graph, qwen_image_transformer

KINDS = ("text_to_image", "image_to_image", "inpaint", "edit", "edit_plus")
NOISED = ("image_to_image", "inpaint")
EDITS = ("edit", "edit_plus")

ENCODE, DECODE = "pipeline.encode", "pipeline.decode"
# Where the transformer's dataflow begins in the prompt, the latents and the timestep of a step.
_FED = {"img_in": "latents", "txt_norm": "embeds", "time.proj": "timestep"}


@dataclass(frozen=True, kw_only=True)
class PipelineCase(Case):
    """One request to a pipeline, its noise and its pictures drawn.

    Attributes:
        kind: one of `KINDS`.
        prompts: the batch; edits take one.
        negative: one for each prompt; none turns guidance off.
        image: (height, width) of the picture made, in pixels.
        steps: noise levels; image-to-image and inpainting leave the first of them out.
        guidance: scale of true classifier-free guidance; 1 or less turns it off.
        pictures: (height, width) of each picture given.
        strength: of image-to-image and inpainting, in whole percents.
        areas: of edits, the pixels of a condition picture as the vision tower and as the VAE is shown
            it. diffusers has 384² and 1024², which takes minutes without a GPU.
        inside: steps of which the transformer's own checkpoints are compared as well.
    """

    component: ClassVar[str] = "pipeline"
    plain: ClassVar[bool] = False

    kind: str
    prompts: tuple[str, ...]
    negative: tuple[str, ...] = ()
    image: tuple[int, int]
    steps: int
    guidance: float = 4.0
    pictures: tuple[tuple[int, int], ...] = ()
    strength: float | None = None
    areas: tuple[int, int] = (384 * 384, 1024 * 1024)
    inside: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise UsageError(f"case {self.name!r}: {problem}")

    def _problems(self) -> Iterator[str]:
        if self.kind not in KINDS:
            yield f"kind {self.kind!r} is none of {', '.join(KINDS)}"
        if min(self.image) < 1 or any(pixels % PIXELS_PER_TOKEN for pixels in self.image):
            yield f"image {self.image[0]} × {self.image[1]} is not of multiples of {PIXELS_PER_TOKEN} pixels"
        if not self.prompts or (self.kind in EDITS and len(self.prompts) != 1):
            yield f"{len(self.prompts)} prompts; an edit takes one, the others at least one"
        if self.negative and len(self.negative) != len(self.prompts):
            yield f"{len(self.negative)} negative prompts for {len(self.prompts)} prompts"
        wanted = {"text_to_image": (0, 0), "edit_plus": (1, 99)}.get(self.kind, (1, 1))
        if not wanted[0] <= len(self.pictures) <= wanted[1]:
            yield f"{len(self.pictures)} pictures for {self.kind}"
        if any(min(size) < 1 for size in (*self.pictures, self.areas)):
            yield "pictures and areas have at least one pixel"
        if (self.strength is not None) != (self.kind in NOISED):
            yield f"strength is {self.strength}; {' and '.join(NOISED)} need one, the others have none"
        if self.strength is not None and round(self.strength * 100) / 100 != self.strength:
            yield f"strength {self.strength} is not a whole percentage"
        # With a single step diffusers' scheduler divides 0 by 0 on its way to a terminal level.
        if self.steps < 2 or not 0 <= self.begin < self.steps:
            yield f"steps is {self.steps} and strength {self.strength}: expected 2 steps, and one that is done"
        if any(not 0 <= step < self.steps - self.begin for step in self.inside):
            yield f"inside {self.inside} is not within the {self.steps - self.begin} steps that are done"

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders of the checkpoint that the kind needs."""
        always = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
        return (*always, "processor") if self.kind in EDITS else always

    @property
    def begin(self) -> int:
        """Noise levels left out."""
        return 0 if self.strength is None else int(self.steps - self.steps * self.strength)

    @property
    def guided(self) -> bool:
        """Whether there are two predictions a step."""
        return bool(self.negative) and self.guidance > 1

    @property
    def image_tokens(self) -> int:
        """L."""
        height, width = self.image
        return height // PIXELS_PER_TOKEN * (width // PIXELS_PER_TOKEN)

    def looked_inside(self, steps: Sequence[int]) -> PipelineCase:
        """The same case with the transformer's checkpoints compared within these steps; -1 is the last.

        Raises:
            UsageError: there is no such step.
        """
        done = self.steps - self.begin
        return replace(self, inside=tuple(sorted({step + done if step < 0 else step for step in steps})))

    def describe(self) -> dict[str, Any]:
        """See `Case.describe`."""
        return {
            "kind": self.kind,
            "prompts": list(self.prompts),
            "negative": list(self.negative),
            "batch": len(self.prompts),
            "image": list(self.image),
            "image_tokens": self.image_tokens,
            "steps": self.steps - self.begin,
            "guidance": self.guidance if self.guided else None,
            "pictures": [list(size) for size in self.pictures],
            "strength": self.strength,
            "inside": list(self.inside),
            "seed": self.seed,
        }

    def graph(self, configs: Configs, level: str) -> dict[str, Any]:
        """See `Case.graph`; the function is `pipeline_graph`."""
        return {
            "name": self.component,
            "kind": self.kind,
            "layers": configs["transformer"]["num_layers"],
            "steps": self.steps - self.begin,
            "guided": self.guided,
            "pictures": len(self.pictures),
            "inside": list(self.inside),
            "level": level,
        }

    def inputs(self, configs: Configs, dtype: str) -> State:
        """See `Case.inputs`."""
        draw, channels = self.draw(), configs["transformer"]["in_channels"]
        shape = (len(self.prompts), self.image_tokens, channels)
        numbers: dict[str, list[int]] = {"size": list(self.image), "steps": [self.steps]}
        noise = {"latents": draw.standard_normal(shape, dtype=np.float32)}
        if self.kind in NOISED:
            numbers["strength_percent"] = [round(self.strength * 100)]
            noise["posterior_noise"] = draw.standard_normal((1, *shape[1:]), dtype=np.float32)
        if self.kind in EDITS:
            numbers["areas"] = list(self.areas)
        state = {"kind": _utf8(self.kind), "sched.guidance": np.array([self.guidance], np.float64)}
        for name, texts in (("prompt", self.prompts), ("negative", self.negative)):
            state |= {f"{name}.{index:02d}": _utf8(text) for index, text in enumerate(texts)}
        state |= {f"image.{index:02d}": draw_picture(draw, *size) for index, size in enumerate(self.pictures)}
        if self.kind == "inpaint":
            state["mask.00"] = draw_mask(*self.pictures[0])
        state |= {name: array.astype(DTYPES[dtype]) for name, array in noise.items()}
        return state | {name: np.array(values, np.int64) for name, values in numbers.items()}


def _utf8(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).copy()


def draw_picture(draw: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth picture with a bright disc and some grain, H W 3 uint8."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    phase = draw.uniform(0, 6.28, 3)
    waves = [0.5 + 0.3 * np.sin(5 * x + 3 * (c - 1) * y + phase[c]) for c in range(3)]
    picture = np.stack(waves, axis=-1)
    centre = draw.uniform(0.3, 0.7, 2)
    picture[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 0.04] = draw.uniform(0.6, 1, 3)
    grain = draw.normal(0, 0.02, picture.shape)
    return (np.clip(picture + grain, 0, 1) * 255).round().astype(np.uint8)


def draw_mask(height: int, width: int) -> np.ndarray:
    """White in the middle half of a picture, H W uint8."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height - height // 4, width // 4 : width - width // 4] = 255
    return mask


def pipeline_graph(
    kind: str,
    layers: int,
    steps: int,
    guided: bool,
    pictures: int,
    level: str,
    inside: tuple[int, ...] = (),
) -> Graph:
    """Graph of one pipeline.

    Args:
        kind: one of `KINDS`.
        layers: blocks of the transformer.
        steps: that are done.
        guided: two predictions a step.
        pictures: how many are given.
        level: ``kinds`` (what goes from stage to stage), ``block`` and ``full`` (also the vision tower's
            features and the timesteps). The names inside a step are those of the transformer's level.
        inside: steps with the transformer's own checkpoints.

    Raises:
        ValueError: an unknown level or kind.
    """
    if level not in LEVELS or kind not in KINDS:
        raise ValueError(f"level {level!r}, kind {kind!r}; known: {', '.join((*LEVELS, *KINDS))}")
    encoded = dict(_encode(kind, guided, pictures))
    parents, stage = dict(encoded), dict.fromkeys(encoded, ENCODE)
    transformer, wanted = qwen_image_transformer(layers), set(qwen_image_transformer(layers, level).expected)
    hidden = {"pipeline.features"} if level == "kinds" else set()
    for index in range(steps):
        here = f"step.{index:02d}"
        for name, its_parents in _step(kind, guided, index, transformer if index in inside else None):
            parents[name], stage[name] = its_parents, here
            _, _, within = name.removeprefix(f"{here}.").partition(".")
            if (within and within not in wanted) or (level == "kinds" and name == f"{here}.timestep"):
                hidden.add(name)
    parents["pipeline.image"], stage["pipeline.image"] = (f"step.{steps - 1:02d}.latents",), DECODE
    expected = tuple(name for name in parents if name not in hidden)
    exact = {"sigmas", "timesteps", "prompt_ids", "prompt_mask", "negative_ids", "negative_mask", "mask"}
    shown = {name for name in parents if name.startswith("pipeline.condition.")}
    equal = frozenset(shown | {f"pipeline.{name}" for name in exact} & parents.keys())
    return Graph(parents, stage, expected, equal, pictures=("pipeline.image",))


def _encode(kind: str, guided: bool, pictures: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names and parents of what happens before the steps."""
    seen: tuple[str, ...] = ()
    if kind in EDITS:
        shown = tuple(f"pipeline.condition.{index:02d}" for index in range(pictures))
        yield from ((name, ()) for name in shown)
        yield "pipeline.features", shown
        seen = ("pipeline.features",)
    for name in ("prompt", "negative") if guided else ("prompt",):
        yield f"pipeline.{name}_ids", ()
        yield f"pipeline.{name}_mask", (f"pipeline.{name}_ids",)
        yield f"pipeline.{name}_embeds", (f"pipeline.{name}_ids", *seen)
    yield "pipeline.sigmas", ()
    yield "pipeline.timesteps", ()
    if kind != "text_to_image":
        yield "pipeline.image_latents", ()
    yield "pipeline.latents", ("pipeline.image_latents", "pipeline.sigmas") if kind in NOISED else ()
    if kind == "inpaint":
        yield "pipeline.mask", ()


def _step(kind: str, guided: bool, index: int, inside: Graph | None) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names and parents of one denoising step."""
    here = f"step.{index:02d}"
    latents = "pipeline.latents" if index == 0 else f"step.{index - 1:02d}.latents"
    entering = (latents, "pipeline.image_latents") if kind in EDITS else (latents,)
    yield f"{here}.timestep", ("pipeline.timesteps",)
    sides = {"cond": "prompt", "uncond": "negative"} if guided else {"cond": "prompt"}
    for side, prompt in sides.items():
        fed = {
            "latents": entering,
            "embeds": (f"pipeline.{prompt}_embeds", f"pipeline.{prompt}_mask"),
            "timestep": (f"{here}.timestep",),
        }
        if inside is not None:
            for name, parents in inside.parents.items():
                outer = fed[_FED[name]] if name in _FED else ()
                yield f"{here}.{side}.{name}", (*outer, *(f"{here}.{side}.{parent}" for parent in parents))
        made_from = tuple(name for names in fed.values() for name in names)
        yield f"{here}.{side}", made_from if inside is None else (f"{here}.{side}.final",)
    yield f"{here}.noise_pred", tuple(f"{here}.{side}" for side in sides)
    kept = ("pipeline.image_latents", "pipeline.mask") if kind == "inpaint" else ()
    yield f"{here}.latents", (latents, f"{here}.noise_pred", "pipeline.sigmas", *kept)
