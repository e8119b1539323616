"""The error budget: its figures add up, and table, plot and page show them."""

import math
import shutil
import sys

import pytest
import sample_run
from mini import SUITE, write_checkpoint, write_suite

import mlx_impl
from parity import budget, budgetpage
from parity.budget import Parts, parts_of
from parity.cli import call
from parity.lockstep import Lockstep, Unit, iterate
from parity.plots import plan, render_plots
from parity.report import report_html
from parity.reporters import text
from parity.runfolder import read_run


def quantized(known=True):
    """A sample run as one on 4-bit weights."""
    run = sample_run.clean()
    run["weights"]["bits"] = {"transformer": {"4-bit group 64": 3}}
    for entry in run["cases"]:
        for row in entry["checkpoints"]:
            row |= {"precision": row["rel_rmse"] * 0.6, "quantization": 0.04 if known else None}
    return run


def test_the_parts_of_one_checkpoint():
    row = {"precision": 3e-3, "rel_rmse": 5e-3, "quantization": 0.1}
    assert parts_of(row) == Parts(0.1, 3e-3, pytest.approx(4e-3))
    assert parts_of(row | {"rel_rmse": 2e-3}).implementation == 0
    assert parts_of(row | {"rel_rmse": None}) is None
    assert parts_of(row | {"rel_rmse": math.nan}) is None
    assert parts_of(row | {"precision": None}) is None


def test_checkpoints_tell_of_classes_of_layers():
    names = {
        "block.07.img.mod": "modulation", "block.07.txt.k": "attention in", "block.07.img.attn": "attention out",
        "block.07.img.ffn": "MLP in and out", "block.07.img.out": None, "block.07.img.normed": None, "img_in": "embed",
        "temb": "embed", "time.linear_1": "embed", "rope.img": None, "norm_out.mod": "head", "final": "head",
    }  # fmt: skip
    assert {name: budget.layer_class(name) for name in names} == names


def test_a_run_on_plain_weights_has_no_budget():
    run = sample_run.clean()
    assert budget.entries(run) == []
    assert budget.table(run) == []
    assert budgetpage.section(run) is None
    assert not any(name.startswith("budget") for name, *_ in plan(run))
    assert 'id="budget"' not in report_html(run)


def test_rows_of_older_runs_without_the_figures_still_load():
    run = quantized()
    for entry in run["cases"]:
        for row in entry["checkpoints"]:
            del row["precision"], row["quantization"]
    assert budget.entries(run) == []
    assert budget.table(run) == []
    assert 'id="budget"' not in report_html(run)


@pytest.mark.parametrize("known", [True, False])
def test_the_budget_is_in_summary_page_and_plots(tmp_path, capsys, known):
    run = quantized(known)
    lines = budget.table(run)
    assert [line["error budget"] for line in lines][-1] == "all blocks, final"
    assert {line["quantization"] for line in lines} == ({"4.0e-02"} if known else {"–"})
    text.print_table(run)
    assert "quantization" in capsys.readouterr().out
    assert "| modulation |" in text.markdown(run)
    page = report_html(run)
    section = page[page.index('id="budget"') :].partition("</section>")[0]
    assert ("4.0e-02" in section) == known
    assert section.count("<path") == 2 * (3 if known else 2)
    assert ("--original" in section) != known
    run["cases"] = budget.first(run)[:1]
    for dark in (False, True):
        written = [path.name for path in render_plots(run, tmp_path, formats=("png",), dark=dark)]
        assert any(name.startswith("budget.") for name in written)


def test_lockstep_measures_quantization_against_the_original(tmp_path):
    """GIVEN two truths that differ in the weights alone, THEN the rows say by how much, in both modes."""
    from test_lockstep import CASE
    from toy import GRAPH, ToyPort

    class Two(ToyPort):
        def open(self, weights, **options):
            session = super().open(weights, **options)
            if weights.name == "original":
                for stage in session.weights:
                    session.weights[stage] = session.weights[stage] * session.dtype.type(1.25)
            return session

    def rows(original):
        unit = Unit(CASE, "float32", ("isolated", "accumulated"), GRAPH, draws=1)
        lockstep = Lockstep(unit, Two(), ToyPort(), tmp_path / "packed", original=original)
        configs = {"transformer": {"in_channels": 16, "joint_attention_dim": 4}}
        chains = lockstep.start(CASE.inputs(configs, "float32"))
        results = [result for _, _, result in iterate(lockstep, chains, 0)]
        return {mode: {row["name"]: row for result in results for row in result.rows[mode]} for mode in results[0].rows}

    found = rows(tmp_path / "original")
    # w against 1.25 w: a fifth of the original's.
    for mode in ("isolated", "accumulated"):
        assert found[mode]["img_in"]["quantization"] == pytest.approx(0.2, rel=1e-6)
        assert 0 < found[mode]["img_in"]["precision"] < 1e-6
    assert found["isolated"]["final"]["quantization"] == pytest.approx(0.2, rel=1e-6)
    assert found["accumulated"]["final"]["quantization"] > 0.25
    assert all(row["quantization"] is None for of in rows(None).values() for row in of.values())


def test_a_run_on_quantized_weights_is_clean_and_knows_its_budget(tmp_path, capsys):
    """GIVEN a model and itself at 4 and 8 bits, THEN there is no alarm, and 8 bits cost less than a fifth of 4."""
    original = write_checkpoint(tmp_path / "model" / "transformer")
    suite = write_suite(tmp_path, SUITE.replace('["float32"]', '["float32", "bfloat16"]'))
    cost = {}
    for bits in ("4", "8"):
        quantized = tmp_path / f"q{bits}"
        options = ("--bits", bits, "--group-size", "32")
        assert call(["weights", "quantize", str(original), str(quantized), *options]) == 0
        out = tmp_path / f"run{bits}"
        command = ["run", str(suite), "--weights", str(quantized), "--original", str(original), "--out", str(out)]
        assert call([*command, "--jobs", "1"]) == 0
        run = read_run(out)
        assert run["verdict"] == "parity"
        assert run["weights"]["original"]["layout"] == "diffusers"
        rows = [row for case in run["cases"] for row in case["checkpoints"]]
        assert max(row["excess"] for row in rows) <= 3
        for entry in run["cases"]:
            found = budget.at(entry, "final")
            cost.setdefault((entry["dtype"], entry["mode"]), []).append(found.quantization)
            assert bits == "8" or found.precision < found.quantization
    assert len(cost) == 4
    assert all(at_eight < at_four / 5 for at_four, at_eight in cost.values())
    assert "quantization" in capsys.readouterr().out


def test_an_original_that_cannot_be_one_is_refused(tmp_path, capsys):
    original = write_checkpoint(tmp_path / "model" / "transformer")
    other = write_checkpoint(tmp_path / "other" / "transformer", num_layers=1)
    assert call(["weights", "quantize", str(original), str(tmp_path / "q"), "--group-size", "32"]) == 0
    command = ["run", str(write_suite(tmp_path)), "--weights", str(tmp_path / "q"), "--out", str(tmp_path / "run")]
    assert call([*command, "--original", str(tmp_path / "q")]) == 4
    assert "packed as well" in capsys.readouterr().err
    assert call([*command, "--original", str(other)]) == 2
    assert "another model: transformer: transformer_blocks.1." in " ".join(capsys.readouterr().err.split())
    turned = write_checkpoint(tmp_path / "turned" / "transformer", axes_dims_rope=(8, 12, 12))
    assert call([*command, "--original", str(turned)]) == 2
    assert "axes_dims_rope is [8, 12, 12], expected [4, 14, 14]" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_wrong_original_shows_as_quantization_and_not_as_the_ports(tmp_path):
    """GIVEN weights of another seed as the original, THEN quantization is large and the verdict stays parity."""
    original = write_checkpoint(tmp_path / "model" / "transformer")
    wrong = write_checkpoint(tmp_path / "wrong" / "transformer", seed=1)
    assert call(["weights", "quantize", str(original), str(tmp_path / "q"), "--group-size", "32"]) == 0
    command = ["run", str(write_suite(tmp_path)), "--weights", str(tmp_path / "q"), "--jobs", "1"]
    cost = {}
    for name, folder in (("right", original), ("wrong", wrong)):
        assert call([*command, "--original", str(folder), "--out", str(tmp_path / f"run-{name}")]) == 0
        cost[name] = [budget.at(entry, "final").quantization for entry in read_run(tmp_path / f"run-{name}")["cases"]]
    assert all(right < 0.5 < wrong for right, wrong in zip(cost["right"], cost["wrong"], strict=True))


def test_scales_and_biases_exchanged_in_one_layer_are_found_there(tmp_path, monkeypatch):
    original = write_checkpoint(tmp_path / "model" / "transformer")
    assert call(["weights", "quantize", str(original), str(tmp_path / "q"), "--group-size", "32"]) == 0
    copy = tmp_path / "exchanged_impl"
    shutil.copytree(mlx_impl.__path__[0], copy, ignore=shutil.ignore_patterns("__pycache__"))
    weights = copy / "weights.py"
    right = '                found[f"{layer}scales"] = stored(*entry.packing.scales)\n'
    assert weights.read_text().count(right) == 1
    wrong = """                if f"{prefix}{layer}" == "transformer_blocks.1.attn.to_k.":
                    found[f"{layer}scales"], found[f"{layer}biases"] = (
                        stored(*entry.packing.biases), stored(*entry.packing.scales))
                    found[key] = array
                    continue
"""
    weights.write_text(weights.read_text().replace(right, wrong + right))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    command = ["run", str(write_suite(tmp_path)), "--weights", str(tmp_path / "q"), "--jobs", "1"]
    try:
        assert call([*command, "--candidate", "exchanged_impl", "--out", str(tmp_path / "run")]) == 1
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "exchanged_impl"]:
            del sys.modules[name]
    run = read_run(tmp_path / "run")
    assert run["first_divergence"]["checkpoint"] == "block.01.img.k"
    assert all(case["sources"] == ["block.01.img.k"] for case in run["cases"])
