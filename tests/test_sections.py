"""Rows are arranged by what repeats, whatever a component is called and however its names nest."""

import pytest
import sample_run

from parity.sections import (
    FEW,
    OUTSIDE,
    component_title,
    drawn,
    group_of,
    heading,
    left_out,
    local_names,
    main_of,
    place_of,
    role_of,
    sections,
    unit_of,
)

SMALL = {"blocks": 3, "dtypes": ("float32",)}


def entry_of(component, **options):
    return sample_run.clean(component=component, **SMALL | options)["cases"][0]


def named(*names):
    return {"checkpoints": [{"name": name, "verdict": "match", "excess": 1.0, "stage": "s"} for name in names]}


@pytest.mark.parametrize(
    ("name", "unit", "place"),
    [
        ("block.07.img.attn", "block", ("", "img")),
        ("text.layer.03.attn", "layer", ("text", "text")),
        ("vision.block.01.q", "block", ("vision", "vision")),
        ("step.03.noise_pred", "step", ("step", "step")),
        ("sched.step.03.sample", "step", ("sched", "sched")),
        ("step.03.cond.block.07.txt.attn", "block", ("step.03.cond", "txt")),
        ("vae.decode.up.01.resnet.02", "", ("", "")),
        ("pipeline.prompt_embeds", "", ("", "")),
    ],
)
def test_where_a_name_stands(name, unit, place):
    assert unit_of(name) == unit
    assert place_of(name) == place


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        ("transformer", ("blocks", ["img", "txt"], range(3))),
        ("text", ("layers", ["text"], range(3))),
        ("vision", ("blocks", ["vision"], range(3))),
        ("scheduler", ("steps", ["sched"], range(8))),
        ("pipeline", ("steps", ["step"], range(8))),
    ],
)
def test_what_repeats_in_each_component(component, expected):
    entry = entry_of(component)
    [section] = sections(entry)
    assert (section.title, section.streams, section.span) == expected
    assert sorted(map(id, section.rows)) == sorted(map(id, entry["checkpoints"]))


def test_rows_are_sorted_by_stream_and_kind_and_split_around_the_repetitions():
    [section] = sections(entry_of("transformer"))
    assert list(section.grid)[:3] == [("img", "mod"), ("img", "normed"), ("img", "modulated")]
    assert list(section.grid)[-1] == ("txt", "out")
    assert [row["name"] for row in section.after] == ["norm_out.mod", "norm_out", "final"]
    assert section.before[0]["name"] == "img_in"


def test_nothing_repeats_in_a_vae():
    entry = entry_of("vae")
    [section] = sections(entry)
    assert (section.grid, section.title, section.after) == ({}, "", [])
    assert section.before == entry["checkpoints"]


def test_a_pass_inside_a_step_is_a_section_of_its_own_with_all_its_rows():
    entry = entry_of("pipeline", inside=(1, 5))
    parts = sections(entry)
    assert [part.title for part in parts if part.inner] == [
        "inside step 01, cond", "inside step 01, uncond", "inside step 05, cond", "inside step 05, uncond",
    ]  # fmt: skip
    alone = entry_of("transformer")["checkpoints"]
    for part in parts:
        if part.inner:
            assert len(part.rows) == len(alone)
            assert [part.local(row["name"]) for row in part.before][:2] == ["img_in", "txt_norm"]
            assert part.streams == ["img", "txt"]
    assert main_of(parts).kinds == ["timestep", "cond", "uncond", "noise_pred", "latents"]
    assert sum(len(part.rows) for part in parts) == len(entry["checkpoints"])


def test_a_stream_that_nobody_knows_is_drawn_as_well():
    [section] = sections(named("audio.in", "audio.layer.00.out", "audio.layer.01.out", "end"))
    assert (section.title, section.streams, role_of("audio")) == ("layers", ["audio"], "step")
    assert [len(rows) for rows in (section.before, section.grid["audio", "out"], section.after)] == [1, 2, 1]


def test_groups_take_all_indices_out():
    assert group_of("block.07.img.attn") == ("block.NN.img.attn", {"block": 7})
    assert group_of("step.03.cond.block.07.img.attn") == (
        "step.NN.cond.block.NN.img.attn", {"step": 3, "block": 7},
    )  # fmt: skip
    assert group_of("step.03.cond.norm_out.mod") == ("step.NN.cond.norm_out.mod", {"step": 3})
    assert group_of("norm_out") == ("norm_out", {})
    assert group_of("vae.decode.up.01.resnet.02") == ("vae.decode.up.01.resnet.02", {})


def test_many_rows_that_do_not_repeat_are_drawn_by_themselves():
    few, many = (named(*(f"p.{i}" for i in range(count)), "step.00.x", "step.01.x") for count in (FEW, FEW + 1))
    assert [name for name, _ in drawn(few)] == [""]
    assert [name for name, _ in drawn(many)] == ["", OUTSIDE]
    main, outside = (section for _, section in drawn(many))
    assert (main.others, len(outside.others)) == ([], FEW + 1)
    assert heading(many | {"name": "c", "dtype": "d", "mode": "m"}, outside)[-1] == "what does not repeat"


def test_of_the_passes_inside_steps_the_worst_is_drawn():
    entry = entry_of("pipeline", inside=(1, 5))
    row = next(row for row in entry["checkpoints"] if row["name"] == "step.05.cond.block.02.txt.q")
    row["excess"] = 77.0
    assert [name for name, _ in drawn(entry)] == ["", "step-05-cond"]
    (_, outer), (_, inner) = drawn(entry)
    assert left_out(entry, inner).startswith("Of 4 passes")
    assert left_out(entry, outer).startswith("Without the 4 passes")
    assert left_out(entry_of("text"), sections(entry_of("text"))[0]) == ""


def test_names_lose_the_words_that_all_begin_with():
    [section] = sections(entry_of("vae"))
    rows = [{"name": name} for name in ("vae.decode.mid.attn", "vae.decode.image")]
    assert local_names(rows, section) == ["mid.attn", "image"]
    assert local_names(rows[:1], section) == ["vae.decode.mid.attn"]
    assert local_names([{"name": "a.b"}, {"name": "a"}], section) == ["a.b", "a"]


def test_components_in_words():
    assert component_title({"component": "text"}) == "text encoder"
    assert component_title({}) == "transformer"
    assert component_title({"component": "else"}) == "else"
