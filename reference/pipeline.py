"""diffusers' Qwen-Image pipelines, cut into what happens before the steps, the steps, and the decoding.

B prompts, L latent tokens of the picture made, M of condition pictures, S text tokens, J text-encoder
width, C channels of a latent token, H W pixels.

`encode`, `step` and `decode` are the three parts of the pipelines' ``__call__`` (diffusers 0.42.1):
what is a method there is called on the pipeline's own class, the lines between the methods are
written out. In float32 they give what the call gives, bit for bit. Noise is always injected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift, retrieve_timesteps
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions
from PIL import Image

from parity.tap import scope, tap
from reference import vae

Tensors = dict[str, Any]

PIPELINES: dict[str, type[DiffusionPipeline]] = {
    "text_to_image": QwenImagePipeline,
    "image_to_image": QwenImageImg2ImgPipeline,
    "inpaint": QwenImageInpaintPipeline,
    "edit": QwenImageEditPipeline,
    "edit_plus": QwenImageEditPlusPipeline,
}
# Which prompt template each takes, by the names and numbers of ``parity.components.text``.
TEMPLATES = {"edit": 1, "edit_plus": 2}
# The pipelines' default of max_sequence_length; those that edit do not heed it.
LONGEST_PROMPT = 512
# Of the VAE; a latent token has two of these each way.
PIXELS_PER_LATENT = 8


class Parts(Protocol):
    """The components, as `encode` asks for them.

    Attributes:
        dtype: of the computation.
        hold: of the run; see `step`.
    """

    device: torch.device
    dtype: torch.dtype
    hold: torch.dtype

    @property
    def vae(self) -> AutoencoderKLQwenImage:
        """With its weights."""

    @property
    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """A new one at each access."""

    def see(self, pictures: Sequence[np.ndarray]) -> Tensors:
        """image_features n J and image_grid_thw of pictures, H W 3 uint8 each."""

    def read(self, template: int, prompts: Sequence[str], seen: Tensors, longest: int) -> Tensors:
        """ids B N, prompt_embeds B S J, and prompt_mask B S bool unless all tokens count."""


@dataclass(frozen=True, eq=False)
class Request:
    """The inputs of a case; see ``parity.components.pipeline``.

    Attributes:
        latents: B L C, the initial noise. posterior_noise: 1 L C.
        pictures: H W 3 uint8 each. mask: H W uint8.
    """

    kind: str
    prompts: list[str]
    negative: list[str]
    size: tuple[int, int]
    steps: int
    guidance: float
    latents: torch.Tensor
    pictures: list[np.ndarray]
    mask: np.ndarray | None
    posterior_noise: torch.Tensor | None
    strength: float | None
    areas: tuple[int, int]

    @classmethod
    def of(cls, state: Tensors) -> Request:
        """Read a state."""
        many = {
            name: [state[key].cpu().numpy() for key in sorted(state) if key.startswith(f"{name}.")]
            for name in ("prompt", "negative", "image", "mask")
        }
        percent = state.get("strength_percent")
        return cls(
            kind=bytes(state["kind"].cpu().numpy()).decode(),
            prompts=[bytes(text).decode() for text in many["prompt"]],
            negative=[bytes(text).decode() for text in many["negative"]],
            size=tuple(state["size"].tolist()),
            steps=int(state["steps"]),
            guidance=float(state["sched.guidance"]),
            latents=state["latents"],
            pictures=many["image"],
            mask=many["mask"][0] if many["mask"] else None,
            posterior_noise=state.get("posterior_noise"),
            strength=None if percent is None else int(percent) / 100,
            areas=tuple(state["areas"].tolist()) if "areas" in state else (0, 0),
        )


def encode(parts: Parts, request: Request) -> Tensors:
    """What a pipeline's ``__call__`` does before its loop.

    Returns:
        the state that the steps need.
    """
    with scope("pipeline"):
        return _Encoding(parts, request).state()


class _Encoding:
    """One request with what is made of it; each method stands for a few lines of ``__call__``."""

    def __init__(self, parts: Parts, request: Request) -> None:
        self._parts, self._request = parts, request
        pipeline_class = PIPELINES[request.kind]
        components = dict.fromkeys(list(signature(pipeline_class).parameters))
        components["scheduler"] = parts.scheduler
        if request.pictures:
            components["vae"] = parts.vae
        self._pipeline = pipeline_class(**components)

    def state(self) -> Tensors:
        """Everything after ``pipeline.encode``, in the order of the calls."""
        return self._prompts() | self._levels() | self._latents()

    def _prompts(self) -> Tensors:
        seen: Tensors = {}
        if "edit" in self._request.kind:
            seen = self._parts.see(self._shown)
            tap("features", seen["image_features"])
        made = {}
        guided = bool(self._request.negative) and self._request.guidance > 1
        template = TEMPLATES.get(self._request.kind, 0)
        for name in ("prompt", "negative") if guided else ("prompt",):
            prompts = self._request.prompts if name == "prompt" else self._request.negative
            with scope(name):
                read = self._parts.read(template, prompts, seen, LONGEST_PROMPT)
            tap(f"{name}_ids", read["ids"])
            embeds, mask = tap(f"{name}_embeds", read["prompt_embeds"]), read.get("prompt_mask")
            tap(f"{name}_mask", torch.ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask)
            made[f"{name}_embeds"] = embeds
            if mask is not None:
                made[f"{name}_mask"] = mask
        return made

    @cached_property
    def _shown(self) -> list[np.ndarray]:
        """Condition pictures as the vision tower is shown them."""
        for_vision, for_vae = self._request.areas
        area = for_vae if self._request.kind == "edit" else for_vision
        shown = []
        for index, picture in enumerate(self._request.pictures):
            width, height = calculate_dimensions(area, picture.shape[1] / picture.shape[0])
            resized = self._pipeline.image_processor.resize(Image.fromarray(picture), height, width)
            shown.append(np.array(resized))
            tap(f"condition.{index:02d}", shown[-1].astype(np.int64))
        return shown

    def _levels(self) -> Tensors:
        request, scheduler = self._request, self._pipeline.scheduler
        config = scheduler.config
        mu = calculate_shift(
            request.latents.shape[1], config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5), config.get("max_shift", 1.15),
        )  # fmt: skip
        sigmas = np.linspace(1.0, 1 / request.steps, request.steps)
        timesteps, _ = retrieve_timesteps(scheduler, request.steps, self._parts.device, sigmas=sigmas, mu=mu)
        if request.strength is not None:
            timesteps, _ = self._pipeline.get_timesteps(request.steps, request.strength, self._parts.device)
        kept = scheduler.sigmas[-len(timesteps) - 1 :]
        return {"sched.sigmas": tap("sigmas", kept), "sched.timesteps": tap("timesteps", timesteps)}

    def _latents(self) -> Tensors:
        request = self._request
        grids = [request.size]
        made: Tensors = {"latents": request.latents}
        if request.kind in ("image_to_image", "inpaint"):
            made = self._noised_picture()
        if "edit" in request.kind:
            sizes, tokens = zip(*map(self._condition, request.pictures), strict=True)
            grids += sizes
            made["image_latents"] = tap("image_latents", torch.cat(tokens, dim=1))
        tap("latents", made["latents"])
        token = 2 * PIXELS_PER_LATENT
        return made | {"img_shapes": torch.tensor([(1, height // token, width // token) for height, width in grids])}

    def _condition(self, picture: np.ndarray) -> tuple[tuple[int, int], torch.Tensor]:
        """(height, width) that the VAE is shown a condition picture in, and its latents, 1 M C."""
        width, height = calculate_dimensions(self._request.areas[1], picture.shape[1] / picture.shape[0])
        pixels = self._pixels(picture, (height, width))
        # The mean of the posterior, for which the pipeline needs no noise.
        return (height, width), _packed(self._pipeline, self._pipeline._encode_vae_image(pixels, None))

    def _noised_picture(self) -> Tensors:
        """Latents of image-to-image, and what inpainting needs of them later."""
        request, pipeline = self._request, self._pipeline
        noise = request.latents
        posterior = pipeline.vae.encode(self._pixels(request.pictures[0], request.size)).latent_dist
        unpacked = pipeline._unpack_latents(request.posterior_noise, *request.size, PIXELS_PER_LATENT)
        latents = vae.normalize(pipeline.vae, posterior.mean + posterior.std * unpacked)
        latents = tap("image_latents", _packed(pipeline, latents).expand(noise.shape))
        timesteps = pipeline.scheduler.timesteps[pipeline.scheduler.begin_index :][:1].repeat(len(noise))
        made = {"latents": pipeline.scheduler.scale_noise(latents, timesteps, noise)}
        if request.mask is None:
            return made
        height, width = request.size
        mask = pipeline.mask_processor.preprocess(Image.fromarray(request.mask), height=height, width=width)
        mask = torch.nn.functional.interpolate(mask, size=unpacked.shape[-2:])
        repaint = _packed(pipeline, mask.repeat(1, noise.shape[2] // 4, 1, 1)[:, :, None]).bool().expand(noise.shape)
        repaint = repaint.to(noise.device)
        return made | {"image_latents": latents, "noise": noise, "repaint": tap("mask", repaint)}

    def _pixels(self, picture: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
        """1 3 1 H W in -1…1, as the run's dtype holds it."""
        height, width = size
        pixels = self._pipeline.image_processor.preprocess(Image.fromarray(picture), height=height, width=width)
        return pixels.unsqueeze(2).to(self._parts.device, self._parts.hold).to(self._parts.dtype)


def _packed(pipeline: DiffusionPipeline, latents: torch.Tensor) -> torch.Tensor:
    """B z 1 h w to B L C."""
    batch, channels, _, height, width = latents.shape
    return pipeline._pack_latents(latents, batch, channels, height, width)


def step(
    model: QwenImageTransformer2DModel,
    scheduler: FlowMatchEulerDiscreteScheduler,
    index: int,
    state: Tensors,
    hold: torch.dtype,
) -> torch.Tensor:
    """Body of the denoising loop.

    Args:
        model: the transformer.
        scheduler: of the model; its noise levels are those of the state.
        index: which of the steps that are done.
        state: see ``parity.components.pipeline``.
        hold: dtype of the run. The truth's timestep is the one that the run's dtype holds: another
            would be another point of the sinusoid.

    Returns:
        B L C, the latents after the step.
    """
    latents, timesteps = state["latents"], state["sched.timesteps"]
    scheduler.sigmas, scheduler.timesteps = state["sched.sigmas"], timesteps
    scheduler.set_begin_index(index)
    timestep = timesteps[index].expand(len(latents)).to(hold)
    # CUDA multiplies by the divisor's reciprocal and may be one unit off; the truth is divided.
    timestep = (timestep.cpu() / 1000).to(latents.device) if latents.dtype == torch.float64 else timestep / 1000
    with scope(f"step.{index:02d}"):
        timestep = tap("timestep", timestep.to(latents.dtype))
        noise_pred = tap("cond", _predict(model, "cond", "prompt", state, timestep))
        if "negative_embeds" in state:
            uncond = tap("uncond", _predict(model, "uncond", "negative", state, timestep))
            noise_pred = _guide(noise_pred, uncond, float(state["sched.guidance"]))
        tap("noise_pred", noise_pred)
        latents = scheduler.step(noise_pred, timesteps[index], latents, return_dict=False)[0]
        if "repaint" in state:
            latents = _put_back(scheduler, timesteps[index + 1 : index + 2], state, latents)
        return tap("latents", latents)


def _predict(
    model: QwenImageTransformer2DModel, name: str, prompt: str, state: Tensors, timestep: torch.Tensor
) -> torch.Tensor:
    """The velocity of the picture's own tokens, B L C; checkpoints inside are named below `name`."""
    latents = tokens = state["latents"]
    if "image_latents" in state and "repaint" not in state:
        tokens = torch.cat([latents, state["image_latents"]], dim=1)
    with scope(name):
        velocity = model(
            hidden_states=tokens,
            timestep=timestep,
            guidance=None,
            encoder_hidden_states_mask=state.get(f"{prompt}_mask"),
            encoder_hidden_states=state[f"{prompt}_embeds"],
            img_shapes=[state["img_shapes"]] * len(latents),
            attention_kwargs={},
            return_dict=False,
        )[0]
    return velocity[:, : latents.size(1)]


def _guide(cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
    combined = uncond + scale * (cond - uncond)
    cond_norm = torch.norm(cond, dim=-1, keepdim=True)
    combined_norm = torch.norm(combined, dim=-1, keepdim=True)
    return combined * (cond_norm / combined_norm)


def _put_back(
    scheduler: FlowMatchEulerDiscreteScheduler, following: torch.Tensor, state: Tensors, latents: torch.Tensor
) -> torch.Tensor:
    """Inpainting: the given picture, at the step's new noise level, where nothing is made anew."""
    kept = state["image_latents"]
    if len(following):
        kept = scheduler.scale_noise(kept, following, state["noise"])
    mask = state["repaint"].to(latents.dtype)
    return (1 - mask) * kept + mask * latents


def decode(model: AutoencoderKLQwenImage, state: Tensors) -> torch.Tensor:
    """What a pipeline's ``__call__`` does after its loop, up to the rounding: B H W 3 in 0…1.

    Args:
        model: the VAE.
        state: latents B L C and img_shapes, the first of which is the picture's.
    """
    processor = VaeImageProcessor(vae_scale_factor=2 * PIXELS_PER_LATENT)
    height, width = (2 * PIXELS_PER_LATENT * n for n in state["img_shapes"][0][1:])
    latents = QwenImagePipeline._unpack_latents(state["latents"], height, width, PIXELS_PER_LATENT)
    pictures = model.decode(vae.denormalize(model, latents), return_dict=False)[0][:, :, 0]
    with scope("pipeline"):
        return tap("image", processor.postprocess(pictures, output_type="pt").permute(0, 2, 3, 1))
