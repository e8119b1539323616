"""Faults of a pipeline's own steps: guidance, the timestep handed over, what is kept of a prediction, inpainting."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np

from parity.diagnosis.fault import fault
from parity.diagnosis.place import Array, Variants
from parity.diagnosis.recipes.pipeline import PipelinePlace

BF16 = np.dtype(ml_dtypes.bfloat16)
_TINY = 1e-12


@fault(
    "cfg.off", at=("noise_pred",), component="pipeline", title="no guidance: one prediction alone is used",
    fix="combine both predictions: uncond + scale·(cond - uncond), then rescale", seen="the guide",
)  # fmt: skip
def off(p: PipelinePlace) -> Variants:
    yield "the prediction for the prompt alone", p.changed(noise_pred=p.cond)
    if p.guided():
        yield "the prediction for the negative prompt alone", p.changed(noise_pred=p.uncond)
        yield "the mean of both", p.changed(noise_pred=lambda: (p.cond() + p.uncond()) / 2)


@fault(
    "cfg.norm_missing", at=("noise_pred",), component="pipeline",
    title="the guided prediction is not brought back to the norm of the conditional one",
    fix="multiply by ‖cond‖ / ‖combined‖, both over the channels of each token",
)  # fmt: skip
def norm_missing(p: PipelinePlace) -> Variants:
    if p.guided():
        yield "no rescaling", p.changed(rescaled=lambda combined, cond: combined)


@fault(
    "cfg.norm_missing", at=("noise_pred",), component="pipeline", title="the guided prediction is rescaled otherwise",
    fix="multiply by ‖cond‖ / ‖combined‖, both over the channels of each token",
)  # fmt: skip
def norm(p: PipelinePlace) -> Variants:
    if not p.guided():
        return
    for what, axes in (("tokens", 1), ("all of a picture", (1, 2)), ("the whole batch", None), ("the batch", 0)):
        yield f"norms over {what}", p.changed(norm=lambda x, a=axes: _norm(x, a))
    yield "standard deviations of each token", p.changed(norm=lambda x: x.std(-1, keepdims=True))
    yield "standard deviations of each picture", p.changed(norm=lambda x: x.std((1, 2), keepdims=True))
    yield "sums of absolute values", p.changed(norm=lambda x: np.abs(x).sum(-1, keepdims=True))
    yield "largest absolute values", p.changed(norm=lambda x: np.abs(x).max(-1, keepdims=True))
    yield "squared norms", p.changed(norm=lambda x: _norm(x, -1) ** 2)
    yield "norms exchanged", p.changed(rescaled=lambda combined, cond: combined * (p.norm(combined) / p.norm(cond)))
    yield "to the norm of the negative one", p.changed(rescaled=lambda combined, _: p.rescaled(combined, p.uncond()))
    yield "rescaled twice", p.changed(rescaled=lambda combined, cond: p.rescaled(p.rescaled(combined, cond), cond)
                                      * p.norm(cond) / p.norm(combined))  # fmt: skip
    yield (
        "only where it grew",
        p.changed(rescaled=lambda combined, cond: combined * np.minimum(p.norm(cond) / p.norm(combined), 1)),
    )
    yield "normalised and not multiplied", p.changed(rescaled=lambda combined, _: combined / p.norm(combined))
    yield "multiplied by the norm, not divided", p.changed(rescaled=lambda combined, cond: combined * p.norm(cond))
    for share in (0.7, 0.5):
        yield (
            f"rescaled by a share of {share}",
            p.changed(rescaled=lambda combined, cond, s=share: s * p.rescaled(combined, cond) + (1 - s) * combined),
        )
    yield "rescaled before the guidance", p.changed(rescaled=lambda combined, cond: combined, uncond=lambda: (
        p.uncond() * (_norm(p.cond(), -1) / np.maximum(_norm(p.uncond(), -1), _TINY))
    ))  # fmt: skip


def _norm(x: Array, axes: int | tuple[int, ...] | None) -> Array:
    return np.sqrt((x**2).sum(axes, keepdims=True))


@fault(
    "cfg.branch", at=("noise_pred",), component="pipeline",
    title="conditional and unconditional predictions are combined the wrong way",
    fix="uncond + scale·(cond - uncond), with scale as the request says it",
)  # fmt: skip
def branch(p: PipelinePlace) -> Variants:
    if not p.guided():
        return
    scale = p.guidance()

    def combined(way: Callable[[Array, Array], Array]) -> PipelinePlace:
        return p.changed(combined=way)

    yield "prompt and negative prompt exchanged", p.changed(cond=p.uncond, uncond=p.cond)
    yield "prompt and negative prompt exchanged, with the norm of the prompt's", combined(lambda c, u: p.combined(u, c))
    yield "cond + scale·(cond - uncond)", combined(lambda c, u: c + scale * (c - u))
    yield "scale - 1 for the scale", combined(lambda c, u: u + (scale - 1) * (c - u))
    yield "uncond + scale·cond", combined(lambda c, u: u + scale * c)
    yield "scale·(cond - uncond)", combined(lambda c, u: scale * (c - u))
    yield "scale·uncond + (1 - scale)·cond", combined(lambda c, u: scale * u + (1 - scale) * c)
    yield "sign of the result", p.changed(noise_pred=lambda: -p.noise_pred())
    yield (
        "without guidance in part of the batch",
        p.changed(noise_pred=lambda: np.concatenate([p.noise_pred()[:1], p.cond()[1:]])),
    )
    yield "rows of the batch exchanged", p.changed(uncond=lambda: p.uncond()[::-1])


@fault(
    "cfg.scale", at=("noise_pred",), component="pipeline", title="guidance has another scale",
    fix="hand the request's scale over; the published default is 4.0",
)  # fmt: skip
def scale(p: PipelinePlace) -> Variants:
    if not p.guided():
        return
    own = p.guidance()
    ways = {1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 7.5, own / 2, own * 2, own / 10, 0.0}
    # One more and one less are other ways of combining: see `branch`.
    for value in sorted(ways - {own - 1, own, own + 1}):
        yield f"{value:g}", p.changed(guidance=lambda v=value: v)
    steps = len(p.values.state["sched.sigmas"]) - 1
    yield "growing from 1 over the steps", p.changed(guidance=lambda: 1 + (own - 1) * (p.block + 1) / steps)
    yield "falling to 1 over the steps", p.changed(guidance=lambda: 1 + (own - 1) * (1 - (p.block + 1) / steps))
    yield "times the noise level", p.changed(guidance=lambda: own * float(p.sigma(p.block)))


@fault(
    "time.scale", at=("timestep",), component="pipeline",
    title="the transformer is handed a timestep of another scale",
    fix="hand over timestep / 1000: 0…1; the transformer multiplies by 1000 itself", seen="mflux@acfc448",
)  # fmt: skip
def time_scale(p: PipelinePlace) -> Variants:
    yield "0…1000: not divided", p.changed(timestep=lambda: p.timestep() * 1000)
    yield (
        "not divided, rounded as it is",
        p.changed(timestep=lambda: np.full_like(p.timestep(), _held(p, p.fed("sched.timesteps")[p.block]))),
    )
    yield "divided twice", p.changed(timestep=lambda: p.timestep() / 1000)
    yield "divided by 999", p.changed(timestep=lambda: p.timestep() * 1000 / 999)
    yield "1 - t", p.changed(timestep=lambda: 1 - p.timestep())
    yield "its negative", p.changed(timestep=lambda: -p.timestep())


@fault(
    "time.index", at=("timestep",), component="pipeline", title="the transformer is handed another step's timestep",
    fix="hand over timesteps[i] of step i, the noise level that the latents have",
)  # fmt: skip
def time_index(p: PipelinePlace) -> Variants:
    times = p.fed("sched.timesteps")

    def share(value: float) -> Array:
        return np.full_like(p.timestep(), _held(p, _held(p, value) / 1000))

    for index, value in enumerate(times.tolist()[:64]):
        if index != p.block:
            yield f"that of step {index - p.block:+d}", p.changed(timestep=lambda v=value: share(v))
    yield "0, behind the last step", p.changed(timestep=lambda: p.timestep() * 0)
    yield "even steps, 1 - i/n", p.changed(timestep=lambda: share(1000 * (1 - p.block / len(times))))


@fault(
    "time.dtype", at=("timestep",), component="pipeline",
    title="the timestep is rounded otherwise before the transformer",
    fix="round the timestep to the dtype of the latents before it is divided by 1000, as diffusers does",
    seen="mold#811",
)  # fmt: skip
def time_dtype(p: PipelinePlace) -> Variants:
    time = float(p.fed("sched.timesteps")[p.block])
    yield "not rounded", p.changed(timestep=lambda: np.full_like(p.timestep(), time / 1000))
    yield (
        "rounded behind the division only",
        p.changed(timestep=lambda: np.full_like(p.timestep(), _held(p, time / 1000))),
    )
    yield (
        "rounded before the division only",
        p.changed(timestep=lambda: np.full_like(p.timestep(), _held(p, time) / 1000)),
    )
    yield "rounded to bfloat16", p.changed(timestep=lambda: p.timestep().astype(BF16).astype(np.float64))
    yield (
        "rounded to bfloat16 before the division",
        p.changed(timestep=lambda: np.full_like(p.timestep(), np.float64(BF16.type(time)) / 1000)),
    )
    yield "a whole timestep", p.changed(timestep=lambda: np.full_like(p.timestep(), round(time) / 1000))
    yield "cut to a whole timestep", p.changed(timestep=lambda: np.full_like(p.timestep(), int(time) / 1000))


def _held(p: PipelinePlace, x: float) -> float:
    """As the run's dtype holds it."""
    return float(np.asarray(x).astype(p.values.state["latents"].dtype))


@fault(
    "edit.own_tokens", at=("cond", "uncond"), component="pipeline",
    title="other tokens of the prediction are kept than those of the picture made",
    fix="keep the first L tokens: the picture made comes before the condition pictures",
)  # fmt: skip
def own_tokens(p: PipelinePlace) -> Variants:
    length = p.fed("latents").shape[1]
    yield "the last ones", p.changed(own_tokens=lambda velocity: velocity[:, -length:])
    yield "all", p.changed(own_tokens=lambda velocity: velocity)
    yield "those right behind", p.changed(own_tokens=lambda velocity: velocity[:, length : 2 * length])


@fault(
    "inpaint.mask", at=("latents",), component="pipeline", title="the kept part of the picture is put back otherwise",
    fix="(1 - mask)·(the given picture at the next noise level) + mask·latents, behind every step",
)  # fmt: skip
def put_back(p: PipelinePlace) -> Variants:
    if "repaint" not in p.values.state:
        return
    kept, noise, mask = p.fed("image_latents"), p.fed("noise"), p.fed("repaint") != 0

    def back(what: Array, where: Array = mask) -> PipelinePlace:
        return p.changed(put_back=lambda latents: np.where(where, latents, what))

    yield "not put back", p.changed(put_back=lambda latents: latents)
    yield (
        "the mask inverted",
        p.changed(put_back=lambda latents: np.where(mask, p.put_back(latents * 0 + kept), latents)),
    )
    yield (
        "the mask inverted, at the next noise level",
        p.changed(put_back=lambda latents: np.where(mask, p.mixed(kept, noise, p.sigma(p.block + 1)), latents)),
    )
    yield "without noise", back(kept)
    yield "noise alone", back(noise)
    for index, sigma in enumerate(p.fed("sched.sigmas").tolist()[:64]):
        if index != p.block + 1:
            yield f"at the noise level of step {index - p.block:+d}", back(p.mixed(kept, noise, np.float64(sigma)))
    yield "picture and noise exchanged", back(p.mixed(noise, kept, p.sigma(p.block + 1)))


@fault(
    "inpaint.mask", at=("pipeline.mask",), component="pipeline", title="the mask is another",
    fix="white is made anew: scale the mask to the latent grid, nearest, from 0.5 on, and pack it as latents are",
)  # fmt: skip
def mask(p: PipelinePlace) -> Variants:
    yield "inverted", p.changed(given=lambda: ~p.given())
    yield "white everywhere", p.changed(given=lambda: np.ones_like(p.given()))
    yield "black everywhere", p.changed(given=lambda: np.zeros_like(p.given()))
    for token in _token_orders(p, p.given()):
        yield token[0], p.changed(given=lambda made=token[1]: made)


@fault(
    "layout.width_height", at=("pipeline.latents", "pipeline.image_latents", "pipeline.mask"), component="pipeline",
    title="width and height of the latent grid are exchanged", fix="tokens go row by row: height/16 rows of width/16",
)  # fmt: skip
def width_height(p: PipelinePlace) -> Variants:
    rows, columns = (int(side) // 16 for side in p.fed("size"))

    def turned(x: Array) -> Array:
        return x.reshape(len(x), rows, columns, -1).swapaxes(1, 2).reshape(x.shape)

    yield "tokens column by column", _tokens_changed(p, turned)
    yield (
        "tokens read with width and height exchanged",
        _tokens_changed(p, lambda x: x.reshape(len(x), columns, rows, -1).swapaxes(1, 2).reshape(x.shape)),
    )


@fault(
    "layout.patch_order", at=("pipeline.latents", "pipeline.image_latents", "pipeline.mask"), component="pipeline",
    title="the 2 × 2 places of a latent token are packed in another order",
    fix="C h 2 w 2 to h w C 2 2: the latent channel first, then row and column within the token",
)  # fmt: skip
def patch_order(p: PipelinePlace) -> Variants:
    def reordered(order: tuple[int, int, int]) -> Callable[[Array], Array]:
        def within(x: Array) -> Array:
            parts = x.reshape(*x.shape[:-1], x.shape[-1] // 4, 2, 2)
            lead = parts.ndim - 3
            return parts.transpose(*range(lead), *(lead + axis for axis in order)).reshape(x.shape)

        return within

    def read(order: tuple[int, int, int]) -> Callable[[Array], Array]:
        def within(x: Array) -> Array:
            shape = [(x.shape[-1] // 4, 2, 2)[axis] for axis in order]
            parts = x.reshape(*x.shape[:-1], *shape)
            lead = parts.ndim - 3
            return parts.transpose(*range(lead), *(lead + int(i) for i in np.argsort(order))).reshape(x.shape)

        return within

    for order in ((0, 2, 1), (1, 2, 0), (2, 1, 0), (1, 0, 2), (2, 0, 1)):
        said = ", ".join(("channel", "row", "column")[axis] for axis in order)
        yield f"within a token {said}", _tokens_changed(p, reordered(order))
        if order in ((1, 2, 0), (2, 0, 1)):
            yield f"within a token read as {said}", _tokens_changed(p, read(order))


def _tokens_changed(p: PipelinePlace, way: Callable[[Array], Array]) -> PipelinePlace:
    """The same place with its tokens laid out otherwise."""
    return p.changed(recipe=lambda: way(p.recipe()))


def _token_orders(p: PipelinePlace, x: Array) -> list[tuple[str, Array]]:
    """Boolean tokens, as another threshold or order would have them."""
    rows, columns = (int(side) // 16 for side in p.fed("size"))
    grid = x.reshape(len(x), rows, columns, -1)
    return [("upside down", grid[:, ::-1].reshape(x.shape)), ("mirrored", grid[:, :, ::-1].reshape(x.shape))]
