"""Recipes of the pipelines: noise levels, guidance, Euler steps, the picture; and what the components inside them make.

B prompts, L latent tokens of the picture made, M of condition pictures, C channels of a latent token, S text tokens.

Inside a step the transformer's own recipes are used. Text encoder and VAE leave no checkpoints of their own in a
pipeline: they are computed as a whole from what went into them, where that is little enough. What has been through a
picture library or a tokenizer is only held against the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from parity.components.text import text_graph
from parity.components.vae import vae_graph
from parity.diagnosis.place import Array, Place, Values
from parity.diagnosis.recipes.scheduler import LevelsPlace
from parity.diagnosis.recipes.text import PREFIX, TextPlace
from parity.diagnosis.recipes.transformer import TransformerPlace
from parity.diagnosis.recipes.vae import VaePlace
from parity.diagnosis.recipes.whole import Change, Whole
from parity.names import block_stage, qwen_image_transformer

# Which prompt each prediction of a step is made for.
SIDES = {"cond": "prompt", "uncond": "negative"}
# What the truth is only held equal to: there is nothing it is computed from without a tokenizer or a library.
_GIVEN = ("prompt_ids", "negative_ids", "mask", "image_latents")
# Of a prompt; the pipelines' own default.
LONGEST_PROMPT = 512
# Multiplications for which a whole component is computed; some seconds.
AFFORDABLE = 2e10


class InnerPlace(TransformerPlace):
    """A checkpoint of the transformer inside a step.

    Args:
        values: of the transformer alone.
        name: as the pipeline calls it.
        own: as the transformer calls it.
    """

    def __init__(self, values: Values, name: str, own: str) -> None:
        super().__init__(values, own)
        self.name = name

    @classmethod
    def at(cls, values: Values, name: str) -> Place:
        """See `Place.at`."""
        return cls(values, name, name)

    def fed(self, key: str) -> Array:
        """See `Place.fed`; a stream as it enters the block, or the last norm."""
        if key not in ("img", "txt"):
            return super().fed(key)
        before = self.config["num_layers"] if self.block is None else self.block
        return self.values[f"{key}_in" if before == 0 else f"{block_stage(before - 1)}.{key}.out"]


class PipelinePlace(LevelsPlace):
    """A checkpoint of a pipeline."""

    component: ClassVar[str] = "pipeline"

    @classmethod
    def at(cls, values: Values, name: str) -> Place:
        """See `Place.at`: inside a step it is the transformer's."""
        unit, _, rest = name.partition(".")
        index, _, rest = rest.partition(".")
        side, _, own = rest.partition(".")
        if unit == "step" and side in SIDES and own:
            return InnerPlace(_transformer(values, f"step.{index}", side), name, own)
        return cls(values, name)

    @staticmethod
    def state_key(name: str) -> str:
        """See `Place.state_key`."""
        if name.startswith("step.") and name.endswith(".latents"):
            return "latents"
        own = name.removeprefix("pipeline.")
        return {"sigmas": "sched.sigmas", "timesteps": "sched.timesteps", "mask": "repaint"}.get(own, own)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `LevelsPlace.settings`."""
        return self.config["scheduler"]

    def tokens(self) -> int:
        """See `LevelsPlace.tokens`."""
        return self.fed("latents").shape[1]

    @property
    def pipeline_kind(self) -> str:
        """One of `parity.components.pipeline.KINDS`; known before the steps."""
        return bytes(self.values.state["kind"]).decode()

    @property
    def scope(self) -> str:
        """``step.07``."""
        return f"step.{self.block:02d}"

    def of(self, kind: str) -> Array:
        """A checkpoint of the same step."""
        return self.values[f"{self.scope}.{kind}"]

    def given(self) -> Array:
        """What the truth has, for what is not computed."""
        return self.values.truth[self.name]

    # Before the steps.

    def kept(self, levels: Array) -> Array:
        """Those of the steps that are done."""
        return levels[self.begin() :]

    def noised(self, latents: Array) -> Array:
        """The given picture at the first noise level; without one, the noise that was handed in."""
        noise = self.fed("latents")
        return self.mixed(latents, noise, self.values["pipeline.sigmas"][0])

    def _latents_before(self) -> Array:
        if self.pipeline_kind in ("image_to_image", "inpaint"):
            return self.noised(self.values["pipeline.image_latents"])
        return self.fed("latents")

    def template(self) -> int:
        """Index into `parity.components.text.TEMPLATES`."""
        return {"edit": 1, "edit_plus": 2}.get(self.pipeline_kind, 0)

    def counts(self, prompt: str) -> Array:
        """How many of a prompt's ids are no padding, B; told from the truth's."""
        ids, truth = (of[f"pipeline.{prompt}_ids"] for of in (self.values, self.values.truth))
        kept = self.values.truth[f"pipeline.{prompt}_mask"].sum(1) + PREFIX[self.template()]
        if np.array_equal(ids, truth):
            return kept
        shortest = int(np.argmin(kept))
        if kept[shortest] == truth.shape[1]:
            return np.full(len(ids), ids.shape[1])
        return np.array([len(np.trim_zeros(row - truth[shortest, -1], "b")) for row in ids])

    def _mask(self) -> Array:
        prompt = self.kind.removeprefix("pipeline.").removesuffix("_mask")
        if np.array_equal(self.values[f"pipeline.{prompt}_ids"], self.values.truth[f"pipeline.{prompt}_ids"]):
            return self.given()
        return self.mask_behind(PREFIX[self.template()])

    def mask_behind(self, drop: int) -> Array:
        """Which tokens count behind a prefix of `drop`, B S bool."""
        counts = self.counts(self.kind.removeprefix("pipeline.").removesuffix("_mask")) - drop
        return (np.arange(max(counts.max(), 0)) < counts[:, None])[:, :LONGEST_PROMPT]

    def encoded(self, change: Change | None = None) -> Array:
        """What the text encoder makes of the candidate's own tokens, B S J."""
        prompt = self.kind.removeprefix("pipeline.").removesuffix("_embeds")
        return self.text_encoder(prompt, change)["text.prompt_embeds"]

    def text_encoder(self, prompt: str, change: Change | None = None) -> Whole:
        """The text encoder on a prompt's ids, with a fault everywhere.

        Raises:
            KeyError: it is too large.
        """
        ids = self.values[f"pipeline.{prompt}_ids"]
        config = self.config["text_encoder"]
        shape = config.get("text_config") or config
        layer = shape["hidden_size"] * (4 * shape["hidden_size"] + 3 * shape["intermediate_size"])
        _check_affordable(shape["num_hidden_layers"] * layer * ids.size, "text encoder")
        mask = np.arange(ids.shape[1]) < self.counts(prompt)[:, None]
        fed = {"template": np.array(self.template()), "max_sequence_length": np.array(LONGEST_PROMPT)}
        if "edit" in self.pipeline_kind:
            fed["image_features"] = self.values["pipeline.features"]
        captured = {"text.ids": ids, "text.mask": mask}
        graph = text_graph(shape["num_hidden_layers"])
        weights = self.values.weights["text_encoder"]
        return Whole(TextPlace, graph, "", captured, fed, weights, config, truth=captured, change=change)

    # A step.

    def timestep(self) -> Array:
        """0…1 as the transformer takes it, B; in the run's dtype, even in the truth."""
        state = self.values.state["latents"]
        timestep = self.fed("sched.timesteps")[self.block]

        def hold(x: Array) -> Array:
            return np.asarray(x).astype(state.dtype)

        share = hold(hold(timestep) / hold(np.float64(1000))).astype(np.float64)
        return np.full(len(state), share)

    def guidance(self) -> float:
        """The scale."""
        return self.fed("sched.guidance").item()

    def combined(self, cond: Array, uncond: Array) -> Array:
        """uncond + scale·(cond - uncond)."""
        return self.rounded(uncond + self.rounded(self.guidance() * self.rounded(cond - uncond)))

    def norm(self, x: Array) -> Array:
        """Of each token, B L 1."""
        return self.rounded(np.linalg.norm(x, axis=-1, keepdims=True))

    def rescaled(self, combined: Array, cond: Array) -> Array:
        """With the norm that each token has in `cond`."""
        return self.rounded(combined * self.rounded(self.norm(cond) / self.norm(combined)))

    def cond(self) -> Array:
        """The prediction for the prompt."""
        return self.of("cond")

    def uncond(self) -> Array:
        """The prediction for the negative prompt."""
        return self.of("uncond")

    def guided(self) -> bool:
        """Whether there are two predictions."""
        return f"{self.scope}.uncond" in self.values.graph.parents

    def noise_pred(self) -> Array:
        """The velocity of the step."""
        if not self.guided():
            return self.cond()
        cond = self.cond()
        return self.rescaled(self.combined(cond, self.uncond()), cond)

    def own_tokens(self, velocity: Array) -> Array:
        """Those of the picture made, which come first."""
        return velocity[:, : self.fed("latents").shape[1]]

    def _predicted(self) -> Array:
        if f"{self.name}.final" not in self.values.graph.parents:
            raise KeyError(self.name)
        return self.own_tokens(self.values[f"{self.name}.final"])

    def moved(self, latents: Array, velocity: Array) -> Array:
        """Latents behind the scheduler's step."""
        return self.euler(latents, velocity, self.block)

    def put_back(self, latents: Array) -> Array:
        """Inpainting: the given picture at the step's new noise level where nothing is made anew."""
        back, sigma = self.fed("image_latents"), self.sigma(self.block + 1)
        if self.block + 1 < len(self.values.state["sched.timesteps"]):
            back = self.mixed(back, self.fed("noise"), sigma)
        return np.where(self.fed("repaint") != 0, latents, back)

    def _latents_after(self) -> Array:
        moved = self.moved(self.fed("latents"), self.of("noise_pred"))
        return self.put_back(moved) if "repaint" in self.values.state else moved

    # The picture.

    def grid(self) -> tuple[int, int]:
        """Rows and columns of latent tokens."""
        _, rows, columns = self.fed("img_shapes")[0].tolist()
        return int(rows), int(columns)

    def unpacked(self, tokens: Array) -> Array:
        """B L 4z to B z 1 h w."""
        rows, columns = self.grid()
        parts = tokens.reshape(len(tokens), rows, columns, -1, 2, 2).transpose(0, 3, 1, 4, 2, 5)
        return parts.reshape(len(tokens), -1, 1, 2 * rows, 2 * columns)

    def decoded(self, change: Change | None = None) -> Array:
        """What the VAE makes of the latents, B 3 H W, not clipped."""
        return self.vae_decoder(change)["vae.decode.image"][:, :, 0]

    def vae_decoder(self, change: Change | None = None) -> Whole:
        """The VAE's decoder on the latents, with a fault everywhere.

        Raises:
            KeyError: it is too large.
        """
        config, latents = self.config["vae"], self.unpacked(self.fed("latents"))
        _check_affordable(225 * 64 * latents[:, 0].size * config["base_dim"] ** 2, "VAE")
        shape = (config["base_dim"], tuple(config["dim_mult"]), config["num_res_blocks"])
        graph, weights = vae_graph(*shape, start="latents"), self.values.weights["vae"]
        return Whole(VaePlace, graph, "", {}, {"latents": latents}, weights, config, change=change)

    def to_unit(self, pictures: Array) -> Array:
        """-1…1, and what stands over, to 0…1."""
        return np.clip(np.clip(pictures, -1, 1) * 0.5 + 0.5, 0, 1)

    def channels_last(self, pictures: Array) -> Array:
        """B 3 H W to B H W 3."""
        return pictures.transpose(0, 2, 3, 1)

    def pictures(self) -> Array:
        """`decoded`, computed once: it is the same for all faults behind the VAE."""
        if "pictures" not in self.values.inner:
            self.values.inner["pictures"] = self.decoded()
        return self.values.inner["pictures"]

    def _image(self) -> Array:
        return self.channels_last(self.to_unit(self.pictures()))

    def recipe(self) -> Array:
        """See `Place.recipe`."""
        if self.kind in self._RECIPES:
            return self._RECIPES[self.kind](self)
        own = self.kind.removeprefix("pipeline.")
        if own in _GIVEN or own.startswith("condition."):
            return self.given()
        raise KeyError(self.name)

    _RECIPES: ClassVar = {
        "pipeline.sigmas": lambda p: p.kept(p.ended(p.levels())),
        "pipeline.timesteps": lambda p: p.to_timesteps(p.values["pipeline.sigmas"]),
        "pipeline.latents": _latents_before,
        "pipeline.prompt_mask": _mask,
        "pipeline.negative_mask": _mask,
        "pipeline.prompt_embeds": lambda p: p.encoded(),
        "pipeline.negative_embeds": lambda p: p.encoded(),
        "timestep": lambda p: p.timestep(),
        "cond": _predicted,
        "uncond": _predicted,
        "noise_pred": lambda p: p.noise_pred(),
        "latents": _latents_after,
        "pipeline.image": _image,
    }


def _check_affordable(products: float, what: str) -> None:
    if products > AFFORDABLE:
        raise KeyError(f"{what}: too much to compute")


def _transformer(values: Values, scope: str, side: str) -> Whole:
    """What is known of the transformer in one prediction of a step."""
    prefix = f"{scope}.{side}."
    if prefix not in values.inner:
        config, state, prompt = values.config["transformer"], values.state, SIDES[side]
        captured = {k.removeprefix(prefix): v for k, v in values.captured.items() if k.startswith(prefix)}
        latents = state["latents"]
        if "image_latents" in state and "repaint" not in state:
            latents = np.concatenate([latents, state["image_latents"]], axis=1)
        fed = {
            "latents": latents, "prompt_embeds": state[f"{prompt}_embeds"], "img_shapes": state["img_shapes"],
            "timestep": values[f"{scope}.timestep"],
        }  # fmt: skip
        if f"{prompt}_mask" in state:
            fed["prompt_mask"] = state[f"{prompt}_mask"]
        weights = values.weights["transformer"] if isinstance(values.weights, Mapping) else values.weights
        graph = qwen_image_transformer(config["num_layers"])
        values.inner[prefix] = Whole(InnerPlace, graph, "", captured, fed, weights, config)
        values.inner[prefix].noisy, values.inner[prefix].candidate = values.noisy, values.candidate
    return values.inner[prefix]
