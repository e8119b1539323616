"""The committed samples: small, and every picture that README and docs show is there in light and dark."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture
def make(monkeypatch, tmp_path):
    """reports/make.py as a module, its times in a temporary file."""
    spec = importlib.util.spec_from_file_location("make_samples", ROOT / "reports" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TIMES", tmp_path / "times.json")
    return module


def test_pictures_are_small_and_have_a_palette(make):
    shots = sorted((ROOT / "reports" / "shots").glob("*.png"))
    assert {path.stem.rpartition("-")[0] for path in shots} == {*make.PARTS, *(f"plot-{name}" for name in make.PLOTS)}
    for path in shots:
        assert path.stat().st_size <= make.LARGEST
        with Image.open(path) as picture:
            assert picture.mode == "P"
    total = sum(path.stat().st_size for path in (ROOT / "reports").rglob("*") if path.is_file())
    assert total < 4_000_000


@pytest.mark.parametrize("page", ["README.md", "docs/plots.md"])
def test_each_picture_shown_is_there_in_light_and_dark(page):
    place = ROOT / page
    found = re.findall(
        r'<picture><source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)"><img alt="([^"]+)" src="([^"]+)">',
        place.read_text(encoding="utf-8"),
    )
    assert len(found) == 4
    for dark, _, light in found:
        assert dark == light.replace("-light.png", "-dark.png")
        assert (place.parent / dark).is_file()
        assert (place.parent / light).is_file()


def test_samples_keep_the_times_of_the_first_ones_and_no_folder(make, tmp_path):
    """GIVEN a run made twice, WHEN settled, THEN the second has the times of the first and its own figures."""
    found = []
    for number, seconds in ((1, 14.9), (2, 15.2)):
        run = {"figure": number, "seconds": seconds, "started": f"day {number}", "resources": {"peak_bytes": number}}
        run["weights"] = f"{tmp_path.resolve().parent}/tiny-4bit"
        (tmp_path / "parity.json").write_text(json.dumps(run))
        make.settle(tmp_path, "clean")
        found.append(json.loads((tmp_path / "parity.json").read_text()))
    assert [run.pop("figure") for run in found] == [1, 2]
    same = {"seconds": 14.9, "started": "day 1", "resources": {"peak_bytes": 1}, "weights": "tiny-4bit"}
    assert found == [same, same]


def test_a_picture_that_stays_too_large_is_an_error(make, tmp_path, monkeypatch):
    source, target = tmp_path / "a.png", tmp_path / "b.png"
    Image.effect_noise((64, 64), 90).save(source)
    make.small(source, target)
    with Image.open(target) as picture:
        assert picture.mode == "P"
    monkeypatch.setattr(make, "LARGEST", 100)
    with pytest.raises(SystemExit, match="against a limit of 100"):
        make.small(source, target)
