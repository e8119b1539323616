"""``parity bench pictures``: what it prints, what it exits with."""

from __future__ import annotations

import json

import pytest

from parity.cli import call
from parity.picturecheck import score as scored

RIGHT = {
    "seed": 1, "broken": 40, "right": 40, "share": 1.0, "clean": 5, "flagged": 0, "wrong": [], "seconds": 0.1,
    "alone": {"right": 20, "of": 20}, "referenced": {"right": 20, "of": 20},
    "confusion": {"picture.black": {"picture.black": 4}, "nothing": {"nothing": 5}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "code"),
    [({}, 0), ({"flagged": 1}, 1), ({"share": 0.94}, 1), ({"share": 0.95}, 0)],
    ids=["all right", "a clean one flagged", "too few", "just enough"],
)
def test_it_exits_as_the_figures_are(monkeypatch, capsys, change, code) -> None:
    monkeypatch.setattr(scored, "score", lambda seed, **_: RIGHT | change)

    assert call(["bench", "pictures", "--seed", "1"]) == code

    assert "40 of 40 broken pictures right" in capsys.readouterr().out


def test_real_pictures_are_broken_diagnosed_and_saved(tmp_path, capsys) -> None:
    out = tmp_path / "pictures.json"

    call(["bench", "pictures", "--seed", "3", "--each", "1", "--clean", "2", "--out", str(out)])

    (seed,) = json.loads(out.read_text())["seeds"]
    assert seed["broken"] > 40
    assert seed["share"] > 0.8
    assert (seed["clean"], seed["flagged"]) == (2, 0)
    assert "seed 3 (held out)" in capsys.readouterr().out
