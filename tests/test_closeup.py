"""Single checkpoints and pictures as plots: what is drawn is what the run folder has, and a mistake is one line."""

import copy

import numpy as np
import pytest
import sample_run
from test_panelpage import NAME, broken

from parity import checkpointplots, closeup, pictureplots
from parity.cli import call
from parity.errors import UsageError
from parity.plots import plan, render_plots
from parity.plotstyle import DARK, LIGHT
from parity.reporters.terminal_closeup import lines_of_checkpoints
from parity.runfolder import write_json

SMALL = {"blocks": 2, "dtypes": ("float32",)}


def drawn(run, folder, kind, names=(NAME,)):
    """The figures of one kind, by name."""
    return {name: draw(LIGHT) for name, draw in checkpointplots.plan(run, folder, [kind], names)}


def words(figure):
    return " ".join(text.get_text() for text in figure.findobj(lambda one: hasattr(one, "get_text")))


def test_a_histogram_has_the_shares_of_both_sides(tmp_path):
    run = broken(tmp_path)
    figures = drawn(run, tmp_path, "histogram")
    assert list(figures) == [f"histogram.square.float32.accumulated.{NAME}"]
    (figure,) = figures.values()
    (one,) = [one for one in closeup.checkpoints(run, tmp_path, [NAME]) if one.histogram]
    first, *counts = one.histogram
    candidate, reference = (patch.get_data() for patch in figure.axes[0].patches)
    for shown, of in ((candidate, counts[1]), (reference, counts[0])):
        assert shown.edges.tolist() == list(range(first, first + len(of) + 1))
        assert shown.values == pytest.approx(np.maximum(np.array(of) / 4000, shown.baseline))
    assert "diverged" in words(figure)


def test_a_profile_has_a_panel_an_axis_and_its_worst_index(tmp_path):
    run = broken(tmp_path)
    (figure,) = drawn(run, tmp_path, "profile").values()
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0].startswith("row, 40; worst ")
    assert titles[1] in ("channel, 100 in 64 bins; worst 3", "channel, 100 in 64 bins; worst 4")
    *_, error = (patch.get_data() for patch in figure.axes[1].patches)
    assert error.edges[error.values.argmax()] + 0.5 <= 4


def test_what_is_not_finite_is_marked_and_in_the_key(tmp_path):
    run = broken(tmp_path)
    (one,) = [one for one in closeup.checkpoints(run, tmp_path, [NAME]) if one.axes]
    axis = one.axes[1] | {"bad": [0] * 10 + [5] + [0] * 53}
    figures = [checkpointplots.profile_figure(run, closeup.Checkpoint(one.entry, one.row, axes, ()), LIGHT)
               for axes in (one.axes, [axis])]  # fmt: skip
    crosses = [sum(len(line.get_xdata()) for ax in figure.axes for line in ax.lines if line.get_marker() == "x")
               for figure in figures]  # fmt: skip
    assert crosses == [0, 1]
    assert ["not finite" in words(figure) for figure in figures] == [False, True]


def test_without_a_name_it_is_the_source_or_else_the_worst(tmp_path):
    run = broken(tmp_path)
    told = [one.name for one in closeup.checkpoints(run, tmp_path)]
    assert told == [next(row["name"] for row in case["checkpoints"] if row["source"]) for case in run["cases"]]
    clean = sample_run.clean(**SMALL)
    clean["cases"][0]["checkpoints"][20].update(excess=2.9)
    assert next(closeup.checkpoints(clean, tmp_path)).name == clean["cases"][0]["checkpoints"][20]["name"]


@pytest.mark.parametrize(("name", "said"), [("block.0.img.attn", "block.00.img.attn"), ("block.00.img.atn", NAME),
                                            ("x\u202e", "x\\u202e")])  # fmt: skip
def test_an_unknown_checkpoint_is_said_with_those_close_to_it(tmp_path, name, said):
    with pytest.raises(UsageError) as failed:
        list(closeup.checkpoints(sample_run.clean(**SMALL), tmp_path, [name]))
    assert said in str(failed.value)
    assert "\u202e" not in str(failed.value)


def test_names_of_any_length_make_names_of_files(tmp_path):
    run = broken(tmp_path)
    for name in ("../" * 3000, "a." * 3000, "</script>"):
        hostile = copy.deepcopy(run)
        for case in hostile["cases"]:
            for row in case["checkpoints"]:
                row["name"] = name if row["name"] == NAME else row["name"]
        row = next(row for row in hostile["cases"][1]["checkpoints"] if row["name"] == name)
        one = closeup.Checkpoint(hostile["cases"][1], row, (), [-3, [1, 2], [2, 1]])
        assert checkpointplots.histogram_figure(hostile, one, DARK)
        file = checkpointplots.file_words(name)
        assert len(file) < 200
        assert "/" not in file
    assert checkpointplots.file_words("a.b") != checkpointplots.file_words("a-b")


def test_the_command_draws_and_prints_them(tmp_path, capsys):
    run = broken(tmp_path)
    write_json(tmp_path / "parity.json", run)
    assert call(["plot", str(tmp_path), "--checkpoint", NAME, "--format", "svg"]) == 0
    assert [path.name for path in sorted((tmp_path / "plots").iterdir())] == [
        f"histogram.square.float32.accumulated.{NAME}.svg", f"profile.square.float32.accumulated.{NAME}.svg",
    ]  # fmt: skip
    capsys.readouterr()
    assert call(["plot", str(tmp_path), "--checkpoint", NAME, "--terminal"]) == 0
    printed = capsys.readouterr().out
    assert "share of the values by |x|" in printed
    assert "rms along channel, 100, worst" in printed
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize("terminal", [[], ["--terminal"]])
def test_a_mistake_is_one_line(tmp_path, capsys, terminal):
    run = broken(tmp_path)
    write_json(tmp_path / "parity.json", run)
    for options, said in (
        (["--checkpoint", "nowhere"], "no such checkpoint"), (["--checkpoint", "img_in"], "there is no histogram"),
        (["--kind", "profile", "--checkpoint", "img_in"], "there is no profile of img_in"),
        ([str(tmp_path), "--checkpoint", NAME], "leave out all run folders but one"),
    ):  # fmt: skip
        assert call(["plot", str(tmp_path), *options, *terminal]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert said in printed.err
        assert printed.err.count("\n") == 1
    (tmp_path / "trace" / "square.float32" / "profiles.safetensors").write_bytes(b"x" * 9)
    assert call(["plot", str(tmp_path), "--checkpoint", NAME, *terminal]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "plots").exists()


def test_lines_say_the_same_as_the_figures(tmp_path):
    run = broken(tmp_path)
    lines = [line.plain for line in lines_of_checkpoints(run, tmp_path, ["profile"], [NAME])]
    error, truth = (next(line for line in lines if line.startswith(side)) for side in ("error", "truth"))
    assert error != truth
    assert not any("share" in line for line in lines)


def test_pictures_are_drawn_beside_each_other_with_their_figures(tmp_path):
    run = sample_run.pictured(tmp_path, dtypes=("float32",))
    (name, draw), = pictureplots.plan(run, tmp_path)  # fmt: skip
    assert name == "pictures.pipeline-plain.float32.accumulated.0"
    figure = draw(LIGHT)
    assert [ax.images[0].get_array().shape for ax in figure.axes] == [(96, 128, 3)] * 3
    reference, candidate, apart = (np.asarray(ax.images[0].get_array()).astype(int) for ax in figure.axes)
    factor = int(next(text.get_text() for text in figure.texts if text.get_text().startswith("Difference ×"))[13:])
    assert (apart == np.abs(reference - candidate) * factor).all()
    assert apart.max() > 0
    metrics = run["cases"][1]["pictures"][0]["metrics"]
    assert f"{metrics['psnr']:.2f}" in words(figure)
    assert "pictures" not in {name.partition(".")[0] for name, *_ in plan(run)}


def test_a_picture_that_is_not_there_is_said_in_its_place(tmp_path):
    run = sample_run.pictured(tmp_path, dtypes=("float32",))
    picture = run["cases"][1]["pictures"][0]
    (tmp_path / picture["candidate"]).unlink()
    (_, draw), = pictureplots.plan(run, tmp_path)  # fmt: skip
    figure = draw(DARK)
    assert len(figure.axes) == 1
    assert "is not in the run folder" in words(figure).replace("\n", " ")
    picture["candidate"] = "../../etc/passwd"
    assert "is no file of the run folder" in words(draw(DARK)).replace("\n", " ")


def test_all_kinds_have_the_pictures_and_leave_single_checkpoints_out(tmp_path):
    run = sample_run.pictured(tmp_path / "run", dtypes=("float32",))
    names = [path.name for path in render_plots(run, tmp_path / "plots", ("svg",), source=tmp_path / "run")]
    kinds = {name.partition(".")[0] for name in names}
    assert "pictures" in kinds
    assert not kinds & set(closeup.KINDS)
