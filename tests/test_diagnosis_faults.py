"""The transformer's recipes and its catalogue of faults, each tried on a small model in float64."""

import json
from dataclasses import dataclass, field

import mini
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from parity.components.transformer import TransformerCase
from parity.diagnosis.evidence import IMPOSSIBLE
from parity.diagnosis.fault import catalogue
from parity.diagnosis.place import Values
from parity.diagnosis.recipes.transformer import TransformerPlace
from parity.names import parse, qwen_image_transformer
from parity.ports import open_port
from parity.rounding import round_state

# The codes of the transformer's own computation, by the section of the catalogue of faults.
CODES = set(
    """
    modulation.order modulation.one_plus_missing modulation.shift_missing modulation.gate_missing
    modulation.silu_missing
    norm_out.order norm.eps norm.rms_for_layer norm.qk_missing norm.qk_after_rope norm.qk_swapped norm.txt_missing
    cond.zero_cond_t_missing
    attention.scale_missing attention.scale_wrong attention.mask_missing attention.mask_inverted attention.causal
    attention.stream_order attention.heads_layout attention.kv_swapped
    attention.out_proj_swapped attention.row_all_masked
    rope.pairing rope.not_centred rope.text_offset rope.axes_order rope.theta rope.low_precision rope.text_len_from_mask
    rope.missing_text rope.missing rope.sign
    time.scale time.halves time.freq_shift time.dtype time.linear_order time.silu_missing
    ffn.activation ffn.gate_missing residual.missing ffn.clamped ffn.fp16_overflow
    layout.not_contiguous layout.patch_order layout.rows_shifted layout.width_height
    """.split()  # noqa: SIM905
)
MODULES = ("modulation", "norms", "conditioning", "attention", "rope", "rotation", "time", "ffn", "layout")
# Different mistakes that make the same numbers.
TIES = {
    # A row of length 1 is a normalized row over √d.
    frozenset({"norm.formula", "attention.scale_wrong"}),
    # Text has one position on all axes: sections that change places are sections of other widths.
    frozenset({"rope.theta", "rope.axes_order"}),
}
# A clamp where nothing is large enough changes nothing.
UNSEEN = ("ffn.clamped",)


@dataclass
class Subject:
    """One small model on one case: the values of each stage."""

    stages: dict[str, Values] = field(default_factory=dict)

    def places(self):
        for values in self.stages.values():
            yield from (values.place(name) for name in values.captured)

    def with_value(self, name, value):
        """A place whose candidate has another value."""
        of = next(v for v in self.stages.values() if name in v.captured)
        captured = dict(of.captured) | {name: value}
        return Values(of.domain, of.graph, of.stage, captured, of.state, of.weights, of.config).place(name)

    def place(self, name):
        return next(v for v in self.stages.values() if name in v.captured).place(name)


def subject(folder, *, images, text_tokens, **config):
    mini.write_checkpoint(folder / "transformer", **config)
    draw = np.random.default_rng(1)
    for file in (folder / "transformer").glob("*.safetensors"):
        tensors = load_file(file)
        for key, tensor in tensors.items():
            # As initialised all are one, and no fault of theirs would show.
            if tensor.ndim == 1 and ("attn.norm" in key or key == "txt_norm.weight"):
                tensors[key] = (1 + 0.3 * draw.standard_normal(tensor.shape)).astype(tensor.dtype)
        save_file(tensors, file, {"format": "pt"})
    config = json.loads((folder / "transformer" / "config.json").read_text())
    case = TransformerCase(name="s", seed=0, images=images, text_tokens=text_tokens, timestep=0.9)
    graph = qwen_image_transformer(config["num_layers"])
    state = round_state(case.inputs({"transformer": config}, "float32"), np.dtype("float64"))
    session = open_port("reference").open(folder, dtype="float64", hold="float32", component="transformer")
    found = Subject()
    for stage in graph.stages:
        session.load(stage)
        after, captured = session.run(stage, state, graph.names_of(stage))
        found.stages[stage] = Values(TransformerPlace, graph, stage, captured, state, weights(session, stage), config)
        state = after
    return found


def weights(session, stage):
    held = {}

    def weight(key):
        if key not in held:
            try:
                held[key] = session.weight(stage, key)
            except AttributeError:
                raise KeyError(key) from None
        return held[key]

    return weight


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """An editing model with padding and a condition picture; a layered one; one sample alone."""
    make = tmp_path_factory.mktemp
    return {
        "edit": subject(make("edit"), images=((64, 96), (48, 32)), text_tokens=(7, 4), zero_cond_t=True),
        "layered": subject(
            make("layered"), images=((64, 80), (64, 80), (48, 32)), text_tokens=(5, 5),
            use_layer3d_rope=True, use_additional_t_cond=True,
        ),
        "alone": subject(make("alone"), images=((48, 80), (32, 32)), text_tokens=(40,), zero_cond_t=True),
    }  # fmt: skip


def ours():
    return [
        one for one in catalogue()
        if one.variants and one.variants.__module__.rpartition("faults.")[2] in MODULES
    ]  # fmt: skip


def predictions(place):
    """(fault, detail, prediction) of all variants at a place."""
    with np.errstate(all="ignore"):
        for fault in ours():
            if fault.speaks_of(place):
                for detail, changed in fault.variants(place):
                    yield fault, detail, changed.recipe()


def far(a, b):
    """Relative RMSE; infinite where shapes or non-finite values differ."""
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return np.inf
    with np.errstate(all="ignore"):
        difference = np.where(np.isfinite(a), a - b, 0.0)
        return np.linalg.norm(difference) / max(np.linalg.norm(np.where(np.isfinite(b), b, 0.0)), 1e-300)


def found_at(place, value, limit=1e-6):
    """(code, detail) of the variants that explain a value."""
    return [(fault.code, detail) for fault, detail, made in predictions(place) if far(made, value) < limit]


def sites(subject):
    """One place of each kind and stream: both ends, and the first block."""
    return [place for place in subject.places() if place.block in (None, 0)]


@pytest.mark.parametrize("name", ["edit", "layered", "alone"])
def test_recipes_are_the_truth_at_every_checkpoint(subjects, name):
    off = {place.name: far(place.recipe(), place.values.captured[place.name]) for place in subjects[name].places()}
    assert len(off) == 60
    assert {where: error for where, error in off.items() if error > 1e-14} == {}


def test_every_code_of_the_transformer_has_an_experiment():
    assert CODES - {one.code for one in ours()} == set()


def test_titles_and_fixes_are_one_line_and_kinds_are_the_graphs():
    kinds = {parse(name).kind for name in qwen_image_transformer(1).parents}
    for one in ours():
        assert all((one.title.strip(), one.fix.strip())), one.code
        assert "\n" not in one.title + one.fix + one.seen, one.code
        assert not set(one.kinds) - kinds, (one.code, one.kinds)


@pytest.mark.parametrize("name", ["edit", "layered", "alone"])
def test_every_variant_can_be_computed_and_differs_from_the_reference(subjects, name):
    unchanged, again, shown = [], [], set()
    for place in sites(subjects[name]):
        right, details = place.recipe(), set()
        for fault, detail, made in predictions(place):
            shown.add((fault.code, place.kind))
            if (fault, detail) in details:
                again.append((place.name, fault.code, detail))
            details.add((fault, detail))
            if far(made, right) < 1e-12 and fault.code not in UNSEEN:
                unchanged.append((place.name, fault.code, detail))
    assert unchanged == []
    assert again == []
    assert len(shown) > 190


def test_every_kind_a_fault_speaks_of_has_a_variant_somewhere(subjects):
    # These need a candidate of their own; see below.
    estimated = {"ffn.clamped", "ffn.fp16_overflow", "layout.rows_shifted"}
    shown = {
        (fault.code, place.kind) for one in subjects.values() for place in sites(one)
        for fault, _, _ in predictions(place)
    }  # fmt: skip
    expected = {(one.code, kind) for one in ours() for kind in one.kinds if one.code not in estimated}
    assert expected - shown == set()


@pytest.mark.parametrize("name", ["edit", "layered", "alone"])
def test_different_mistakes_make_different_numbers(subjects, name):
    ties = set()
    for place in sites(subjects[name]):
        made = [(f.code, detail, value) for f, detail, value in predictions(place) if f.code not in UNSEEN]
        for i, (code, detail, value) in enumerate(made):
            for other, its, theirs in made[:i]:
                pair = frozenset({code, other})
                if len(pair) == 2 and pair not in TIES and far(value, theirs) < 1e-6:
                    ties.add((place.name, code, detail, other, its))
    assert ties == set()


def test_a_recipe_without_a_fault_is_explained_by_none(subjects):
    for place in sites(subjects["edit"]):
        codes = {code for code, _ in found_at(place, place.recipe(), limit=1e-9)}
        assert codes <= set(UNSEEN), place.name


@pytest.mark.parametrize(
    ("where", "change", "code", "detail"),
    [
        ("rope.txt", {"text_start": lambda: 777}, "rope.text_offset", "at 777"),
        ("rope.txt", {"text_start": lambda: -31}, "rope.text_offset", "at -31"),
        ("rope.img", "base", "rope.theta", "base 12345"),
        ("rope.txt", "base", "rope.theta", "base 12345"),
        ("rope.img", "speed", "rope.interpolated", "0.7 times"),
        ("time.proj", "scale", "time.scale", "1234·t"),
        ("time.proj", "period", "time.freq_shift", "max period 33330"),
    ],
)
def test_a_number_is_read_off_the_candidate_and_put_to_the_test(subjects, where, change, code, detail):
    place = subjects["edit"].place(where)
    if change == "base":
        change = {"frequencies": lambda: place.frequencies(12345.0)}
    elif change == "speed":
        change = {"image_positions": lambda: place.image_positions() * 0.7}
    elif change in ("scale", "period"):
        more = {"scale": 1234.0} if change == "scale" else {"period": 33330.0}
        change = {"sinusoid": lambda timestep: place.sinusoid(timestep, **more)}
    value = place.changed(**change).recipe()
    found = found_at(subjects["edit"].with_value(where, value.astype(np.float32)), value)
    assert code in {one for one, _ in found}
    assert detail.partition(" ")[0] in " ".join(said for one, said in found if one == code)


@pytest.mark.parametrize("shift", [-3, -1, 1, 2])
def test_shifted_rows_are_told_whatever_lies_beyond_them(subjects, shift):
    right = subjects["edit"].place("txt_in").recipe()
    beyond = np.random.default_rng(0).standard_normal(right.shape)
    value = np.roll(right, shift, axis=1)
    rows = slice(0, shift) if shift > 0 else slice(shift, None)
    value[:, rows] = beyond[:, rows]
    found = found_at(subjects["edit"].with_value("txt_in", value), value)
    said = f"{abs(shift)} too {'early' if shift > 0 else 'late'}, other rows beyond"
    assert found == [("layout.rows_shifted", said)]


@pytest.mark.parametrize("where", ["block.00.img.ffn", "block.00.txt.out", "block.01.img.modulated2"])
def test_a_clamp_is_told_by_the_candidates_own_extremes(subjects, where):
    right = subjects["edit"].place(where).recipe()
    bound = float(np.quantile(np.abs(right), 0.98))
    for value, said in (
        (np.clip(right, -bound, bound), f"at ±{bound:.3g}"),
        (np.minimum(right, bound), f"at {bound:.3g} from above"),
        (np.maximum(right, -bound), f"at {-bound:.3g} from below"),
    ):
        assert ("ffn.clamped", said) in found_at(subjects["edit"].with_value(where, value), value)


def test_half_precision_overflow_is_told_only_where_something_is_infinite(subjects):
    where = "block.00.img.ffn"
    place = subjects["edit"].place(where)
    large = place.changed(linear=lambda x, layer: place.linear(x, layer) * (1e6 if layer.endswith("net.2") else 1.0))
    right = large.recipe()
    value = np.where(np.abs(right) > 65520, np.copysign(np.inf, right), right)
    assert 0 < np.isinf(value).sum() < value.size
    assert not [f for f in ours() if f.code == "ffn.fp16_overflow" for _ in f.variants(place)]
    candidate = subjects["edit"].with_value(where, value)
    candidate = candidate.changed(linear=large.linear)
    assert ("ffn.fp16_overflow", "the result") in found_at(candidate, value)


def test_faults_can_be_put_on_top_of_one_another(subjects):
    place = subjects["edit"].place("block.00.img.modulated")
    by_code = {one.code: one for one in ours() if one.speaks_of(place)}
    swapped = dict(by_code["modulation.order"].variants(place))["scale1 as shift, shift1 as scale"]
    both = dict(by_code["modulation.one_plus_missing"].variants(swapped))["scale·x + shift"]
    shift, scale, *_ = place.chunks(place.of("mod"))
    assert far(both.recipe(), place.of("normed") * shift + scale) < 1e-15


def test_absent_needs_make_no_variants(subjects):
    masked = {"attention.mask_missing", "attention.mask_inverted", "attention.mask_wrong", "attention.row_all_masked"}
    seen = {fault.code for place in sites(subjects["alone"]) for fault, _, _ in predictions(place)}
    assert seen & masked == set()
    assert "cond.additional_t_missing" not in seen


def test_what_makes_a_variant_impossible_is_known_to_the_search(subjects):
    # A mask of another length than the text: no variant may stop a diagnosis.
    of = subjects["edit"].stages["block.00"]
    state = dict(of.state) | {"prompt_mask": np.ones((2, 3), bool)}
    values = Values(of.domain, of.graph, of.stage, of.captured, state, of.weights, of.config)
    place = values.place("block.00.txt.attn")
    with pytest.raises(IMPOSSIBLE):
        place.recipe()
