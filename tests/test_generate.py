"""``parity generate``: what it makes, what it says, and what it refuses in one line."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from functools import partial

# isort: off
import mlx_impl  # noqa: F401 - first, since it puts the BLAS in place
import mlx.core as mx
# isort: on

import lora_files
import numpy as np
import pytest
from PIL import Image
from pipeline_folder import write_pipeline
from rich.console import Console
from rich.text import Text

from mlx_impl import pipelines
from parity.cli import call
from parity.commands import generate as command
from parity.pictures import read_settings

STAGES = ("encoding", "denoising", "decoding")
SMALL = ("--size", "32x48", "--steps", "2", "--dtype", "float32")


@pytest.fixture(scope="module")
def model():
    return write_pipeline()


@pytest.fixture
def as_class(model, tmp_path):
    """The same weights under a model_index.json that names another pipeline."""

    def make(name: str | None):
        folder = tmp_path / "model"
        folder.mkdir()
        for part in model.iterdir():
            if part.is_dir():
                shutil.copytree(part, folder / part.name)
        if name is not None:
            index = json.loads((model / "model_index.json").read_text())
            (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
        return folder

    return make


@pytest.fixture
def generate(model, tmp_path, capsys):
    """Call the command with a size that takes a second; gives its settings, its pixels and its stderr."""

    def run(*argv, weights=model, out=tmp_path / "out.png", small=SMALL):
        code = call(["generate", *map(str, argv), "--weights", str(weights), *small, "--out", str(out)])
        streams = capsys.readouterr()
        assert code == 0, streams.err
        assert streams.out == f"{out}\n"
        return read_settings(out), np.array(Image.open(out)), streams.err

    return run


@pytest.fixture
def fails(model, tmp_path, capsys):
    """Call the command, which must fail before anything is made; gives the one line it says."""

    def run(code, *argv, weights=model, out=tmp_path / "out.png"):
        assert call(["generate", *map(str, argv), "--weights", str(weights), "--out", str(out)]) == code
        streams = capsys.readouterr()
        assert streams.out == ""
        assert "Traceback" not in streams.err
        lines = [line for line in streams.err.splitlines() if not line.startswith(("note:", *STAGES))]
        assert lines[0].startswith("error: ")
        assert len(lines) == 1
        assert not out.is_file()
        return lines[0]

    return run


@pytest.fixture
def small_edits(monkeypatch):
    """Condition pictures of 64 × 64 and 56 × 56 pixels in place of a megapixel."""
    areas = {"edit": {"vae_area": 64 * 64}, "edit_plus": {"vae_area": 64 * 64, "condition_area": 56 * 56}}
    for kind, given in areas.items():
        monkeypatch.setitem(pipelines.KINDS, kind, partial(pipelines.KINDS[kind], **given))


def picture(path, size=(48, 32), mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4 if mode == "RGBA" else 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path, size=(48, 32)):
    image = Image.new("L", size)
    image.paste(255, (16, 0, 48, 32))
    image.save(path)
    return path


def test_text_to_image(generate, model):
    settings, pixels, err = generate("a cat", "--negative", " ", "--seed", 7)
    request = pipelines.TextToImage(prompts=("a cat",), negative=(" ",), height=32, width=48, steps=2, seed=7)
    expected = pipelines.open_pipeline(model, dtype="float32").run(request)
    np.testing.assert_array_equal(pixels, expected.images[0])
    assert pixels.std() > 1
    assert settings == {
        "schema": 1,
        "task": "text_to_image",
        "prompt": "a cat",
        "negative": " ",
        "guidance": 4.0,
        "height": 32,
        "width": 48,
        "steps": 2,
        "seed": 7,
        "noise": "numpy Philox",
        "max_sequence_length": 512,
        "model": settings["model"] | {"name": "synthetic:mini", "pipeline": "QwenImagePipeline"},
        "dtype": "float32",
        "software": settings["software"],
    }
    assert "synthetic weights are random numbers" in err
    assert "does nothing" not in err
    lines = err.splitlines()
    begin = lines.index("encoding")
    assert lines[begin : begin + 5] == ["encoding", "denoising", "denoising 1/2", "denoising 2/2", "decoding"]
    assert lines[-1].startswith("made in ")


def test_seeds_and_settings_change_the_picture(generate):
    pictures = [
        generate("a cat", *argv, "--force")[1].tobytes()
        for argv in ((), ("--seed", 1), ("--negative", "dog"), ("--negative", "dog", "--guidance", 2), ())
    ]
    assert len(set(pictures)) == 4
    assert pictures[0] == pictures[-1]


def test_a_lora_changes_the_picture_and_is_named_in_it(generate, model, tmp_path):
    made = lora_files.factors(json.loads((model / "transformer" / "config.json").read_text()))
    path = lora_files.write(tmp_path / "style.safetensors", lora_files.tensors_of(made, "transformer", alpha=2))
    settings, without, err = generate("a cat")
    assert "lora" not in settings
    settings, none, _ = generate("a cat", "--lora", f"{path}@0", "--force")
    np.testing.assert_array_equal(none, without)
    settings, pixels, err = generate("a cat", "--lora", f"{path}@0.8", "--force")
    assert np.abs(pixels.astype(int) - without).mean() > 2
    assert "lora style.safetensors: 34 of 34 pairs bound, rank 4, alpha 2, scale 0.8, dialect diffusers" in err
    assert settings["lora"] == [
        {
            "name": "style.safetensors", "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "scale": 0.8,
            "dialect": "diffusers", "pairs": 34, "bound": 34, "unbound": [], "ranks": [4], "alphas": [2.0],
        }
    ]  # fmt: skip
    np.testing.assert_array_equal(generate("a cat", "--lora", f"{path}@0.8", "--low-memory", "--force")[1], pixels)


def test_a_lora_that_makes_no_picture(fails, tmp_path):
    assert "none.safetensors: there is no such file" in fails(4, "a cat", "--lora", tmp_path / "none.safetensors")
    assert "is no scale; expected FILE or FILE@SCALE" in fails(2, "a cat", "--lora", "x.safetensors@much")


def test_image_to_image(generate, model, tmp_path):
    path = picture(tmp_path / "in.png")
    settings, pixels, _ = generate("a cat", "--image", path, "--strength", 0.5)
    assert (settings["task"], settings["strength"]) == ("image_to_image", 0.5)
    assert settings["images"] == [{"name": "in.png", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}]
    request = pipelines.ImageToImage(
        prompts=("a cat",), guidance=1, height=32, width=48, steps=2, picture=np.array(Image.open(path)), strength=0.5
    )
    np.testing.assert_array_equal(pixels, pipelines.open_pipeline(model, dtype="float32").run(request).images[0])


def test_inpainting(generate, model, tmp_path):
    path, covering = picture(tmp_path / "in.png"), mask(tmp_path / "mask.png")
    settings, pixels, _ = generate("a cat", "--image", path, "--mask", covering)
    assert (settings["task"], settings["strength"]) == ("inpaint", 0.6)
    assert settings["mask"] == {"name": "mask.png", "sha256": hashlib.sha256(covering.read_bytes()).hexdigest()}
    given, white = np.array(Image.open(path)), np.array(Image.open(covering))
    request = pipelines.Inpaint(
        prompts=("a cat",), guidance=1, height=32, width=48, steps=2, picture=given, strength=0.6, mask=white
    )
    np.testing.assert_array_equal(pixels, pipelines.open_pipeline(model, dtype="float32").run(request).images[0])


def test_inpainting_a_part_enlarged(generate, tmp_path):
    """What the mask keeps is in the result as it was, in the picture's own size."""
    path, covering = picture(tmp_path / "in.png", (80, 64)), tmp_path / "mask.png"
    image = Image.new("L", (80, 64))
    image.paste(255, (40, 20, 60, 30))
    image.save(covering)
    settings, pixels, _ = generate("a cat", "--image", path, "--mask", covering, "--crop-padding", 4)
    assert settings["crop_padding"] == 4
    given, white = np.array(Image.open(path)), np.array(image) > 0
    np.testing.assert_array_equal(pixels[~white], given[~white])
    assert np.abs(pixels[white].astype(int) - given[white]).mean() > 10


def test_the_default_size_has_the_proportions_of_the_picture(generate, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "AREA", 64 * 64)
    _, pixels, _ = generate("a cat", "--image", picture(tmp_path / "in.png", (80, 20)), small=SMALL[2:])
    assert pixels.shape == (32, 128, 3)
    _, pixels, err = generate("a cat", "--force", small=SMALL[2:])
    assert pixels.shape == (64, 64, 3)
    assert "guidance" not in err  # none was asked for
    _, pixels, _ = generate("a cat", "--force", "--width", 32, small=SMALL[2:])
    assert pixels.shape == (64, 32, 3)


@pytest.mark.parametrize("name", ["QwenImageEditPipeline", "QwenImageEditPlusPipeline"])
def test_editing(generate, as_class, tmp_path, small_edits, name):
    images = [picture(tmp_path / f"{index}.png", size) for index, size in enumerate(((40, 40), (48, 32)))]
    count = 1 if name == "QwenImageEditPipeline" else 2
    options = [part for image in images[:count] for part in ("--image", image)]
    settings, pixels, _ = generate("make it red", *options, weights=as_class(name))
    assert settings["task"] == ("edit" if count == 1 else "edit_plus")
    assert len(settings["images"]) == count
    assert "max_sequence_length" not in settings
    assert pixels.shape == (32, 48, 3)


def test_low_memory_takes_less_for_the_same_picture(generate, as_class, tmp_path, small_edits):
    argv = ("make it red", "--image", picture(tmp_path / "in.png"), "--force")
    folder = as_class("QwenImageEditPlusPipeline")
    (_, kept, said), (_, freed, said_of_freed) = (
        generate(*argv, *option, weights=folder) for option in ((), ("--low-memory",))
    )
    np.testing.assert_array_equal(kept, freed)
    peak, low = (int(re.search(r"at most (\d+) MiB of arrays", one)[1]) for one in (said, said_of_freed))
    text_encoder = sum(path.stat().st_size for path in (folder / "text_encoder").glob("*.safetensors"))
    # In float32, which takes twice the room of the file's bfloat16.
    assert 0 < low < peak - 2 * text_encoder / 2**20


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("", "--seed", 1), "the prompt is empty"),
        (("a cat", "--guidance", 5), "guidance 5.0 does nothing without a negative prompt"),
        (("a cat", "--guidance", 1, "--negative", "x"), "the negative prompt does nothing with guidance 1.0"),
        (("cat " * 600,), "tokens, and 512 are taken (--max-sequence-length)"),
        (("cat " * 3000, "--max-sequence-length", 1024), "never"),
        (("a cat", "--negative", "dog " * 3000), "the negative prompt is cut: it has at least 1024 tokens"),
    ],
)
def test_what_is_said_and_done(generate, argv, said):
    _, pixels, err = generate(*argv)
    assert (said in err) == (said != "never")
    assert pixels.shape == (32, 48, 3)


def test_a_size_that_does_not_divide_is_snapped(generate):
    settings, pixels, err = generate("a cat", small=("--height", "47", "--width", "33", *SMALL[2:]))
    assert pixels.shape == (32, 32, 3)
    assert (settings["height"], settings["width"]) == (32, 32)
    assert "note: size 47 × 33 is not a multiple of 16 pixels each way: 32 × 32 is made" in err


def test_a_single_step(generate):
    settings, pixels, err = generate("a cat", small=("--size", "32x32", "--steps", "1", "--dtype", "float32"))
    assert settings["steps"] == 1
    assert pixels.std() > 1
    assert "a single step goes straight from noise to the picture" in err


def test_every_kind_of_unicode_is_kept(generate):
    prompt = "猫 — Ünïcödé, עברית, 🐈‍⬛, e\u0301, \u200b\ufeff, \x00\x1b[31m, \U0010ffff"
    settings, _, err = generate(prompt)
    assert settings["prompt"] == prompt
    assert "\x1b[31m" not in err


def test_notes_of_pictures_are_said(generate, tmp_path):
    path = picture(tmp_path / "alpha.png", mode="RGBA")
    _, _, err = generate("a cat", "--image", path)
    assert "note: alpha.png: alpha is dropped" in err


def test_the_default_place_and_size(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert call(["generate", "a cat", "--weights", str(model), *SMALL, "--seed", "3"]) == 0
    paths = capsys.readouterr().out.split()
    assert len(set(paths)) == 2
    for path in paths:
        assert path.startswith("pictures/")
        assert "-s3" in path
        assert (tmp_path / path).is_file()


def test_more_weights_than_memory(generate, monkeypatch):
    class Little:
        available = 1000

    monkeypatch.setattr("psutil.virtual_memory", Little)
    assert "--low-memory holds one component at a time" in generate("a cat")[2]
    assert "--low-memory holds" not in generate("a cat", "--low-memory", "--force")[2]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--steps", 0), "steps is 0, expected at least 1"),
        (("--steps", -3), "steps is -3"),
        (("--size", "512"), "expected HxW in pixels, such as 512x768"),
        (("--size", "0x64"), "height is 0"),
        (("--size", "64x15"), "width is 15, expected at least 16"),
        (("--size", "64x64", "--height", 64), "either --size or --height and --width"),
        (("--max-sequence-length", 0), "max_sequence_length is 0, expected 1…1024"),
        (("--max-sequence-length", 1025), "max_sequence_length is 1025"),
        (("--strength", 0.5), "--strength is of --image"),
        (("--crop-padding", 4), "--crop-padding is around the white of a --mask"),
        (("--mask", "nowhere.png"), "--mask needs exactly one --image, not 0"),
        (("--image", "nowhere.png"), "nowhere.png: there is no such file"),
        (("--seed", -1), "seed"),
        (("--dtype", "int8"), "int8"),
    ],
)
def test_options_that_make_no_picture(fails, argv, said):
    assert said in fails(2, "a cat", *argv)


def test_pictures_that_make_no_picture(fails, tmp_path):
    one, other = picture(tmp_path / "a.png"), picture(tmp_path / "b.png", (32, 32))
    assert "strength is 1.5, expected 0…1" in fails(2, "a", "--image", one, "--strength", 1.5)
    assert "leaves none of 4 steps" in fails(2, "a", "--image", one, "--strength", 0, "--steps", 4)
    assert "2 pictures given" in fails(2, "a", "--image", one, "--image", other)
    Image.new("L", (48, 32)).save(tmp_path / "black.png")
    argv = ("a", "--image", one, "--mask", tmp_path / "black.png", "--crop-padding", 4)
    assert "black everywhere" in fails(2, *argv, *SMALL)
    assert "b.png: 32 × 32 pixels, but" in fails(2, "a", "--image", one, "--mask", other)
    (tmp_path / "text.png").write_text("hello")
    assert "no picture" in fails(2, "a", "--image", tmp_path / "text.png")
    line = picture(tmp_path / "line.png", (9000, 1))
    assert "too extreme" in fails(2, "a", "--image", line)


def test_editing_models_need_what_they_need(fails, as_class, tmp_path):
    folder = as_class("QwenImageEditPipeline")
    one = picture(tmp_path / "a.png")
    given = ("a", "--image", one)
    assert "give at least one --image" in fails(2, "a", weights=folder)
    assert "QwenImageEditPlusPipeline takes several" in fails(2, *given, "--image", one, weights=folder)
    assert "--mask does nothing" in fails(2, *given, "--mask", mask(tmp_path / "m.png"), weights=folder)
    assert "--strength does nothing" in fails(2, *given, "--strength", 0.5, weights=folder)


def test_weights_that_are_no_pipeline(fails, as_class, model, tmp_path):
    assert "there is no such folder" in fails(4, "a", weights=tmp_path / "nowhere")
    assert "name the folder above it" in fails(4, "a", weights=model / "transformer")
    (tmp_path / "empty").mkdir()
    assert "no readable model_index.json" in fails(4, "a", weights=tmp_path / "empty")
    assert "class FluxPipeline; expected QwenImagePipeline" in fails(4, "a", weights=as_class("FluxPipeline"))


def test_a_model_index_that_is_broken(fails, as_class):
    folder = as_class(None)
    (folder / "model_index.json").write_text("{")
    assert "no readable model_index.json" in fails(4, "a", weights=folder)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer", "scheduler", "transformer"])
def test_a_component_that_is_missing(fails, as_class, part):
    folder = as_class("QwenImagePipeline")
    shutil.rmtree(folder / part)
    assert part in fails(4, "a", weights=folder)


def test_a_scheduler_that_is_not_supported(fails, as_class, model):
    folder = as_class("QwenImagePipeline")
    shutil.rmtree(folder / "scheduler")
    shutil.copytree(model / "scheduler", folder / "scheduler")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_karras_sigmas": True}))
    assert "use_karras_sigmas" in fails(4, "a", *SMALL, weights=folder)


def test_output_that_is_refused(fails, generate, tmp_path):
    assert "ends in .png" in fails(2, "a", out=tmp_path / "a.jpg")
    (tmp_path / "file").touch()
    assert "cannot write" in fails(2, "a", out=tmp_path / "file" / "a.png")
    generate("a", out=tmp_path / "there.png")
    before = (tmp_path / "there.png").read_bytes()
    assert call(["generate", "a", "--out", str(tmp_path / "there.png")]) == 2
    assert (tmp_path / "there.png").read_bytes() == before


def test_a_prompt_that_is_no_unicode(fails):
    assert "surrogate" in fails(2, "a \udcff cat", *SMALL)


def test_a_picture_that_is_not_a_number(fails, monkeypatch):
    def broken(*args):
        return mx.full((1, 6, 64), mx.nan)

    monkeypatch.setattr("mlx_impl.pipelines.pipeline.denoise", broken)
    assert "is not a number: try another --dtype" in fails(3, "a", *SMALL)


def test_memory_that_does_not_suffice(fails, monkeypatch):
    def broken(*args):
        raise RuntimeError("[metal::malloc] Attempting to allocate 99 bytes which is too much")

    monkeypatch.setattr("mlx_impl.pipelines.pipeline.denoise", broken)
    assert "not enough memory for 32 × 48 pixels" in fails(4, "a", *SMALL)


def test_progress_on_a_terminal():
    screen = io.StringIO()
    with command._progress(Console(file=screen, force_terminal=True, width=80)) as tell:
        tell("prepare")
        tell("denoise")
        tell("denoise", 1, 4)
        tell("decode")
    assert "1/4" in screen.getvalue()
    assert max(len(line) for line in Text.from_ansi(screen.getvalue()).plain.splitlines()) <= 80


def test_help_reads_well_at_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert call(["generate", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    options = "weights image mask strength negative guidance size height width steps seed dtype low-memory out force"
    for option in options.split():
        assert any(line.startswith(f"│ --{option} ") for line in lines), option
