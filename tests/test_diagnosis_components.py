"""Recipes of scheduler, text encoder, VAE and pipelines are the reference's; their faults are told apart."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pipeline_folder
import pytest
import text_model

from parity.components import build_graph
from parity.components.base import Case
from parity.components.pipeline import PipelineCase
from parity.components.scheduler import SchedulerCase
from parity.components.text import TextCase
from parity.components.vae import VaeCase
from parity.diagnosis.evidence import Stage, equal, predict
from parity.diagnosis.fault import catalogue
from parity.diagnosis.measure import residual
from parity.diagnosis.place import Values
from parity.diagnosis.recipes import place_class
from parity.diagnosis.reopen import Reopened
from parity.diagnosis.search import Search, put_in
from parity.model_folder import inspect
from parity.ports import open_port
from parity.rounding import round_state

EVERYTHING = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
# Kinds without a recipe: what a library makes of pictures, and the whole transformer.
WITHOUT = {"pipeline.features", "cond", "uncond"}
PROMPTS = ("a cat", "a dog on a very green hill, painted")
CASES = {
    "schedule": SchedulerCase(name="s", seed=0, image=(128, 240), steps=6, strength=0.6),
    "lightning": SchedulerCase(name="s", seed=0, image=(64, 64), steps=4, settings="lightning"),
    "prompts": TextCase(name="t", seed=0, prompts=PROMPTS),
    "cut": TextCase(name="t", seed=0, prompts=PROMPTS, max_sequence_length=4),
    "edit": TextCase(name="t", seed=0, prompts=("a cat",), template="edit", pictures=((56, 84),), positions="grid"),
    "vae": VaeCase(name="v", seed=0, image=(48, 64), batch=2),
    "decoder": VaeCase(name="v", seed=0, image=(48, 64), start="latents"),
    "pipeline": PipelineCase(
        name="p", seed=0, kind="text_to_image", image=(64, 96), steps=3,
        prompts=PROMPTS, negative=(" ", "x"), inside=(1,),
    ),
    "inpaint": PipelineCase(
        name="p", seed=0, kind="inpaint", image=(64, 96), steps=4, prompts=("a",), pictures=((70, 80),), strength=0.6
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_model.write_model(tmp_path_factory.mktemp("text"))


def stages(case: Case, texts: Path, dtype: str = "float32", truth: bool = False) -> Iterator[Stage]:
    """The reference as its own candidate, or the truth's values, stage by stage."""
    root = texts if case.component == "text" else pipeline_folder.write_pipeline()
    model = inspect(root, case.folders if case.component == "text" else EVERYTHING)
    graph, reference = build_graph(case.graph(model.configs, "full")), open_port("reference")
    config, weights = Reopened(model, reference, reference)._of(case, dtype)
    session = reference.open(root, dtype=dtype, component=case.component)
    exact = reference.open(root, dtype="float64", hold=dtype, component=case.component)
    state = case.inputs(model.configs, dtype)
    for stage in graph.stages:
        for one in (session, exact):
            one.load(stage)
        after, captured = session.run(stage, state, graph.names_of(stage))
        of_truth = exact.run(stage, round_state(state, np.dtype(np.float64)), graph.names_of(stage))[1]
        shown = of_truth if truth else captured
        values = Values(place_class(case.component), graph, stage, shown, state, weights, config, truth=of_truth)
        yield Stage(values, [values], of_truth, np.dtype(dtype))
        state = after


@pytest.mark.parametrize("name", CASES)
def test_recipes_are_the_truth(name: str, texts: Path):
    seen = set()
    for stage in stages(CASES[name], texts, truth=True):
        for checkpoint in stage.values.graph.names_of(stage.values.stage):
            place = stage.values.place(checkpoint)
            made = predict(place)
            if made is None:
                assert place.kind in WITHOUT, checkpoint
                continue
            seen.add(checkpoint)
            assert residual(stage.truth[checkpoint], made).rms < 1e-12, checkpoint
    assert len(seen) > 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["schedule", "lightning", "inpaint"])
def test_levels_and_steps_are_the_references_bit_for_bit(name: str, dtype: str, texts: Path):
    kinds = set()
    for stage in stages(CASES[name], texts, dtype):
        for checkpoint, value in stage.values.captured.items():
            place = stage.values.place(checkpoint)
            if place.kind.startswith("sched.") or place.kind in (
                "sample", "latents", "timestep", "pipeline.sigmas", "pipeline.timesteps", "pipeline.latents"
            ):  # fmt: skip
                kinds.add(place.kind)
                assert equal(value, predict(place)), checkpoint
    assert len(kinds) > 3


# What a candidate did at a checkpoint, and the code by which it must be found.
FAULTS = [
    ("schedule", "sched.mu", "sched.mu", "base_shift, whatever the size"),
    ("schedule", "sched.sigmas", "sched.shift_missing", "no shift"),
    ("schedule", "sched.sigmas", "sched.terminal_missing", "no stretch"),
    ("schedule", "sched.sigmas", "sched.mu", "linear: weighed with mu"),
    ("schedule", "sched.sigmas", "sched.spacing", "from 1 to 0 in n"),
    ("schedule", "sched.noise.sample", "sched.noise", "picture and noise exchanged"),
    ("schedule", "sched.step.03.sample", "sched.step", "sign of the step"),
    ("schedule", "sched.begin", "sched.begin", "one too late"),
    ("prompts", "text.ids", "prompt.template", "twice"),
    ("prompts", "text.ids", "prompt.template", "no template"),
    ("prompts", "text.rope", "rope.theta", "10000"),
    ("prompts", "text.layer.01.q", "weights.bias_missing", "no bias"),
    ("prompts", "text.layer.00.attn", "text.causal_mask", "padding alone, not causal"),
    ("prompts", "text.layer.01.attn", "text.kv_repeat", "tiled: query head h uses key head h % K"),
    ("prompts", "text.layer.01.normed", "norm.eps", "0.001"),
    ("prompts", "text.norm", "text.hidden_layer", "before the final norm"),
    ("prompts", "text.prompt_embeds", "prompt.drop_prefix", "31 for 34"),
    ("edit", "text.rope", "text.mrope", "one after the other, pictures too"),
    ("cut", "text.prompt_embeds", "prompt.truncation", "not cut"),
    ("vae", "vae.encode.latents", "vae.stats", "not at all"),
    ("vae", "vae.decode.latents", "vae.stats", "divided by std, plus mean"),
    ("vae", "vae.decode.mid.resnet.00.conv1", "layout.conv_weight", "rows and columns exchanged"),
    ("vae", "vae.decode.conv_in", "vae.causal_slice", "the oldest"),
    ("vae", "vae.encode.down.02.downsample", "vae.padding", "on the left and above"),
    ("vae", "vae.decode.up.00.upsample", "vae.resample", "bilinear"),
    ("pipeline", "pipeline.prompt_embeds", "text.causal_mask", "padding alone, not causal"),
    ("pipeline", "pipeline.sigmas", "sched.mu", "from latent places instead of tokens"),
    ("pipeline", "step.01.timestep", "time.scale", "0…1000: not divided"),
    ("pipeline", "step.01.noise_pred", "cfg.norm_missing", "no rescaling"),
    ("pipeline", "step.01.noise_pred", "cfg.off", "the prediction for the prompt alone"),
    ("pipeline", "step.01.noise_pred", "cfg.branch", "prompt and negative prompt exchanged"),
    ("pipeline", "step.01.cond.block.01.img.attn", "attention.scale_missing", None),
    ("pipeline", "pipeline.image", "image.range", "-1…1 shown as 0…1"),
    ("pipeline", "pipeline.image", "layout.chw_hwc", "3 H W read as H W 3"),
    ("pipeline", "pipeline.image", "vae.stats", "not at all"),
    ("inpaint", "pipeline.mask", "inpaint.mask", "inverted"),
    ("inpaint", "step.01.latents", "inpaint.mask", "without noise"),
]


@pytest.mark.parametrize(("case", "checkpoint", "code", "detail"), FAULTS)
def test_a_fault_is_found(case: str, checkpoint: str, code: str, detail: str | None, texts: Path):
    stage = next(s for s in stages(CASES[case], texts) if s.values.graph.stage[checkpoint] == s.values.stage)
    place, value = stage.values.place(checkpoint), stage.values.captured[checkpoint]
    of_code = [one for one in catalogue() if one.code == code and one.variants and one.speaks_of(place)]
    ways = [(one, found) for one in of_code for found, _ in one.variants(place) if detail in (None, found)]
    assert ways
    wrong = put_in(place, ways[:1]).recipe()
    captured = dict(stage.values.captured) | {checkpoint: wrong.astype(value.dtype)}
    of = stage.values
    found = Stage(
        Values(of.domain, of.graph, of.stage, captured, of.state, of.weights, of.config, truth=of.truth),
        stage.references, stage.truth, stage.dtype,
    )  # fmt: skip
    local = next(one for one in found.local() if one.name == checkpoint)
    assert local.excess > 5
    matches = Search(catalogue()).explain(found, local)
    assert matches
    assert matches[0].codes == (code,)


def test_a_clean_candidate_is_not_wrong(texts: Path):
    for name in ("schedule", "prompts", "vae", "pipeline"):
        for stage in stages(CASES[name], texts):
            for local in stage.local():
                assert local.judged_by == "nothing" or local.excess < 3, local.name


def test_faults_have_words():
    ours = {"scheduler", "text", "vae", "pipeline"}
    found = [one for one in catalogue() if one.component in ours]
    assert len({one.code for one in found}) > 40
    assert all(one.title and one.fix and one.kinds for one in found)
