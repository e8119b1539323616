"""The committed samples: small, and every picture that README and docs show is there in light and dark."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture
def make():
    """reports/make.py as a module."""
    spec = importlib.util.spec_from_file_location("make_samples", ROOT / "reports" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
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


def test_a_sample_does_not_say_where_it_was_made(make, tmp_path):
    run = {"command": "parity run", "weights": f"{tmp_path.resolve().parent}/tiny-4bit", "seconds": 14.9}
    (tmp_path / "parity.json").write_text(json.dumps(run))
    make.anywhere(tmp_path)
    assert json.loads((tmp_path / "parity.json").read_text()) == run | {"weights": "tiny-4bit"}
    for page in (ROOT / "reports").glob("*/report.html"):
        assert "/tmp/" not in page.read_text(encoding="utf-8")


def test_a_picture_that_stays_too_large_is_an_error(make, tmp_path, monkeypatch):
    source, target = tmp_path / "a.png", tmp_path / "b.png"
    Image.effect_noise((64, 64), 90).save(source)
    make.small(source, target)
    with Image.open(target) as picture:
        assert picture.mode == "P"
    monkeypatch.setattr(make, "LARGEST", 100)
    with pytest.raises(SystemExit, match="against a limit of 100"):
        make.small(source, target)
