"""Faults of the noise levels, of the steps along them and of the dtype between steps; in a pipeline or alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np

from parity.diagnosis.fault import fault
from parity.diagnosis.place import Array, Variants
from parity.diagnosis.recipes.scheduler import LevelsPlace

_SIGMAS = {"scheduler": ("sched.sigmas",), "pipeline": ("pipeline.sigmas",)}
_MU = {"scheduler": ("sched.mu",), "pipeline": ("pipeline.sigmas",)}
_TIMES = {"scheduler": ("sched.timesteps",), "pipeline": ("pipeline.timesteps",)}
_STEP = {"scheduler": ("sample",), "pipeline": ("latents",)}
_NOISE = {"scheduler": ("sched.noise.sample",), "pipeline": ("pipeline.latents",)}
Generator = Callable[[LevelsPlace], Variants]
BF16 = np.dtype(ml_dtypes.bfloat16)


def _levels_fault(code: str, at: dict[str, tuple[str, ...]], *, title: str, fix: str, seen: str = "") -> Callable:
    """`fault` for the scheduler and the pipelines alike."""

    def enter(function: Generator) -> Generator:
        for component, kinds in at.items():
            fault(code, at=kinds, title=title, fix=fix, seen=seen, component=component)(function)
        return function

    return enter


@_levels_fault(
    "sched.shift_missing", _SIGMAS, title="noise levels are not shifted by the size of the picture",
    fix="shift them: sigmas = exp(mu) / (exp(mu) + 1/sigmas - 1), before the stretch", seen="the guide",
)  # fmt: skip
def shift_missing(p: LevelsPlace) -> Variants:
    yield "no shift", p.changed(shifted=lambda sigmas, mu: sigmas)
    yield "no shift and no stretch", p.changed(shifted=lambda sigmas, mu: sigmas, stretched=lambda sigmas: sigmas)
    yield "shifted twice", p.changed(shifted=lambda sigmas, mu: p.shifted(p.shifted(sigmas, mu), mu))


@_levels_fault(
    "sched.mu", _SIGMAS, title="noise levels are shifted by another formula",
    fix='follow time_shift_type: "exponential" weighs with exp(mu), "linear" with mu',
)  # fmt: skip
def shift_type(p: LevelsPlace) -> Variants:
    def weighed(weight: Callable[[float], float]) -> Callable[[Array, float], Array]:
        return lambda sigmas, mu: weight(mu) / (weight(mu) + (1 / sigmas - 1))

    for shift in (1.15, 3.0, 5.0, 7.0):
        yield f"static shift {shift}", p.changed(shifted=lambda x, mu, s=shift: s * x / (1 + (s - 1) * x))
    yield "linear: weighed with mu", p.changed(time_shift=weighed(lambda mu: mu))
    if p.setting("time_shift_type") != "exponential":
        yield "exponential: weighed with exp(mu)", p.changed(time_shift=weighed(math.exp))
    yield "weighed with exp(-mu)", p.changed(time_shift=weighed(lambda mu: math.exp(-mu)))
    yield "weighed with 2**mu", p.changed(time_shift=weighed(lambda mu: 2.0**mu))
    yield "weighed with 1 + mu", p.changed(time_shift=weighed(lambda mu: 1 + mu))
    for power in (0.5, 2.0):
        yield (
            f"(1/sigma - 1) to the power of {power}",
            p.changed(time_shift=lambda sigmas, mu, k=power: math.exp(mu) / (math.exp(mu) + (1 / sigmas - 1) ** k)),
        )


@_levels_fault(
    "sched.terminal_missing", _SIGMAS, title="noise levels are not stretched to the last one that was trained",
    fix="stretch them behind the shift: 1 - (1 - sigmas)·(1 - shift_terminal)/(1 - sigmas[-1])",
)  # fmt: skip
def terminal_missing(p: LevelsPlace) -> Variants:
    yield "no stretch", p.changed(stretched=lambda sigmas: sigmas)
    yield (
        "stretched before the shift",
        p.changed(shifted=lambda sigmas, mu: p.shifted(p.stretched(sigmas), mu), stretched=lambda sigmas: sigmas),
    )
    terminal = p.setting("shift_terminal") or 0.02
    yield (
        "multiplied instead of moved apart below 1",
        p.changed(stretched=lambda sigmas: sigmas * (terminal / sigmas[-1])),
    )
    yield "only the last level is set", p.changed(stretched=lambda sigmas: np.append(sigmas[:-1], np.float32(terminal)))
    yield "cut below", p.changed(stretched=lambda sigmas: np.maximum(sigmas, np.float32(terminal)))
    for other in (0.1, 0.05, 0.01, 0.002, 0.001, 1e-4):
        yield (
            f"stretched to {other}",
            p.changed(stretched=lambda sigmas, t=other: 1 - (1 - sigmas) / ((1 - sigmas[-1]) / (1 - t))),
        )


@_levels_fault(
    "sched.mu", _MU, title="mu, the shift by the size of the picture, is another",
    fix="take it from the line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift) of the "
    "scheduler's config, at the number of image tokens (height/16 · width/16)",
)  # fmt: skip
def mu(p: LevelsPlace) -> Variants:
    def line(tokens: float, **other: float) -> float:
        low, high = (other.get(key, p.setting(key)) for key in ("base_image_seq_len", "max_image_seq_len"))
        base, most = (other.get(key, p.setting(key)) for key in ("base_shift", "max_shift"))
        slope = (most - base) / (high - low)
        return tokens * slope + base - slope * low

    L = p.tokens()  # noqa: N806 - the name in all legends
    flux = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
    ways = {
        "base_shift, whatever the size": p.setting("base_shift"),
        "max_shift, whatever the size": p.setting("max_shift"),
        "as for 1024 × 1024, whatever the size": line(4096),
        "as for 512 × 512, whatever the size": line(1024),
        "as for 1328 × 1328, whatever the size": line(83 * 83),
        "base and max exchanged": line(L, base_shift=p.setting("max_shift"), max_shift=p.setting("base_shift")),
        "the class's defaults instead of the config's": line(L, **flux),
        "max_shift 1.15": line(L, max_shift=1.15),
        "max_image_seq_len 4096": line(L, max_image_seq_len=4096),
        "kept within base_shift and max_shift": min(max(line(L), p.setting("base_shift")), p.setting("max_shift")),
        "not from base_image_seq_len on": p.setting("base_shift") + L * (line(1) - line(0)),
        "without the offset": L * (line(1) - line(0)),
        "exp(mu)": math.exp(line(L)),
        "ln(mu)": math.log(line(L)) if line(L) > 0 else math.nan,
        "the static shift": float(p.setting("shift")),
        "ln(3), of Lightning": math.log(3), "1": 1.0, "1.15": 1.15, "3": 3.0,
    }  # fmt: skip
    counts = {"latent places instead of tokens": 4 * L, "a quarter of the tokens": L / 4, "16 per token": 16 * L,
              "pixels instead of tokens": 256 * L, "half the tokens": L / 2, "twice the tokens": 2 * L,
              "one token more": L + 1, "the square root of the tokens": math.sqrt(L)}  # fmt: skip
    ways |= {f"from {what}": line(count) for what, count in counts.items()}
    for what, value in ways.items():
        yield what, p.changed(mu=lambda value=value: value)


@_levels_fault(
    "sched.spacing", _SIGMAS, title="noise levels are spaced otherwise before the shift",
    fix="begin with linspace(1, 1/n, n), append 0 at the end",
)  # fmt: skip
def spacing(p: LevelsPlace) -> Variants:
    trained = p.setting("num_train_timesteps")
    ends = {
        "from 1 to 0 in n": lambda n: np.linspace(1, 0, n),
        "from 1 to 1/1000 in n": lambda n: np.linspace(1, 1 / trained, n),
        "from 1 to 1/(n+1) in n": lambda n: np.linspace(1, 1 / (n + 1), n),
        "from 1 - 1/n to 0": lambda n: np.linspace(1, 0, n + 1)[1:],
        "from n/(n+1) to 1/(n+1)": lambda n: np.linspace(1, 0, n + 2)[1:-1],
        "middles of n equal parts": lambda n: (np.arange(n, 0, -1) - 0.5) / n,
        "from 0.999": lambda n: np.linspace(1 - 1 / trained, 1 / n, n),
        "whole timesteps, as leading": lambda n: (np.arange(n) * (trained // n))[::-1] / trained,
        "whole timesteps, as trailing": lambda n: np.round(np.arange(trained, 0, -trained / n)) / trained,
        "whole timesteps, as linspace": lambda n: np.linspace(0, trained - 1, n).round()[::-1] / trained,
        "ascending": lambda n: np.linspace(1, 1 / n, n)[::-1],
        "n + 1 levels": lambda n: np.linspace(1, 1 / (n + 1), n + 1),
        "n - 1 levels": lambda n: np.linspace(1, 1 / (n - 1), n - 1) if n > 1 else np.ones(0),
        "squared": lambda n: np.linspace(1, 1 / n, n) ** 2,
        "cosine": lambda n: np.cos(np.linspace(0, np.pi / 2, n + 1)[:-1]),
    }  # fmt: skip
    for what, made in ends.items():
        yield what, p.changed(spacing=made)
    steps = p.spacing(p.steps())
    for what, ends in {"Karras": (7.0, 1.0), "exponential": (None, 1.0)}.items():
        yield what, p.changed(levels=lambda rho=ends[0]: _spread(p.levels(), len(steps), rho))


def _spread(levels: Array, count: int, rho: float | None) -> Array:
    """Karras' levels, or exponential ones, between the first and the last."""
    first, last = (np.float64(levels[i]) for i in (0, -1))
    ramp = np.linspace(0, 1, count)
    if rho is None:
        return np.exp(np.log(first) + ramp * (np.log(last) - np.log(first))).astype(np.float32)
    return ((first ** (1 / rho) + ramp * (last ** (1 / rho) - first ** (1 / rho))) ** rho).astype(np.float32)


@_levels_fault(
    "sched.order", _SIGMAS, title="noise levels are in another order, or end otherwise",
    fix="levels go down from 1, and a 0 is appended behind the last one",
)  # fmt: skip
def order(p: LevelsPlace) -> Variants:
    yield "ascending", p.changed(ended=lambda levels: p.ended(levels)[::-1].copy())
    yield "ascending, 0 at the end", p.changed(ended=lambda levels: p.ended(levels[::-1]))
    yield "no level behind the last", p.changed(ended=lambda levels: levels)
    yield "the last one twice", p.changed(ended=lambda levels: np.append(levels, levels[-1]))
    yield "1 at the end", p.changed(ended=lambda levels: np.append(levels, np.float32(1)))
    yield "1 - sigma", p.changed(ended=lambda levels: (1 - p.ended(levels)).astype(np.float32))
    yield "times 1000", p.changed(ended=lambda levels: p.ended(levels) * np.float32(1000))
    yield "one step too late", p.changed(ended=lambda levels: np.append(p.ended(levels)[1:], np.float32(0)))


@_levels_fault(
    "sched.dtype", _SIGMAS, title="noise levels are computed in another precision",
    fix="compute them in float32, whatever the dtype of the model",
)  # fmt: skip
def levels_dtype(p: LevelsPlace) -> Variants:
    for name, dtype in (("bfloat16", BF16), ("float16", np.dtype(np.float16))):
        yield f"rounded to {name}", p.changed(ended=lambda x, d=dtype: p.ended(x).astype(d).astype(np.float32))
        yield (
            f"rounded to {name} before the shift",
            p.changed(spacing=lambda n, d=dtype: p.spacing(n).astype(d).astype(np.float32)),
        )
    yield "in float64 throughout", p.changed(levels=lambda: _exact_levels(p))
    yield "as whole timesteps", p.changed(ended=lambda x: (np.round(p.ended(x) * 1000) / 1000).astype(np.float32))
    yield "as truncated timesteps", p.changed(ended=lambda x: (np.floor(p.ended(x) * 1000) / 1000).astype(np.float32))


def _exact_levels(p: LevelsPlace) -> Array:
    return p.stretched(p.shifted(p.spacing(p.steps()), p.level_mu())).astype(np.float32)


@_levels_fault(
    "sched.timesteps", _TIMES, title="timesteps are not the noise levels times 1000",
    fix="timesteps = sigmas[:-1] · num_train_timesteps, float32, not rounded to whole ones",
)  # fmt: skip
def timesteps(p: LevelsPlace) -> Variants:
    def times(sigmas: Array) -> Array:
        return sigmas.astype(np.float32) * np.float32(1000)

    ways: dict[str, Callable[[Array], Array]] = {
        "not multiplied": lambda s: s[:-1],
        "those behind the step": lambda s: times(s)[1:],
        "with the one of level 0": times,
        "rounded to whole ones": lambda s: np.round(p.to_timesteps(s)),
        "cut to whole ones": lambda s: np.floor(p.to_timesteps(s)),
        "rounded to bfloat16": lambda s: p.to_timesteps(s).astype(BF16).astype(np.float32),
        "rounded to float16": lambda s: p.to_timesteps(s).astype(np.float16).astype(np.float32),
        "ascending": lambda s: p.to_timesteps(s)[::-1],
        "1000 - t": lambda s: np.float32(1000) - p.to_timesteps(s),
        "times 999": lambda s: (s[:-1] * np.float32(999)).astype(np.float32),
        "one less": lambda s: p.to_timesteps(s) - np.float32(1),
    }
    for what, way in ways.items():
        yield what, p.changed(to_timesteps=way)


@_levels_fault(
    "sched.timesteps", _TIMES, title="timesteps are made of noise levels before shift or stretch",
    fix="make them of the levels behind shift and stretch",
)  # fmt: skip
def timesteps_too_early(p: LevelsPlace) -> Variants:
    kept = getattr(p, "kept", lambda levels: levels)
    for what, early in (
        ("before the shift", p.changed(shifted=lambda sigmas, mu: sigmas, stretched=lambda sigmas: sigmas)),
        ("before the stretch", p.changed(stretched=lambda sigmas: sigmas)),
        ("stretched and not shifted", p.changed(shifted=lambda sigmas, mu: sigmas)),
    ):
        yield what, p.changed(to_timesteps=lambda _, e=early: p.to_timesteps(kept(p.ended(_levels_alone(e)))))


def _levels_alone(p: LevelsPlace) -> Array:
    return p.changed(level_mu=p.mu).levels()


@_levels_fault(
    "sched.begin", {"scheduler": ("sched.begin",)}, title="another number of first steps is left out for the strength",
    fix="begin at int(n - n·strength)",
)  # fmt: skip
@_levels_fault(
    "sched.begin", {"pipeline": ("pipeline.sigmas",)},
    title="another number of first steps is left out for the strength",
    fix="begin at int(n - n·strength)",
)  # fmt: skip
def begin(p: LevelsPlace) -> Variants:
    ways: dict[str, Callable[[int, float], float]] = {
        "rounded": lambda n, s: round(n - n * s),
        "rounded up": lambda n, s: math.ceil(n - n * s),
        "n·strength cut to a whole number": lambda n, s: n - int(n * s),
        "strength and 1 - strength exchanged": lambda n, s: int(n * s),
        "one too early": lambda n, s: p.left_out(n, s) - 1,
        "one too late": lambda n, s: p.left_out(n, s) + 1,
        "none left out": lambda n, s: 0,
    }
    for what, way in ways.items():
        yield what, p.changed(left_out=lambda n, s, w=way: max(int(w(n, s)), 0))


@_levels_fault(
    "sched.noise", _NOISE, title="noise is mixed into the picture otherwise",
    fix="sigma·noise + (1 - sigma)·latents, at the level of the first step that is done",
)  # fmt: skip
def noise(p: LevelsPlace) -> Variants:
    if p.component == "pipeline" and p.optional("strength_percent") is None:
        return
    yield "picture and noise exchanged", p.changed(mixed=lambda x, n, s: p.mixed(n, x, s))
    yield "no noise", p.changed(mixed=lambda x, n, s: x)
    yield "noise alone", p.changed(mixed=lambda x, n, s: n)
    yield "added without 1 - sigma", p.changed(mixed=lambda x, n, s: x + s * n)
    yield (
        "square roots of the weights",
        p.changed(mixed=lambda x, n, s: np.sqrt(1 - s) * x + np.sqrt(np.maximum(s, 0)) * n),
    )
    yield "sqrt(1 - sigma²) for 1 - sigma", p.changed(mixed=lambda x, n, s: np.sqrt(1 - s**2) * x + s * n)
    yield "sign of the noise", p.changed(mixed=lambda x, n, s: p.mixed(x, -n, s))
    for level in _other_levels(p):
        yield (
            f"at another noise level, {level:.6g}",
            p.changed(mixed=lambda x, n, s, v=level: p.mixed(x, n, np.float64(v))),
        )


def _other_levels(p: LevelsPlace) -> list[float]:
    sigmas = p.values["pipeline.sigmas"] if p.component == "pipeline" else p.fed("sched.sigmas")
    return [1.0, *np.asarray(sigmas).tolist()][:64]


def _steps(p: LevelsPlace) -> Iterator[tuple[str, Callable[[Array, Array, int], Array]]]:
    """Another step: what, and the step of latents along a velocity."""
    sigmas = p.fed("sched.sigmas")

    def along(width: Callable[[int], float]) -> Callable[[Array, Array, int], Array]:
        def step(x: Array, v: Array, i: int) -> Array:
            at = p.changed(width=lambda now, following: p.rounded(p.single(np.float64(width(i)))))
            return at.euler(x, v, i)

        return step

    def at(index: int) -> float:
        return float(sigmas[min(max(index, 0), len(sigmas) - 1)])

    count = len(sigmas) - 1
    yield "sign of the step", along(lambda i: at(i) - at(i + 1))
    yield "sign of the velocity", lambda x, v, i: p.euler(x, -v, i)
    yield "sign of the latents", lambda x, v, i: p.euler(-x, v, i)
    yield "no step", lambda x, v, i: x
    yield "the width of the step after", along(lambda i: at(i + 2) - at(i + 1))
    yield "the width of the step before", along(lambda i: at(i) - at(i - 1))
    yield "the width of the first step", along(lambda i: at(1) - at(0))
    yield "equal widths, 1/n", along(lambda i: -1 / count)
    yield "width in timesteps", along(lambda i: 1000 * (at(i + 1) - at(i)))
    yield "the noise level for the width", along(lambda i: -at(i))
    yield "the noise level for the width, added", along(at)
    yield "the next noise level for the width", along(lambda i: -at(i + 1))
    yield "down to 0 at once", lambda x, v, i: x - at(i) * v
    yield "velocity divided by the noise level", lambda x, v, i: x + (at(i + 1) - at(i)) * v / at(i)
    yield "latents scaled by the next level over this one", lambda x, v, i: x * (at(i + 1) / at(i))
    yield "prediction taken for the clean picture", lambda x, v, i: v + (x - v) * (at(i + 1) / at(i))
    yield (
        "prediction taken for the noise",
        lambda x, v, i: (x - at(i) * v) / max(1 - at(i), 1e-6) * (1 - at(i + 1)) + at(i + 1) * v,
    )
    yield "half of the step", along(lambda i: (at(i + 1) - at(i)) / 2)
    yield "the step twice", along(lambda i: 2 * (at(i + 1) - at(i)))


@_levels_fault(
    "sched.step", _STEP, title="the scheduler's step is another",
    fix="latents + (sigmas[i + 1] - sigmas[i])·velocity: the width is negative",
)  # fmt: skip
def step(p: LevelsPlace) -> Variants:
    for what, way in _steps(p):
        yield what, p.changed(euler=way)


@_levels_fault(
    "latents.dtype", _STEP, title="latents between steps are kept in another precision",
    fix="add in float32 and round once, to the dtype of the run, behind each step", seen="mlx-gen@ea6dcf2",
)  # fmt: skip
def latents_dtype(p: LevelsPlace) -> Variants:
    def rounding(x: Array, dtype: np.dtype) -> Array:
        return np.asarray(x).astype(dtype).astype(np.float64)

    def wide(x: Array, v: Array, i: int) -> Array:
        return x + (p.sigma(i + 1) - p.sigma(i)) * v

    def low_levels(dtype: np.dtype) -> Callable[[Array, Array, int], Array]:
        def step(x: Array, v: Array, i: int) -> Array:
            now, following = (rounding(p.sigma(k), dtype) for k in (i, i + 1))
            return rounding(x + rounding(rounding(following - now, dtype) * v, dtype), p.dtype)

        return step

    yield "promoted to float32", p.changed(euler=lambda x, v, i: rounding(wide(x, v, i), np.dtype(np.float32)))
    yield "rounded once, product and sum in float32", p.changed(euler=lambda x, v, i: rounding(wide(x, v, i), p.dtype))
    for name, dtype in (("bfloat16", BF16), ("float16", np.dtype(np.float16))):
        yield f"rounded to {name}", p.changed(euler=lambda x, v, i, d=dtype: rounding(p.euler(x, v, i), d))
        yield f"noise levels and widths in {name}", p.changed(euler=low_levels(dtype))
        yield (
            f"latents and velocity rounded to {name} before the step",
            p.changed(euler=lambda x, v, i, d=dtype: p.euler(rounding(x, d), rounding(v, d), i)),
        )
