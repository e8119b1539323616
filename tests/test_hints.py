"""Hints: what is wrong with a dump rather than with the port, each planted and found, and none where nothing is."""

import ml_dtypes
import numpy as np
import pytest
from golden_unit import GRAPH, HEADS, TOKENS, arrays, dump, write_golden
from safetensors.numpy import save_file

from parity.compare import compare
from parity.errors import UsageError
from parity.golden import read_golden
from parity.imports import open_candidate
from parity.imports.axes import layouts
from parity.imports.hints import exchanged, held_elsewhere, hints
from parity.names import parse


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return read_golden(write_golden(tmp_path_factory.mktemp("golden") / "g"))


@pytest.fixture
def hinted(golden, tmp_path):
    def of(made, case=""):
        found = open_candidate([dump(tmp_path / "d.safetensors", made, case)])
        rows = compare(golden, found)["cases"][0]["checkpoints"]
        diverged = [row["name"] for row in rows if row["verdict"] == "diverged"]
        readings = {name: found.read(name) for name in found.names if name in golden.graph.parents}
        return hints(found, golden, diverged, readings), compare(golden, found)

    return of


def test_a_right_dump_gets_no_hint_and_a_wrong_port_none_that_is_not_so(hinted):
    made = arrays()
    found, run = hinted(made)
    assert (found, run["verdict"]) == ([], "parity")
    rng = np.random.default_rng(1)
    wrong = {
        n: x + 0.02 * rng.standard_normal(x.shape).astype(x.dtype) * x.std() if ".img." in n else x
        for n, x in made.items()
    }
    found, run = hinted(wrong)
    assert found == []
    assert run["counts"]["diverged"] == 36


def of_kinds(kinds, change):
    return {name: change(x) if parse(name).kind in kinds else x for name, x in arrays().items()}


def shifted(name, by):
    block = parse(name).block
    return name if block is None else name.replace(f"block.{block:02d}", f"block.{block + by:02d}")


HEADS_FIRST = "transpose(0, 2, 1, 3)"
PLANTED = {
    "streams": (lambda: {exchanged(n) if exchanged(n) in GRAPH.parents else n: x for n, x in arrays().items()},
                "img and txt are exchanged in 76 names", 76),
    "one based": (lambda: {shifted(n, 1): x for n, x in arrays().items()},
                  "block numbers begin at 1 in 72 names", 72),
    "too high": (lambda: {shifted(n, 1) if n.startswith("block.02") else n: x for n, x in arrays().items()},
                 "block numbers are 1 too high in 24 names, block.03.", 24),
    "kinds": (lambda: {n.replace(".q", ".?").replace(".k", ".q").replace(".?", ".k"): x for n, x in arrays().items()},
              "q holds k in 6 names: block.00.", 6),
    "single": (lambda: {n: arrays()["block.01.img.k"] if n == "block.01.img.q" else x for n, x in arrays().items()},
               "block.01.img.q holds block.01.img.k", 1),
    "spelling": (lambda: {n.replace("block.0", "model.blocks."): x for n, x in arrays().items()},
                 "72 names are spelled otherwise than checkpoints: write block.00.", 72),
    "unknown": (lambda: {n.replace("01.img.attn", "01.img.atn"): np.flip(x) if n == "block.01.img.attn" else x
                         for n, x in arrays().items()},
                "1 name is no checkpoint: block.01.img.atn (nearest: block.01.img.attn", 1),
    "value of an unknown": (lambda: {n.replace("01.img.attn", "01.img.atn"): x for n, x in arrays().items()},
                            "block.01.img.atn holds block.01.img.attn", 1),
    "no batch": (lambda: {n: x[0] if x.shape[0] == 1 else x for n, x in arrays().items()},
                 "lack a batch dimension", len(GRAPH.expected) - 2),
    "two batches": (lambda: {n: x[None] for n, x in arrays().items()}, "have a batch dimension", len(GRAPH.expected)),
    "heads first": (lambda: of_kinds("qkv", lambda x: x.transpose(0, 2, 1, 3)), HEADS_FIRST, 18),
    "heads first, not contiguous": (
        lambda: of_kinds("qkv", lambda x: x.transpose(0, 2, 1, 3).reshape(x.shape)), HEADS_FIRST, 18),
    "heads first, merged": (
        lambda: of_kinds("qkv", lambda x: x.transpose(0, 2, 1, 3).reshape(1, x.shape[1], -1)), HEADS_FIRST, 18),
    "attention's heads first": (
        lambda: of_kinds(["attn"], lambda x: x.reshape(1, -1, HEADS, 16).transpose(0, 2, 1, 3).reshape(x.shape)),
        HEADS_FIRST + " of that shape, then reshape", 6),
    "merged": (lambda: of_kinds("qkv", lambda x: x.reshape(1, x.shape[1], -1)),
               "have another shape and the right order: reshape", 18),
    "transposed": (lambda: of_kinds(["attn", "ffn"], lambda x: x.transpose(0, 2, 1)), "transpose(0, 2, 1)", 12),
    "joint": (lambda: {n: np.concatenate([arrays()[exchanged(n)], x], 1) if parse(n).kind == "attn" else x
                       for n, x in arrays().items()},
              "6 names are of both streams: block.00.img.attn has 34 tokens, expected 24", 6),
    "inputs": (lambda: arrays(seed=5), "time.proj, img_in, txt_norm are all off while their shapes fit: the port "
               "probably had another timestep, latents and prompt embeddings", 3),
    "dtype": (lambda: {n: x.astype(ml_dtypes.bfloat16).astype(np.float32) for n, x in arrays().items()},
              "have no more digits than bfloat16", 8),
}  # fmt: skip


@pytest.mark.parametrize("what", PLANTED)
def test_each_mistake_of_a_dump_is_told_with_its_names(hinted, what):
    make, text, count = PLANTED[what]
    found, run = hinted(make())
    told = [hint for hint in found if text in hint.text]
    assert [hint.counted for hint in told] == [count], [hint.text for hint in found]
    assert told[0].text in run["notes"]
    assert all(name in make() for name in told[0].names)
    # One mistake, one hint; but for two kinds that were exchanged.
    assert len(found) == (2 if what == "kinds" else 1), [hint.text for hint in found]


def test_inputs_are_not_suspected_where_the_case_is_the_same_or_one_of_them_is_right(golden, hinted):
    from golden_unit import CASE

    assert hinted(arrays(seed=5), CASE)[0] == []
    assert hinted(arrays(seed=5) | {"img_in": arrays()["img_in"]})[0] == []


def test_a_shape_alone_is_said_to_be_no_more_than_that(golden, tmp_path):
    other = arrays(seed=3)
    made = {n: other[n].reshape(x.shape[::-1]) if parse(n).kind == "ffn" else x for n, x in arrays().items()}
    notes = compare(golden, open_candidate([dump(tmp_path / "d.safetensors", made)]))["notes"]
    shapes = "block.00.img.ffn is [32, 24, 1], expected [1, 24, 32]"
    assert notes == [f"ffn in 6 names have another order of axes ({shapes})"]


def test_values_are_found_elsewhere_only_within_the_floor(golden, tmp_path):
    made = {"block.00.img.attn": arrays()["block.00.img.ffn"]}
    for off, held in ((0, {"block.00.img.attn": "block.00.img.ffn"}), (1e-5, {})):
        path = dump(tmp_path / "d.safetensors", {n: x * np.float32(1 + off) for n, x in made.items()})
        found = open_candidate([path])
        assert held_elsewhere(golden, {name: found.read(name) for name in found.names}) == held


def test_a_sketch_with_what_is_not_finite_is_nobodys(golden, tmp_path):
    from dataclasses import replace

    found = open_candidate([dump(tmp_path / "d.safetensors", {"img_in": arrays()["temb"]})])
    reading = found.read("img_in")
    assert held_elsewhere(golden, {"img_in": replace(reading, sketch=np.full(2048, np.nan))}) == {}


def test_every_layout_reads_back_what_was_turned():
    x = np.arange(144).reshape(1, 12, 12)
    expected = (1, 12, 12)
    count = 0
    for layout in layouts(expected, expected, heads=3):
        # Values that lie in the layout's order: the inverse of reading.
        view = tuple(layout.axes[i] for i in layout.order)
        assert view in (expected, (1, 12, 3, 4))
        lying = x.reshape(view).transpose(np.argsort(layout.order))
        assert lying.shape == layout.axes
        assert np.array_equal(layout.read(np.ascontiguousarray(lying).reshape(expected)), x)
        count += 1
    assert count == 1 + 5
    assert list(layouts((1, 5), (1, 6))) == []
    assert sum(TOKENS.values()) == 34


def test_a_whole_run_is_not_held_against_floors_of_single_stages_in_silence(tmp_path, capsys):
    from golden_unit import CASE

    golden = read_golden(write_golden(tmp_path / "g", mode="isolated"))
    wrong = arrays() | {"final": arrays(seed=2)["final"]}
    notes = compare(golden, open_candidate([dump(tmp_path / "d.safetensors", wrong)]))["notes"]
    assert len(notes) == 1
    assert notes[0].startswith("the golden trace is isolated, and the dump has the case of a whole run")
    assert compare(golden, open_candidate([dump(tmp_path / "d.safetensors", wrong, "")]))["notes"] == []
    save_file(wrong, tmp_path / "e.safetensors", {"parity.case": CASE, "parity.mode": "isolated"})
    assert compare(golden, open_candidate([tmp_path / "e.safetensors"]))["notes"] == []
    save_file(wrong, tmp_path / "e.safetensors", {"parity.mode": "accumulated"})
    with pytest.raises(UsageError, match="mode accumulated"):
        compare(golden, open_candidate([tmp_path / "e.safetensors"]))
