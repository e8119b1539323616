"""What the page draws of a stage's dataflow: the graph's own edges, and a node a checkpoint."""

import browser
import pytest
import sample_run

from parity.components import build_graph
from parity.dataflow import MOST, parents_of
from parity.names import Graph
from parity.report import render_report

SMALL = {"blocks": 3, "dtypes": ("float32",)}
COMPONENTS = ("transformer", "text", "vision", "vae", "scheduler", "pipeline")


def named(entry):
    names = [row["name"] for row in entry["checkpoints"]]
    return {
        name: {names[i - back] for back in its}
        for i, (name, its) in enumerate(zip(names, parents_of(entry), strict=True))
    }


@pytest.mark.parametrize("level", ["full", "kinds"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_edges_are_those_of_the_graph_seen_through_what_was_not_compared(component, level):
    entry = sample_run.clean(component=component, level=level, inside=(1,), **SMALL)["cases"][0]
    graph, found = build_graph(entry["graph"]), named(entry)
    assert found == {name: set(graph.visible_parents(name, graph.expected)) for name in graph.expected}
    assert any(found.values())


def test_an_entry_without_a_graph_has_no_edges():
    entry = sample_run.clean(**SMALL)["cases"][0]
    for graph in (None, {}, {"name": "transformer", "num_layers": "x"}, {"name": "other"}, 3):
        assert set(parents_of(entry | {"graph": graph})) == {()}
    del entry["graph"]
    assert set(parents_of(entry)) == {()}


def test_of_many_parents_some_are_kept(monkeypatch):
    many = [f"p{i}" for i in range(MOST + 9)]
    graph = Graph({**dict.fromkeys(many, ()), "end": tuple(many)}, dict.fromkeys([*many, "end"], "s"), (*many, "end"))
    monkeypatch.setattr("parity.dataflow.build_graph", lambda described: graph)
    entry = {"graph": {}, "checkpoints": [{"name": name} for name in (*many, "end")]}
    assert len(parents_of(entry)[-1]) == MOST


browses = pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium")
NODES = (
    """all("#flow a").map((one) => [one.getAttribute("class"), one.querySelector("title").textContent.split(":")[0]])"""
)
OVERLAPS = """(() => { const boxes = all("#flow a > rect:not(.ring)").map((one) => one.getBoundingClientRect());
  return boxes.filter((a, i) => boxes.some((b, k) => k !== i && a.left < b.right - 1 && b.left < a.right - 1
    && a.top < b.bottom - 1 && b.top < a.bottom - 1)).length; })()"""


@pytest.mark.slow
@browses
def test_a_block_is_drawn_with_its_verdicts_and_a_node_selects(tmp_path):
    run = sample_run.diverged(**SMALL)
    page = render_report(run, tmp_path / "report.html", force=True)
    script = f"""const before = {NODES}, overlaps = {OVERLAPS}, stage = $("#stage").value;
      const node = all("#flow a").find((one) => /^block.01.txt.ffn:/.test(one.querySelector("title").textContent));
      click(node); await until(() => $(".detail"));
      return {{ before, overlaps, stage, address: win.location.hash, after: {NODES},
        open: all('#rows button[aria-expanded="true"]').map((one) => one.textContent) }};"""
    seen, console = browser.look(page, script)
    assert console == []
    assert seen["stage"] == "block.01"
    assert seen["overlaps"] == 0
    own = [row for row in run["cases"][0]["checkpoints"] if row["stage"] == "block.01"]
    assert {name: kind for kind, name in seen["before"] if "ghost" not in kind} == {
        row["name"]: f"node {row['verdict']}" for row in own
    }
    ghosts = {name for kind, name in seen["before"] if kind == "node fed ghost"}
    assert ghosts == {"block.00.img.out", "block.00.txt.out", "temb", "rope.img", "rope.txt"}
    assert seen["open"] == ["block.01.txt.ffn"]
    assert ["node match chosen", "block.01.txt.ffn"] in seen["after"]


@pytest.mark.slow
@browses
@pytest.mark.parametrize("component", COMPONENTS)
def test_every_stage_of_every_component_is_drawn_without_overlap(tmp_path, component):
    run = sample_run.diverged(component=component, inside=(1,), **SMALL)
    page = render_report(run, tmp_path / "report.html", force=True)
    script = f"""const seen = {{}}, select = $("#stage");
      for (const stage of [...select.options].map((one) => one.value)) {{
        select.value = stage; select.dispatchEvent(new win.Event("change"));
        seen[stage] = [all("#flow a:not(.ghost)").length, {OVERLAPS}];
      }}
      return seen;"""
    seen, console = browser.look(page, script)
    assert console == []
    stages = [row["stage"] for row in run["cases"][0]["checkpoints"]]
    assert seen == {stage: [min(48, stages.count(stage)), 0] for stage in stages}


@pytest.mark.slow
@browses
def test_what_has_diverged_is_carried_into_a_stage_in_accumulated_mode_only(tmp_path):
    run = sample_run.diverged(**SMALL)
    page = render_report(run, tmp_path / "report.html", force=True)
    entering = """const of = (kind) => all(kind).filter((one) => /^block.01.img.out:/.test(one.textContent)).length;
      return [of("#flow a.fed"), of("#flow a.diverged"), all("#flow .carried").length];"""
    for case, drawn in zip(run["cases"], ([1, 0], [0, 1]), strict=True):
        rows, mode = {row["name"]: row for row in case["checkpoints"]}, case["mode"]
        off = [
            rows[parent]
            for name, parents in named(case).items() for parent in parents
            if rows[name]["stage"] == "block.02" and rows[parent]["verdict"] == "diverged"
        ]  # fmt: skip
        carried = [row for row in off if mode == "accumulated" or row["stage"] == "block.02"]
        seen, _ = browser.look(page, entering, address=f"#square.float32.{mode}/block.02.img.mid")
        assert seen == [*drawn, len(carried)]
        assert (len(carried) < len(off)) == (mode == "isolated")


@pytest.mark.slow
@browses
def test_without_a_graph_the_page_says_so(tmp_path):
    run = sample_run.clean(**SMALL)
    for entry in run["cases"]:
        del entry["graph"]
    page = render_report(run, tmp_path / "report.html", force=True)
    seen, console = browser.look(page, 'return [$("#flowwords").textContent, all("#flow a").length];')
    assert (seen, console) == (["This run does not say what its checkpoints are computed from.", 0], [])
