"""Picture files of every kind are opened or refused in one line; written ones carry their settings."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
from diffusers.utils import load_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from parity import pictures
from parity.errors import OutputExistsError, UsageError
from parity.pictures import check_output, open_mask, open_picture, read_settings, write_png

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(path, image: Image.Image, **options):
    image.save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is that large, and has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
              for name, data in ((b"IHDR", header), (b"IDAT", b"")))  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "bmp", "ppm"])
def test_rgb_is_opened_as_it_is(tmp_path, suffix):
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(PIXELS), **({"lossless": True} if suffix == "webp" else {}))
    opened = open_picture(path)
    assert (opened.image.mode, opened.notes) == ("RGB", ())
    np.testing.assert_array_equal(np.array(opened.image), PIXELS)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_become_what_diffusers_makes_of_them(tmp_path, mode):
    image = Image.fromarray(PIXELS).convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(PIXELS[..., 0]))
    path = saved(tmp_path / ("a.tiff" if mode in ("CMYK", "YCbCr") else "a.png"), image)
    opened = open_picture(path)
    assert (opened.image.mode, opened.image.size) == ("RGB", (9, 6))
    np.testing.assert_array_equal(np.array(opened.image), np.array(load_image(str(path))))
    said = {"LA": "alpha is dropped", "RGBA": "alpha is dropped", "CMYK": "colour profile"}.get(mode)
    assert (said in opened.notes[0] and opened.notes[0].startswith("a.")) if said else opened.notes == ()


def test_alpha_that_hides_nothing_is_not_mentioned(tmp_path):
    opened = open_picture(saved(tmp_path / "a.png", Image.fromarray(PIXELS).convert("RGBA")))
    assert opened.notes == ()
    np.testing.assert_array_equal(np.array(opened.image), PIXELS)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_transparency_of_a_colour(tmp_path, mode):
    image = Image.fromarray(PIXELS).convert(mode)
    transparent = {"P": bytes(range(256)), "L": 77, "RGB": tuple(int(n) for n in PIXELS[0, 0])}[mode]
    if mode == "L":
        image.putpixel((0, 0), 77)
    path = saved(tmp_path / "a.png", image, transparency=transparent)
    opened = open_picture(path)
    assert "alpha is dropped" in opened.notes[0]
    np.testing.assert_array_equal(np.array(opened.image), np.array(image.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bits_are_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257], [32767, 32768, 65406, 65535]], np.uint16)
    opened = open_picture(saved(tmp_path / f"a.{suffix}", Image.fromarray(values)))
    expected = [[0, 0, 1, 1], [127, 128, 254, 255]]  # the nearest of value / 257
    for channel in range(3):
        np.testing.assert_array_equal(np.array(opened.image)[..., channel], expected)
    assert opened.notes == (f"a.{suffix}: 16 bits a channel are scaled to 8",)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_numbers_of_no_known_range(tmp_path, mode):
    path = saved(tmp_path / "a.tiff", Image.fromarray(PIXELS[..., 0]).convert(mode))
    with pytest.raises(UsageError, match=f"mode {mode}; save it as RGB"):
        open_picture(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("sixteen", [False, True])
def test_exif_orientation(tmp_path, orientation, sixteen):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257 if sixteen else PIXELS)
    path = saved(tmp_path / "a.png", image, exif=exif)
    opened = open_picture(path)
    assert opened.image.size == ((9, 6) if orientation < 5 else (6, 9))
    assert any("EXIF" in note for note in opened.notes) == (orientation > 1)
    if not sixteen:
        np.testing.assert_array_equal(np.array(opened.image), np.array(load_image(str(path))))


def test_exif_of_a_jpeg_from_a_telephone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.jpg", Image.fromarray(PIXELS), exif=exif)
    opened = open_picture(path)
    assert opened.image.size == (6, 9)
    np.testing.assert_array_equal(np.array(opened.image), np.array(load_image(str(path))))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_picture(saved(tmp_path / "a.png", Image.fromarray(PIXELS), exif=exif))
    assert (opened.image.size, opened.notes) == ((9, 6), ())


def test_exif_that_is_damaged_does_not_keep_a_picture_out(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(PIXELS), exif=b"MM\x00*\x00\x00\xff\xf0garbage")
    np.testing.assert_array_equal(np.array(open_picture(path).image), PIXELS)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_the_first_frame_of_several(tmp_path, suffix):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    path = saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    opened = open_picture(path)
    assert "3 frames: the first one is taken" in opened.notes[0]
    assert opened.image.getpixel((2, 2))[0] > 240
    assert opened.image.getpixel((2, 2))[1] < 16


def test_one_pixel(tmp_path):
    assert open_picture(saved(tmp_path / "a.png", Image.new("RGB", (1, 1), "red"))).image.size == (1, 1)


def test_a_mask_is_grey(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(PIXELS))
    opened = open_mask(path)
    assert opened.image.mode == "L"
    np.testing.assert_array_equal(np.array(opened.image), np.array(Image.fromarray(PIXELS).convert("L")))


@pytest.mark.parametrize(
    ("side", "said"),
    # Pillow warns of the first, and refuses the second.
    [(12_000, "12000 × 12000 pixels are more than 134,217,728"), (1_000_000, r"bomb\.png: more than 134,217,728")],
)
def test_a_huge_picture_is_refused_by_its_header(tmp_path, side, said):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    with pytest.raises(UsageError, match=said):
        open_picture(path)


def test_how_large_is_too_large(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", Image.new("RGB", (8, 8)))
    monkeypatch.setattr(pictures, "MOST_PIXELS", 64)
    assert open_picture(path).image.size == (8, 8)
    monkeypatch.setattr(pictures, "MOST_PIXELS", 63)
    with pytest.raises(UsageError, match="8 × 8 pixels are more"):
        open_picture(path)


def test_files_that_are_no_picture(tmp_path):
    for name, content in (("empty.png", b""), ("text.png", b"hello"), ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match="no picture, or one without pixels; formats: PNG"):
            open_picture(tmp_path / name)
    with pytest.raises(UsageError, match="there is no such file"):
        open_picture(tmp_path / "nowhere.png")
    with pytest.raises(UsageError, match="a folder, not a picture"):
        open_picture(tmp_path)


def test_a_picture_without_pixels(tmp_path):
    for name, content in (("a.ppm", b"P6 0 5 255\n"), ("a.png", png_header(0, 5))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match="without pixels"):
            open_picture(tmp_path / name)


def test_a_picture_that_is_cut_off(tmp_path):
    for suffix in ("png", "jpg", "webp", "tiff", "gif", "bmp"):
        path = saved(tmp_path / f"a.{suffix}", Image.fromarray(np.resize(PIXELS, (64, 64, 3))))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UsageError, match="damaged"):
            open_picture(path)


def test_a_text_chunk_that_grows(tmp_path):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("bomb", "0" * (100 << 20), zip=True)
    path = saved(tmp_path / "a.png", Image.fromarray(PIXELS), pnginfo=chunks)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UsageError, match="damaged"):
        open_picture(path)


SAMPLES = []


@pytest.fixture(scope="module", autouse=True)
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    for suffix in ("png", "jpg", "gif", "tiff", "webp", "bmp", "ppm"):
        SAMPLES.append(saved(folder / f"a.{suffix}", Image.fromarray(PIXELS)).read_bytes())
    return folder


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_is_a_picture_or_one_line(samples, data):
    content = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = samples / "damaged"
    path.write_bytes(bytes(content))
    said = ""
    try:
        assert open_picture(path).image.mode == "RGB"
    except UsageError as error:
        said = str(error)
    assert said.isprintable()


def test_settings_are_read_back(tmp_path):
    path = tmp_path / "new" / "a.png"
    made = {"prompt": "eine Katze 🐈\nÄÖ \x00", "seed": 7, "steps": 20, "guidance": 4.0, "negative": None}
    write_png(path, PIXELS, made)
    assert read_settings(path) == {"schema": 1, **made}
    image = Image.open(path)
    np.testing.assert_array_equal(np.array(image), PIXELS)
    assert json.loads(image.text["parity"])["seed"] == 7
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_nothing_is_overwritten_without_force(tmp_path):
    path = tmp_path / "a.png"
    write_png(path, PIXELS, {"seed": 1})
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match="--force"):
        write_png(path, PIXELS, {"seed": 2})
    with pytest.raises(OutputExistsError, match="--force"):
        check_output(path, force=False)
    assert path.read_bytes() == before
    check_output(path, force=True)
    write_png(path, PIXELS, {"seed": 2}, force=True)
    assert read_settings(path)["seed"] == 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_that_can_not_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_png(tmp_path / "a.png", PIXELS, {"guidance": float("nan")})
    with pytest.raises(TypeError):
        write_png(tmp_path / "a.png", np.zeros((2, 2, 7), np.uint8), {})
    assert list(tmp_path.iterdir()) == []


def test_output_that_can_not_be_written(tmp_path):
    (tmp_path / "file").touch()
    for path, said in (
        (tmp_path / "a.jpg", r"ends in \.png"),
        (tmp_path / "a", r"ends in \.png"),
        (tmp_path / "file" / "a.png", "cannot write"),
    ):
        with pytest.raises(UsageError, match=said):
            check_output(path, force=True)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_output(tmp_path / "folder.png", force=True)


def test_pictures_without_settings(tmp_path):
    chunks = PngImagePlugin.PngInfo()
    for number, text in enumerate((None, "{not json", '"a string"')):
        if text is not None:
            chunks = PngImagePlugin.PngInfo()
            chunks.add_itxt("parity", text)
        path = saved(tmp_path / f"{number}.png", Image.fromarray(PIXELS), pnginfo=chunks)
        with pytest.raises(UsageError, match="no settings in it"):
            read_settings(path)
    with pytest.raises(UsageError, match="formats: PNG"):
        read_settings(saved(tmp_path / "a.jpg", Image.fromarray(PIXELS)))
