"""Every code of the catalogue of porting faults: it is there, it is planted somewhere, and what is planted is found."""

from __future__ import annotations

import pytest

from parity.commands.bench_faults import quantize_4_bits
from parity.commands.synth import ensure
from parity.diagnosis.fault import by_code, catalogue
from parity.faultbench import instances as listed
from parity.faultbench import score
from parity.faultbench.cases import CASES, Models
from parity.faultbench.catalogue import injections
from parity.faultbench.lab import Lab

_TABLE = """
modulation.order modulation.one_plus_missing modulation.shift_missing modulation.gate_missing modulation.silu_missing
norm_out.order norm.eps norm.rms_for_layer norm.qk_missing norm.qk_after_rope norm.qk_swapped norm.txt_missing
cond.zero_cond_t_missing attention.scale_missing attention.scale_wrong attention.mask_missing attention.mask_inverted
attention.causal attention.stream_order attention.heads_layout attention.kv_swapped attention.out_proj_swapped
attention.row_all_masked rope.pairing rope.not_centred rope.text_offset rope.axes_order rope.theta rope.low_precision
rope.text_len_from_mask rope.missing_text rope.missing rope.sign time.scale time.halves time.freq_shift time.dtype
time.linear_order time.silu_missing ffn.activation ffn.gate_missing residual.missing ffn.clamped ffn.fp16_overflow
weights.missing weights.unused weights.random weights.swapped weights.transposed weights.bias_missing quant.group_size
quant.bits quant.packing quant.modulation_low_bits lora.not_applied lora.scale lora.lost_in_precision
layout.not_contiguous layout.chw_hwc layout.patch_order layout.conv_weight layout.rows_shifted layout.width_height
prompt.template prompt.drop_prefix prompt.truncation text.causal_mask text.hidden_layer text.mrope sched.shift_missing
sched.terminal_missing sched.mu cfg.off cfg.norm_missing cfg.branch latents.dtype vae.stats image.range vae.tiling
backend.kernel backend.precision_mode reference.also_bad
"""
CODES = _TABLE.split()
# Loading strictly shows what nothing loads; the reference's own faults are judged from a run's rows.
NOT_PLANTED = {"weights.unused", "reference.also_bad"}
PLANTED = [code for code in CODES if code not in NOT_PLANTED]


@pytest.mark.parametrize("code", CODES)
def test_a_code_has_a_title_and_a_fix_in_one_line(code) -> None:
    one = by_code()[code]

    assert 10 < len(one.title) < 120
    assert 5 < len(one.fix) < 200
    assert "\n" not in one.title + one.fix


def test_codes_are_of_one_form_and_one_code_has_one_component_part() -> None:
    for one in catalogue():
        part, _, what = one.code.partition(".")
        assert part.replace("_", "").isalpha(), one.code
        assert what.replace("_", "").isalnum(), one.code


def test_every_code_is_planted() -> None:
    assert set(PLANTED) - {one.code for one in injections()} == set()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Code -> outcomes of the instances that are tried until one is diagnosed right, of half b."""
    scratch = tmp_path_factory.mktemp("faults")
    models = Models.make(scratch, ensure, quantize_4_bits)
    lab = Lab(models, scratch)
    layers = {key: lab.layers(setting) for key, setting in CASES.items()}
    drawn = [one for one in listed.instances(layers) if one.kind == "fault"]
    found: dict[str, list[score.Outcome]] = {}
    # float32 and half b first: what is under the noise of bfloat16 shows there.
    for one in sorted(drawn, key=lambda one: (one.dtype != "float32", one.half != "b")):
        (code,) = one.codes
        tried = found.setdefault(code, [])
        if len(tried) < 3 and not any(outcome.good for outcome in tried):
            tried.append(score.examine(lab, one, score.diagnose_run))
    return found


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("code", PLANTED)
def test_what_is_planted_is_found_and_named(outcomes, code) -> None:
    tried = outcomes[code]

    assert any(one.good for one in tried), [(one.instance, one.causes, one.unexplained, one.error) for one in tried]
