"""``parity diagnose`` on pictures: bad files, the JSON, and each symptom by itself and beside the reference."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from parity.errors import OutputExistsError, UsageError
from parity.picturecheck import examine
from parity.picturecheck.catalogue import ENTRIES
from parity.picturecheck.corruptions import CORRUPTIONS
from parity.picturecheck.examine import look
from parity.picturecheck.samples import KINDS, clean, rich, stretched
from parity.picturecheck.score import TUNED, score


def photograph(*, seed=1, multiple=16, full=False):
    picture = KINDS["painting"](np.random.default_rng(seed), 208, 304)[: 208 // multiple * multiple]
    picture = np.clip(picture + np.random.default_rng(seed).normal(0, 2, (*picture.shape[:2], 1)), 0, 255)
    return stretched(picture) if full else picture.astype(np.uint8)


def saved(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def test_channels_first_read_as_last_is_likely_alone_and_proven_beside_the_reference(tmp_path):
    good = photograph()
    broken = CORRUPTIONS["planar_as_interleaved"].make(good, np.random.default_rng(0))
    image, reference = saved(tmp_path / "a.png", broken), saved(tmp_path / "b.png", good)
    alone, beside = examine(image), examine(image, reference, tmp_path / "out")
    assert [(c["code"], c["confidence"]) for c in alone["causes"]] == [("layout.chw_hwc", "likely")]
    assert [(c["code"], c["confidence"]) for c in beside["causes"]] == [("layout.chw_hwc", "proven")]
    assert beside["explained"]
    assert beside["unexplained"] == []
    assert beside["subject"] == "picture"
    assert "CHW" in alone["causes"][0]["detail"]
    assert "layout.not_contiguous" in alone["causes"][0]["ties"]
    assert beside["metrics"]["psnr"] < 30
    assert [(tmp_path / "out" / name).is_file() for name in beside["overlay"]] == [True]
    json.dumps(beside, allow_nan=False)
    with pytest.raises(OutputExistsError, match="already there"):
        examine(image, reference, tmp_path / "out")
    with pytest.raises(UsageError, match="no folder"):
        examine(image, reference, reference)


def test_equal_pictures_have_no_cause_and_a_good_picture_says_nothing(tmp_path):
    image = saved(tmp_path / "a.png", photograph())
    for found in (examine(image, image), examine(image)):
        assert (found["causes"], found["unexplained"], found["sources"]) == ([], [], [])
    assert examine(image, image)["metrics"]["rmse"] == 0


def test_what_no_fault_makes_is_unexplained_with_its_figures(tmp_path):
    image, reference = (saved(tmp_path / f"{n}.png", photograph(seed=n)) for n in (1, 2))
    found = examine(image, reference)
    assert found["causes"] == []
    assert not found["explained"]
    assert found["unexplained"][0]["rmse"] > 10
    assert found["sentence"].startswith("Unexplained")


def bomb(path, width=1 << 16, height=1 << 16):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)))
    return path


def animated(path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def truncated(path):
    file = io.BytesIO()
    Image.fromarray(photograph()).save(file, "PNG")
    path.write_bytes(file.getvalue()[: file.tell() // 2])
    return path


def written(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda at: at / "none.png", "no such file"),
        (lambda at: at, "a folder"),
        (lambda at: written(at / "a.png", b""), "empty file"),
        (lambda at: written(at / "a.png", b"no picture at all"), "no picture"),
        (lambda at: truncated(at / "a.png"), "damaged"),
        (lambda at: animated(at / "a.gif"), "2 frames"),
        (lambda at: bomb(at / "a.png"), "pixels"),
        (lambda at: bomb(at / "a.png", 9000, 9000), "33,554,432"),
        (lambda at: saved(at / "a.png", np.zeros((40, 1, 3), np.uint8)), "1 × 40"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_as_picture_and_as_reference(tmp_path, make, says):
    bad, good = make(tmp_path), saved(tmp_path / "good.png", photograph())
    for pair in ((bad, None), (good, bad)):
        with pytest.raises(UsageError, match=says) as raised:
            examine(*pair)
        assert "\n" not in str(raised.value)


def test_different_sizes_are_refused_and_both_are_said(tmp_path):
    image = saved(tmp_path / "a.png", photograph())
    reference = saved(tmp_path / "b.png", photograph()[:, :100])
    with pytest.raises(UsageError, match=r"304 × 208.*100 × 208"):
        examine(image, reference)
    turned = saved(tmp_path / "c.png", photograph(seed=9).transpose(1, 0, 2).copy())
    with pytest.raises(UsageError, match=r"304 × 208.*208 × 304"):
        examine(image, turned)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "LA", "1", "CMYK", "I;16"])
def test_other_modes_are_opened(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(photograph()[..., 0].astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(photograph()).convert(mode).save(path)
    assert examine(path)["causes"] == []


@pytest.mark.parametrize("name", [c.name for c in CORRUPTIONS.values() if c.alone])
def test_each_symptom_shows_in_the_picture_alone(name):
    one = CORRUPTIONS[name]
    good = photograph(full=one.stretched)
    broken = one.make(good, np.random.default_rng(4))
    assert look(good) == []
    assert [found.code for found in look(broken)] == [one.code]
    assert look(broken)[0].confidence != "proven"


@pytest.mark.parametrize("name", [c.name for c in CORRUPTIONS.values() if c.referenced])
def test_each_symptom_is_found_beside_the_reference(name):
    one = CORRUPTIONS[name]
    good = photograph(full=one.stretched)
    found = look(one.make(good, np.random.default_rng(4)), good)
    assert [found.code for found in found] == [one.code]
    assert found[0].confidence == ("likely" if name == "grain" else "proven")


@pytest.mark.parametrize("turn", ["exchanged", "transposed", "quarter"])
def test_a_picture_of_exchanged_sides_is_matched(turn):
    good = photograph()
    made, code = {
        "exchanged": (good.reshape(good.shape[1], good.shape[0], 3), "layout.width_height"),
        "transposed": (good.transpose(1, 0, 2), "layout.transposed"),
        "quarter": (np.rot90(good), "layout.flipped"),
    }[turn]
    found = look(np.ascontiguousarray(made), good)
    assert [(one.code, one.confidence) for one in found] == [(code, "proven")]


def test_every_code_has_its_words():
    for code, entry in ENTRIES.items():
        assert "." in code
        assert entry.title
        assert entry.fix
        assert entry.source
        assert entry.confirm
        assert "\n" not in entry.fix
    assert {one.code for one in CORRUPTIONS.values()} <= ENTRIES.keys()


def test_a_faint_grid_of_clean_detail_is_no_seam():
    picture = rich(np.random.default_rng(3), 16, detailed=True)
    assert look(picture) == []


@pytest.mark.slow
def test_most_broken_pictures_of_a_seed_are_right_and_no_clean_one_is_flagged():
    found = score(TUNED[0], each=2, cleans=100)
    assert found["flagged"] == 0
    assert found["share"] >= 0.93
    assert found["broken"] == sum(sum(counts.values()) for code, counts in found["confusion"].items()) - 100


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_kind_of_clean_picture_is_flagged(kind):
    for seed in (11, 12):
        assert look(clean(np.random.default_rng(seed), kind)[1]) == []


def test_a_check_of_the_deviation_alone_would_pass_static():
    static = np.random.default_rng(0).integers(0, 256, (128, 160, 3)).astype(np.uint8)
    assert static.std() > 10
    assert [one.code for one in look(static)] == ["picture.noise"]


def test_a_dark_picture_is_not_black_and_a_zero_one_is():
    dark = (photograph() * 0.05).astype(np.uint8)
    assert look(dark) == []
    assert [one.code for one in look(np.zeros_like(dark))] == ["picture.black"]
