"""Tables of several components, of exact checkpoints and of pictures; the rest of the tables is in test_cli."""

import re

import pytest
import sample_run
from rich.cells import cell_len

from parity import health
from parity.reporters import text

SMALL = {"blocks": 2, "dtypes": ("float32",)}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A terminal of 80 columns without colours, whatever the tests run in."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def table(run, capsys):
    text.print_table(run)
    return capsys.readouterr().out


def test_cases_of_several_components_stand_below_their_names(capsys):
    run = sample_run.several(dtypes=("float32",))
    run["cases"] = run["cases"][::2] + run["cases"][1::2]
    lines = table(run, capsys).splitlines()
    heads = ["transformer", "text encoder", "vision tower", "VAE", "scheduler", "pipeline"]
    found = [line.strip() for line in lines if line.strip() in heads]
    assert found == heads
    for component, head in zip(sample_run.INPUTS, heads, strict=True):
        start = next(i for i, line in enumerate(lines) if line.strip() == head)
        assert all(line.startswith(f"{component}-one") for line in lines[start + 1 : start + 3])


def test_one_component_needs_no_heading(capsys):
    printed = table(sample_run.clean(component="text", **SMALL), capsys)
    assert "text encoder" not in printed


@pytest.mark.parametrize("name", ["one", "a-rather-long-name-of-a-case", "x" * 50])
def test_names_are_whole_and_nothing_is_wider_than_the_terminal(capsys, tmp_path, name):
    run = sample_run.pictured(tmp_path, cases=(name,))
    printed = table(run, capsys)
    assert max(map(cell_len, printed.splitlines())) <= 80
    assert "…" not in printed
    first = "".join(line.split(" ")[0] for line in printed.splitlines()[2:] if line and line[0] != " ")
    assert first.startswith(name)


def test_exact_checkpoints_have_neither_floor_nor_excess(capsys):
    clean, wrong = (getattr(sample_run, kind)(component="scheduler", **SMALL) for kind in ("clean", "diverged"))
    keys = ("floor", "median", "worst")
    assert [text.figures(clean["cases"][0])[key] for key in keys] == ["exact", "–", "equal"]
    assert [text.figures(wrong["cases"][0])[key] for key in keys] == ["exact", "–", "5 differ"]
    printed = table(clean, capsys)
    assert "exact: must be equal" in printed
    assert "floor: the reference" not in printed
    assert "exact:" not in table(sample_run.clean(**SMALL), capsys)


def test_exact_checkpoints_do_not_lower_the_median():
    case = sample_run.clean(component="text", **SMALL)["cases"][0]
    before = text.figures(case)
    case["checkpoints"] = [row for row in case["checkpoints"] if row["floor_by"] != "exact"]
    assert text.figures(case)["median"] == before["median"]
    assert text.figures(case)["floor"] == before["floor"]


def test_what_is_unhealthy_is_said_as_on_the_page(capsys):
    run = sample_run.nonfinite(**SMALL)
    [alert] = [one for one in health.alerts(run) if one["code"] == "nonfinite"]
    said = " ".join(table(run, capsys).split())
    assert f"error: NaN or infinity in the candidate. {alert['text']}" in said
    assert "- error: NaN or infinity in the candidate. " in text.markdown(run)
    clean = sample_run.clean(**SMALL)
    for printed in (table(clean, capsys), text.markdown(clean)):
        assert "error:" not in printed
        assert "warning:" not in printed


def test_names_of_alerts_are_cut_and_escaped(capsys):
    run = sample_run.nonfinite(**SMALL)
    for case in run["cases"]:
        for row in case["checkpoints"]:
            row["name"] = "<b>\u202e|`" + "x" * 3000 + row["name"]
    assert max(map(len, [line for _, line in health.brief(run)])) <= 500
    assert "\u202e" not in table(run, capsys)
    [line] = [line for line in text.markdown(run).splitlines() if line.startswith("- error")]
    assert "<b>" not in line
    assert "\u202e" not in line


def test_pictures_have_a_table_of_their_own(capsys, tmp_path):
    run = sample_run.pictured(tmp_path, dtypes=("float32",))
    [picture] = run["cases"][1]["pictures"]
    metrics = picture["metrics"]
    metrics["candidate"] = {"mean": 38.66, "std": 48.18}
    printed = table(run, capsys)
    [line] = [line for line in printed.splitlines() if "→" in line and line.startswith("pipeline-plain")]
    mean, std = (
        "→".join(f"{metrics[side][key]:.2f}" for side in ("reference", "candidate")) for key in ("mean", "std")
    )
    assert line.split() == [
        "pipeline-plain", "float32", f"{metrics['rmse']:.2f}", str(metrics["max_abs"]), mean, std,
        f"{metrics['psnr']:.1f}", f"{metrics['ssim']:.4f}", f"{metrics['flip']:.4f}",
    ]  # fmt: skip
    run["cases"][1]["pictures"].append(picture | {"index": 1})
    assert [line["picture"] for line in text.pictures_of(run)] == ["pipeline-plain 1", "pipeline-plain 2"]
    assert "PSNR" not in table(sample_run.clean(component="pipeline", **SMALL), capsys)


def test_equal_pictures_have_an_infinite_psnr_and_small_ones_no_ssim(tmp_path):
    run = sample_run.pictured(tmp_path, dtypes=("float32",), off=0)
    run["cases"][1]["pictures"][0]["metrics"]["ssim"] = None
    [line] = text.pictures_of(run)
    assert (line["RMSE"], line["PSNR"], line["SSIM"]) == ("0.00", "∞", "–")


def test_names_are_gathered_over_layers_and_steps():
    assert text.gather([f"text.layer.{i:02d}.attn" for i in range(4)]) == ["text.layer.00.attn (and in 3 more layers)"]
    assert text.gather(["step.00.latents", "step.01.latents", "vae.decode.up.00.upsample"]) == [
        "step.00.latents (and in 1 more step)", "vae.decode.up.00.upsample",
    ]  # fmt: skip
    inside = [f"step.{s:02d}.cond.block.{b:02d}.img.attn" for s in (0, 4) for b in range(3)]
    assert text.gather(inside) == [f"{inside[0]} (and at 5 more places)"]
    assert text.gather(inside[:3]) == [f"{inside[0]} (and in 2 more blocks)"]


def cells_of(line):
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def test_markdown_has_a_column_of_components_and_a_table_of_pictures(tmp_path):
    run = sample_run.several(dtypes=("float32",))
    pictured = sample_run.pictured(tmp_path, dtypes=("float32",), cases=("a|b",))
    run["cases"] += pictured["cases"]
    rows = [cells_of(line) for line in text.markdown(run).splitlines() if line.startswith("|")]
    assert rows[0][:2] == ["component", "case"]
    assert {len(row) for row in rows} == {9}
    assert [row[0] for row in rows[2:-3:2]] == [
        "transformer", "text encoder", "vision tower", "VAE", "scheduler", "pipeline", "pipeline",
    ]  # fmt: skip
    assert rows[-3][0] == "picture"
    assert rows[-1][:2] == ["a|b", "float32"]


def test_columns_stand_closer_before_a_name_is_broken(capsys):
    run = sample_run.clean(cases=("image-unguided",), **SMALL)
    loose = next(line for line in table(run, capsys).splitlines() if line.startswith("image-unguided"))
    run["cases"][0]["counts"] |= {"compared": 12209, "expected": 12209}
    tight = next(line for line in table(run, capsys).splitlines() if line.startswith("image-unguided"))
    assert "image-unguided  float32  isolated" in loose
    assert "image-unguided float32 isolated" in tight
    assert "12209/12209" in tight
