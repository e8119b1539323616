"""A diagnosis on the page: its cards, nothing that executes, and nothing where there is none."""

from __future__ import annotations

import json

import pytest
from sample_run import diverged

from parity.diagnosispage import FILE, read, section
from parity.errors import UsageError
from parity.report import report_html

HOSTILE = "</script><script>alert(1)</script>‮<img src=x onerror=alert(2)>"
CAUSE = {
    "code": "modulation.order", "title": "chunks in another order", "confidence": "proven", "fix": "swap them",
    "where": [f"block.{i:02d}.img.modulated" for i in range(60)], "detail": "scale as shift", "source": "the guide",
    "evidence": {"checkpoints": 60, "excess_with": 0.5, "excess_without": 1e6, "residual": 1e-8, "floor": 1e-7},
    "ties": [],
}  # fmt: skip
FOUND = {
    "schema": 1, "subject": "run", "sentence": "This port is the reference with modulation.order.", "causes": [CAUSE],
    "first_divergence": None, "sources": [], "explained": False, "notes": ["a note"], "would_decide": ["txt_in"],
    "unexplained": [{"where": "block.03.txt.ffn", "excess": 12.0, "reason": "",
                     "fingerprint": [{"relation": "negated", "residual": 1e-8, "exact": True}]}],
}  # fmt: skip


def _page(tmp_path, found) -> str:
    (tmp_path / FILE).write_text(json.dumps(found))
    return report_html(diverged(), tmp_path)


def test_a_page_without_a_diagnosis_says_nothing_of_one(tmp_path) -> None:
    assert 'id="diagnosis"' not in report_html(diverged(), tmp_path)
    assert section(None) is None


def test_a_cause_is_a_card_with_its_proof_and_its_fix(tmp_path) -> None:
    page = _page(tmp_path, FOUND)

    for said in ("modulation.order", "proven", "swap them", "img.modulated in blocks 0 to 59", "scale as shift",
                 "0.5 times the rounding noise at 60 checkpoints", "the guide", "negated", "txt.ffn in block 3",
                 "a note", "would decide: txt_in"):  # fmt: skip
        assert said in page, said


def test_the_same_diagnosis_gives_the_same_page(tmp_path) -> None:
    assert _page(tmp_path, FOUND) == _page(tmp_path, FOUND)


@pytest.mark.parametrize("key", ["code", "title", "fix", "detail", "source"])
def test_a_hostile_diagnosis_executes_nothing(tmp_path, key) -> None:
    page = _page(tmp_path, FOUND | {"causes": [CAUSE | {key: HOSTILE}], "sentence": HOSTILE, "notes": [HOSTILE]})

    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "‮" not in page


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": 2}', "", "\x00"], ids=["cut off", "list", "other", "empty", "nul"]
)
def test_a_damaged_file_is_one_line(tmp_path, text) -> None:
    (tmp_path / FILE).write_text(text)

    with pytest.raises(UsageError, match="no diagnosis"):
        read(tmp_path)
