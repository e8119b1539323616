"""``parity generate``: a prompt, and pictures where the model or the task takes some, to a PNG."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import psutil
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from parity import __version__, model_folder
from parity.commands.weights_option import SYNTHETIC, find, open_loras
from parity.errors import MissingPackageError, ParityError, ResourceError, UsageError, WeightsError
from parity.lora import LoraFile
from parity.model_folder import ModelFolder
from parity.pictures import check_output, open_mask, open_picture, write_png
from parity.ports import open_port
from parity.safetensors_header import shown

if TYPE_CHECKING:
    from mlx_impl.pipelines import Pipeline, Request, Result

PICTURES = Path("pictures")
# Class that model_index.json names -> the kind of editing; None makes pictures from text, or from one picture.
PIPELINES: dict[str, str | None] = {
    "QwenImagePipeline": None,
    "QwenImageImg2ImgPipeline": None,
    "QwenImageInpaintPipeline": None,
    "QwenImageEditPipeline": "edit",
    "QwenImageEditPlusPipeline": "edit_plus",
}
# Pixels and steps where none are asked for; random weights are for trying things out, mostly without a GPU.
AREA, STEPS = 1024 * 1024, 50
SYNTHETIC_AREA, SYNTHETIC_STEPS = 256 * 256, 8
GUIDANCE, STRENGTH = 4.0, 0.6
# Where prompts are cut, and where the tokenizer stops counting.
LONGEST_PROMPT, MOST_TOKENS = 512, 1024
EDITS = ("edit", "edit_plus")
STAGES = {"prepare": "encoding", "denoise": "denoising", "decode": "decoding"}


def generate(
    prompt: str,
    /,
    *,
    weights: Annotated[
        str, Parameter(help="model folder, hub id org/name[@revision], or synthetic:tiny, synthetic:tiny-edit")
    ] = "synthetic:tiny",
    lora: Annotated[
        tuple[str, ...], Parameter(negative=(), help="FILE[@SCALE], a LoRA of the transformer; repeatable")
    ] = (),
    image: Annotated[
        tuple[Path, ...],
        Parameter(negative=(), help="picture to start from or to edit; repeatable", show_default=False),
    ] = (),
    mask: Annotated[Path | None, Parameter(help="of --image's size; white is made anew, black stays")] = None,
    crop_padding: Annotated[
        int | None, Parameter(help="work on the masked part alone, enlarged, with so many pixels around it")
    ] = None,
    strength: Annotated[float | None, Parameter(help="0…1, how much of --image is made anew; default 0.6")] = None,
    negative: Annotated[str | None, Parameter(help="what to steer away from; turns guidance on")] = None,
    guidance: Annotated[float | None, Parameter(help="true guidance scale; default 4 with --negative")] = None,
    size: Annotated[
        str | None, Parameter(help="HxW in pixels; default as many as 1024x1024, in the proportions of --image")
    ] = None,
    height: Annotated[int | None, Parameter(help="in pixels, instead of --size")] = None,
    width: Annotated[int | None, Parameter(help="in pixels, instead of --size")] = None,
    steps: Annotated[int | None, Parameter(help="denoising steps; default 50, 8 on synthetic weights")] = None,
    seed: Annotated[int, Parameter(help="of the noise", validator=Number(gte=0, lt=2**64))] = 0,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], Parameter(help="of weights and values")] = "bfloat16",
    low_memory: Annotated[bool, Parameter(negative=(), help="one component's weights in memory at a time")] = False,
    max_sequence_length: Annotated[
        int, Parameter(help="tokens after which prompts are cut, up to 1024; not where pictures are edited")
    ] = LONGEST_PROMPT,
    out: Annotated[Path | None, Parameter(help="PNG to write; default pictures/DATE-TIME-sSEED.png")] = None,
    force: Annotated[bool, Parameter(negative=(), help="overwrite --out")] = False,
) -> int:
    """Make a picture from a prompt, in MLX alone.

    Text to image; with --image image to image; with --mask too, inpainting; with an editing
    model (Qwen-Image-Edit) --image is edited as the prompt says. The settings are kept in the
    PNG, as JSON under the text key "parity". Prints the path of the PNG.

    Parameters
    ----------
    prompt
        what to make; may be empty.
    """
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    path = out or _default_out(seed)
    check_output(path, force=force)
    asked_size = _size(size, height, width)
    given = Given.open(image, mask)
    where = find(weights)
    root = where.path
    kind = _kind(root, given, strength)
    pipelines = _pipelines()
    synthetic = weights.startswith(SYNTHETIC)
    arguments = {
        "prompts": (prompt,),
        "negative": None if negative is None else (negative,),
        "guidance": guidance if guidance is not None else GUIDANCE if negative is not None else 1.0,
        "steps": steps if steps is not None else SYNTHETIC_STEPS if synthetic else STEPS,
        "seed": seed,
        "max_sequence_length": max_sequence_length,
        **_size_arguments(kind, given, asked_size, SYNTHETIC_AREA if synthetic else AREA),
        **given.arguments(kind, STRENGTH if strength is None else strength, crop_padding),
    }
    with _as(UsageError):
        request = pipelines.KINDS[kind](**arguments)
    model = replace(model_folder.inspect(root, request.folders), origin=where.origin)
    loras = open_loras(lora, model, err, reference=False)
    with _as(WeightsError, f"{root}: "):
        adapters = [one.adapter for one in loras]
        pipeline = pipelines.open_pipeline(root, dtype, low_memory=low_memory, adapters=adapters)
    notes = [*given.notes, *request.notes, *_notes(request, pipeline, model, low_memory)]
    for note in notes:
        err.print(f"note: {note}", markup=False)
    begun = time.perf_counter()
    result = _make(pipeline, request, root, err)
    settings = {"task": kind, **_settings(request), **given.describe(), **_made_by(model, dtype, loras)}
    write_png(path, result.images[0], settings, force=force)
    seconds, mebibytes = time.perf_counter() - begun, result.peak_bytes / 2**20
    err.print(f"made in {seconds:.1f} s, with at most {mebibytes:,.0f} MiB of arrays in memory")
    print(path)
    return 0


@dataclass(frozen=True, eq=False)
class Given:
    """The user's pictures.

    Attributes:
        names: file names of the pictures, then of the mask.
        pictures: H W 3 uint8 each.
        mask: H W uint8.
        notes: what should be said about the files.
        hashes: SHA-256 of each file.
    """

    names: tuple[str, ...]
    pictures: tuple[np.ndarray, ...]
    mask: np.ndarray | None
    notes: tuple[str, ...]
    hashes: tuple[str, ...]

    @classmethod
    def open(cls, image: Sequence[Path], mask: Path | None) -> Given:
        """Open all files.

        Raises:
            UsageError: one can't be opened, or the mask does not fit.
        """
        opened = [open_picture(path) for path in image]
        pictures = tuple(np.array(one.image) for one in opened)
        covering = None
        if mask is not None:
            if len(image) != 1:
                raise UsageError(f"--mask needs exactly one --image, not {len(image)}")
            opened.append(open_mask(mask))
            covering = np.array(opened[-1].image)
            if covering.shape != pictures[0].shape[:2]:
                sizes = (f"{one.image.height} × {one.image.width}" for one in opened)
                raise UsageError("{1}: {3} pixels, but {0} has {2}; make them equal".format(image[0], mask, *sizes))
        files = (*image, *([] if mask is None else [mask]))
        return cls(
            tuple(path.name for path in files),
            pictures,
            covering,
            tuple(note for one in opened for note in one.notes),
            tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in files),
        )

    def arguments(self, kind: str, strength: float, crop_padding: int | None) -> dict[str, Any]:
        """What a request of a kind takes of them.

        Raises:
            UsageError: there is a padding, but no mask.
        """
        if crop_padding is not None and self.mask is None:
            raise UsageError("--crop-padding is around the white of a --mask, and none is given")
        if kind in EDITS:
            return {"pictures": self.pictures}
        if not self.pictures:
            return {}
        masked = {} if self.mask is None else {"mask": self.mask, "crop_padding": crop_padding}
        return {"picture": self.pictures[0], "strength": strength, **masked}

    def describe(self) -> dict[str, Any]:
        """For the settings: which files, without where they lay."""
        files = [{"name": name, "sha256": sha} for name, sha in zip(self.names, self.hashes, strict=True)]
        count = len(self.pictures)
        return {"images": files[:count]} | ({"mask": files[count]} if self.mask is not None else {}) if files else {}


def _kind(root: Path, given: Given, strength: float | None) -> str:
    """Which of the pipelines, from the model's class and the inputs.

    Raises:
        WeightsError: the folder is no pipeline, or one of another model.
        UsageError: inputs that this model does not take.
    """
    name = model_folder.inspect(root, ()).pipeline
    if name is None or not (root / model_folder.MODEL_INDEX).is_file():
        hint = "; name the folder above it" if name else ""
        raise WeightsError(f"{root}: no pipeline: there is no readable {model_folder.MODEL_INDEX} in it{hint}")
    if name not in PIPELINES:
        raise WeightsError(f"{root}: a pipeline of class {shown(name)}; expected {', '.join(PIPELINES)}")
    edits, count = PIPELINES[name], len(given.pictures)
    if edits is None:
        if count > 1:
            raise UsageError(f"{count} pictures given: {name} starts from one --image; editing models take several")
        if strength is not None and not count:
            raise UsageError("--strength is of --image, and none is given")
        return "inpaint" if given.mask is not None else "image_to_image" if count else "text_to_image"
    if not count:
        raise UsageError(f"{name} edits pictures: give at least one --image")
    if edits == "edit" and count > 1:
        raise UsageError(f"{count} pictures given: {name} edits one; QwenImageEditPlusPipeline takes several")
    for option, used in (("--mask", given.mask is not None), ("--strength", strength is not None)):
        if used:
            raise UsageError(f"{option} does nothing with {name}: say in the prompt what to change")
    return edits


def _size(size: str | None, height: int | None, width: int | None) -> tuple[int | None, int | None]:
    """(height, width) as far as they are asked for.

    Raises:
        UsageError: it is no size, or there are two.
    """
    if size is None:
        return height, width
    if height is not None or width is not None:
        raise UsageError("give either --size or --height and --width")
    match = re.fullmatch(r"(\d{1,6})[x×](\d{1,6})", size.strip().lower())
    if match is None:
        raise UsageError(f"--size {shown(size)}: expected HxW in pixels, such as 512x768")
    return int(match[1]), int(match[2])


def _size_arguments(
    kind: str, given: Given, asked: tuple[int | None, int | None], area: int
) -> dict[str, int]:  # fmt: skip
    """Height and width of a request: as asked, else an area, in the proportions of the picture there is."""
    if kind in EDITS:  # which know their own
        return {name: pixels for name, pixels in zip(("height", "width"), asked, strict=True) if pixels is not None}
    from mlx_impl.images import calculate_dimensions

    ratio = given.pictures[0].shape[1] / given.pictures[0].shape[0] if given.pictures else 1.0
    with _as(UsageError):
        width, height = calculate_dimensions(area, ratio)
    return {"height": height if asked[0] is None else asked[0], "width": width if asked[1] is None else asked[1]}


def _notes(request: Request, pipeline: Pipeline, model: ModelFolder, low_memory: bool) -> Iterator[str]:
    """What the user should read before it begins, beyond what the request says of itself."""
    if model.synthetic:
        yield "synthetic weights are random numbers: the picture has nothing to do with the prompt"
    if not request.prompts[0].strip():
        yield "the prompt is empty"
    if request.steps == 1 and pipeline.components.scheduler().config.shift_terminal:
        yield (
            "a single step goes straight from noise to the picture, for this scheduler's shift_terminal can't "
            "stretch it (diffusers divides 0 by 0)"
        )
    if request.template not in EDITS:
        yield from _long_prompts(request, pipeline)
    if not low_memory and model.nbytes > psutil.virtual_memory().available:
        free = psutil.virtual_memory().available
        yield (
            f"the weights have {model.nbytes / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB of memory are free; "
            "--low-memory holds one component at a time"
        )


def _long_prompts(request: Request, pipeline: Pipeline) -> Iterator[str]:
    limit = request.max_sequence_length
    for name, prompts in (("prompt", request.prompts), ("negative prompt", request.negative if request.guided else ())):
        for prompt in prompts:
            with _as(UsageError):
                tokens = pipeline.components.prompter((prompt,), template=request.template)
            count = int(tokens.mask.sum()) - tokens.drop
            if count > limit:
                least = "at least " if count >= MOST_TOKENS else ""
                yield f"the {name} is cut: it has {least}{count} tokens, and {limit} are taken (--max-sequence-length)"


def _make(pipeline: Pipeline, request: Request, root: Path, err: Console) -> Result:
    """Run the pipeline.

    Raises:
        WeightsError: the components do not work together.
        ResourceError: there is not enough memory.
        ParityError: the picture is not a number.
    """
    height, width = request.size
    try:
        with _as(WeightsError, f"{root}: "), _progress(err) as tell:
            return pipeline.run(request, on_stage=tell, on_step=partial(tell, "denoise"))
    except FloatingPointError:
        raise ParityError(
            f"the picture of {height} × {width} pixels is not a number: try another --dtype (float16 overflows in "
            "this model), or find out where it begins with parity run"
        ) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error):
            raise
        raise ResourceError(
            f"not enough memory for {height} × {width} pixels ({shown(str(error))}); try --low-memory or a smaller "
            "--size"
        ) from None


@contextmanager
def _progress(err: Console) -> Iterator[Callable[..., None]]:
    """A bar on a terminal, a line for each step elsewhere; the function given is told stage, steps done, all steps."""
    if not err.is_terminal:
        yield lambda stage, done=0, steps=0: err.print(f"{STAGES[stage]} {done}/{steps}" if steps else STAGES[stage])
        return
    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as bar:
        task = bar.add_task(STAGES["prepare"], total=None)

        def tell(stage: str, done: int | None = None, steps: int | None = None) -> None:
            bar.update(task, description=STAGES[stage], completed=done, total=steps)

        yield tell


@contextmanager
def _as(kind: type[ParityError], before: str = "") -> Iterator[None]:
    """Turn what the model's code raises about its input into one line for the user."""
    try:
        yield
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise kind(before + " ".join(str(error).split())) from error


def _pipelines() -> Any:
    try:
        import mlx_impl.pipelines
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"pictures are made with the package {error.name!r}, which is not installed; `parity doctor` names the "
            "command"
        ) from error
    return mlx_impl.pipelines


def _settings(request: Request) -> dict[str, Any]:
    """What the request said, apart from files."""
    height, width = request.size
    guided = request.guided
    return {
        "prompt": request.prompts[0],
        "negative": request.negative[0] if guided else None,
        "guidance": request.guidance if guided else None,
        "height": height,
        "width": width,
        "steps": request.steps,
        "seed": request.seed,
        "noise": "numpy Philox",
        **({} if request.template in EDITS else {"max_sequence_length": request.max_sequence_length}),
        **{name: getattr(request, name) for name in ("strength", "crop_padding") if hasattr(request, name)},
    }


def _made_by(model: ModelFolder, dtype: str, loras: Sequence[LoraFile]) -> dict[str, Any]:
    """What made the picture, apart from the request."""
    made_with = open_port("mlx_impl").environment()
    named = model.origin.get("repository", model.root.resolve().name)
    name = f"{SYNTHETIC}{model.synthetic}" if model.synthetic else named
    origin = {key: value for key, value in model.origin.items() if key != "path"}
    return {
        "model": {"name": name, "pipeline": model.pipeline, "fingerprint": model.fingerprint(), **origin},
        **({"lora": [one.describe() for one in loras]} if loras else {}),
        "dtype": dtype,
        "software": {"parity": __version__, "mlx": made_with["mlx"], "device": made_with["device"]},
    }


def _default_out(seed: int) -> Path:
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-s{seed}"
    return next(p for i in range(1000) if not (p := PICTURES / f"{stamp}{f'-{i}' if i else ''}.png").exists())
