"""The curve over the steps, and the sentence that says by what factor an error grows."""

import math

import pytest
import sample_run

from parity.sections import main_of, sections
from parity.stepcurve import curves, growth, has_steps, words


def pipeline(**options):
    return sample_run.clean(component="pipeline", blocks=2, dtypes=("float32",), level="kinds", **options)


def set_latents(run, mode, errors, floors=None):
    case = next(case for case in run["cases"] if case["mode"] == mode)
    rows = [row for row in case["checkpoints"] if row["name"].endswith(".latents") and row["name"].startswith("step")]
    for row, error, floor in zip(rows, errors, floors or [1e-7] * len(errors), strict=True):
        row.update(rel_rmse=error, floor=floor)


def test_the_factor_is_that_of_the_last_over_the_first_step():
    run = pipeline(steps=4)
    set_latents(run, "accumulated", [2e-7, 4e-7, 9e-7, 3e-6], [1e-7, 2e-7, 3e-7, 4e-7])
    set_latents(run, "isolated", [2e-7, 5e-7, 1e-7, 1e-7])
    for entry in run["cases"]:
        assert words(run, entry) == (
            "Over 4 steps the error of the latents grows from 2·10⁻⁷ to 3·10⁻⁶, a factor of 15; that of the floor, "
            "the reference's own error, is 4. The error that a step makes by itself is at most 5·10⁻⁷."
        )


def test_an_error_may_fall():
    run = pipeline(steps=2)
    set_latents(run, "accumulated", [4e-7, 1e-7])
    assert "falls from 4·10⁻⁷ to 10⁻⁷, a factor of 0.25;" in words(run, run["cases"][0])


@pytest.mark.parametrize("errors", [[0.0, 1e-7], [1e-7, math.nan], [math.inf, 1e-7], [1e-7, 0.0]])
def test_what_has_no_factor_is_said(errors):
    run = pipeline(steps=2)
    set_latents(run, "accumulated", errors)
    assert "no factor of growth" in words(run, run["cases"][0])


def test_without_steps_nothing_is_said():
    for component in ("text", "vae", "scheduler"):
        run = sample_run.clean(component=component, blocks=2, dtypes=("float32",))
        assert words(run, run["cases"][0]) == ""
        assert not has_steps(main_of(sections(run["cases"][0])))
    run = pipeline(steps=4)
    run["cases"] = run["cases"][:1]
    assert words(run, run["cases"][0]) == ""


def test_one_step_is_no_curve():
    run = pipeline(steps=1)
    assert words(run, run["cases"][0]) == ""
    assert not has_steps(main_of(sections(run["cases"][0])))
    assert has_steps(main_of(sections(pipeline(steps=2)["cases"][0])))


def test_curves_are_of_the_same_case_and_dtype():
    run = sample_run.clean(component="pipeline", blocks=2, level="kinds", cases=("a", "b"))
    entry = next(case for case in run["cases"] if (case["name"], case["dtype"]) == ("b", "bfloat16"))
    found = curves(run, entry)
    assert list(found) == ["accumulated", "isolated"]
    assert list(found["isolated"]) == ["latents", "noise_pred", "cond", "uncond"]
    error, floor = found["isolated"]["latents"]
    assert entry["mode"] == "isolated"
    rows = {row["name"]: row for row in entry["checkpoints"]}
    assert error == {step: rows[f"step.{step:02d}.latents"]["rel_rmse"] for step in range(8)}
    assert floor[3] == rows["step.03.latents"]["floor"]


def test_growth_needs_two_finite_points_above_zero():
    assert growth({0: 2.0, 1: 5.0, 3: 8.0}) == (2.0, 8.0)
    assert growth({0: 2.0}) is None
    assert growth({}) is None
    assert growth({0: 0.0, 1: 1.0}) is None
    assert growth({0: 1.0, 1: math.nan}) is None
