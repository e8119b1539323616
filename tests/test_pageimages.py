"""Pictures of a page come from the run folder alone, and their difference is amplified as is said."""

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from parity import picture_metrics
from parity.pageimages import FACTORS, amplified, figure, metric_rows, shots

PATHS = {"reference": "pictures/u/reference.00.png", "candidate": "pictures/u/candidate.00.png"}


def write(folder, reference, candidate):
    for side, pixels in (("reference", reference), ("candidate", candidate)):
        (folder / PATHS[side]).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels, np.uint8)).save(folder / PATHS[side])


def grey(value=100, size=(4, 6)):
    return np.full((*size, 3), value)


def decoded(shot):
    head, _, data = shot.source.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize(("off", "factor"), [(1, 200), (2, 100), (3, 50), (12, 20), (100, 2), (155, 1)])
def test_a_difference_is_multiplied_by_the_largest_factor_that_fits(tmp_path, off, factor):
    candidate = grey()
    candidate[1, 2, 0] += off
    candidate[3, 5] -= 1
    write(tmp_path, grey(), candidate)
    reference, port, difference = shots(PATHS, tmp_path)
    assert (reference.kind, port.kind, difference.title) == ("reference", "candidate", f"Difference × {factor}")
    assert difference.note == "2 of 24 pixels differ."
    assert (difference.width, difference.height) == (6, 4)
    assert decoded(difference)[1, 2].tolist() == [off * factor, 0, 0]
    assert decoded(difference)[3, 5].tolist() == [factor] * 3
    assert decoded(difference).sum() == off * factor + 3 * factor
    assert (decoded(reference) == grey()).all()


def test_equal_pictures_are_said_to_be_equal(tmp_path):
    write(tmp_path, grey(), grey())
    *_, difference = shots(PATHS, tmp_path)
    assert (difference.title, difference.note) == ("Difference", "The two pictures are equal.")
    assert not decoded(difference).any()


def test_pictures_of_two_sizes_have_no_difference(tmp_path):
    write(tmp_path, grey(), grey(size=(4, 4)))
    *both, difference = shots(PATHS, tmp_path)
    assert all(shot.source for shot in both)
    assert (difference.source, difference.note) == ("", "The two pictures differ in size.")


@pytest.mark.parametrize(
    ("path", "note"),
    [
        ("../secret.png", "no file of the run folder"),
        ("/etc/hostname", "no file of the run folder"),
        ("pictures/../../secret.png", "no file of the run folder"),
        ("pictures/link.png", "no file of the run folder"),
        ("", "no file of the run folder"),
        ("a\0b", "no file of the run folder"),
        ("pictures", "not in the run folder"),
        ("pictures/none.png", "not in the run folder"),
        ("pictures/text.png", "no PNG"),
        ("pictures/photo.jpg", "no PNG"),
        ("pictures/cut.png", "cannot be read"),
        (None, "no file of the run folder"),
    ],
)
def test_only_a_png_of_the_run_folder_is_shown(tmp_path, path, note):
    run = tmp_path / "run"
    write(run, grey(), grey())
    Image.fromarray(grey().astype(np.uint8)).save(tmp_path / "secret.png")
    Image.fromarray(grey().astype(np.uint8)).save(run / "pictures" / "photo.jpg")
    (run / "pictures" / "link.png").symlink_to(tmp_path / "secret.png")
    (run / "pictures" / "text.png").write_text("<svg onload=alert(1)>")
    (run / "pictures" / "cut.png").write_bytes((run / PATHS["reference"]).read_bytes()[:45])
    reference, candidate, difference = shots(PATHS | {"candidate": path}, run)
    assert reference.source
    assert candidate.source == ""
    assert note in candidate.note
    assert difference.note == "It needs both pictures."


def test_figures_are_those_that_were_measured():
    draw = np.random.default_rng(0)
    reference = draw.integers(0, 256, (24, 32, 3)).astype(np.uint8)
    candidate = reference.copy()
    candidate[2:9] ^= 3
    measured = picture_metrics.measure(reference, candidate).as_dict()
    rows = {title: cells for title, *cells in metric_rows(measured)}
    assert list(rows) == ["RMSE, 0–255", "Mean", "Std", "Largest difference, 0–255", "PSNR, dB", "SSIM", "FLIP"]
    assert rows["RMSE, 0–255"] == ["–", f"{measured['rmse']:.2f}"]
    assert rows["Largest difference, 0–255"] == ["–", "3"]
    for title, key in (("Mean", "mean"), ("Std", "std")):
        assert rows[title] == [f"{measured[side][key]:.2f}" for side in ("reference", "candidate")]
    assert all(cell == "–" for _, *cells in metric_rows({}) for cell in cells)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(6.617, 2, "6.62"), (0.0, 2, "0.00"), (0.0003, 2, "3.0e-04"), (math.inf, 2, "∞"), (math.nan, 2, "NaN"),
     (None, 2, "–"), (-1.5, 1, "−1.5"), (3, 0, "3")],
)  # fmt: skip
def test_a_small_figure_is_never_shown_as_zero(value, digits, text):
    assert figure(value, digits) == text


@pytest.mark.parametrize("off", [1, 3, 100, 163, 164, 200, 255])
def test_a_difference_of_any_size_is_multiplied_into_the_range(off):
    """GIVEN a black picture and a bright one, THEN the factor is 1: 255 times 200 is beyond 16 bits."""
    black = np.zeros((4, 5, 3), np.uint8)
    apart, title, _ = amplified({"reference": black + np.uint8(off), "candidate": black})
    factor = int(title.rpartition(" ")[2])
    assert (apart == off * factor).all()
    assert factor == max(one for one in FACTORS if off * one <= 255)
