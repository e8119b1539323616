"""Makes the sample reports: a clean run, a port with shift and scale exchanged and why, 4-bit weights, pipelines.

Run by ``make samples``; ``reports/make.py --pictures`` takes only the pictures of the pages that are there. These need
Chromium, and stay as they are without it. Pages say when their run was made and how long it took, so these differ from
time to time; the temporary folder in which they were made is left out of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from parity import chromium

HERE = Path(__file__).resolve().parent
ROOT, SHOTS = HERE.parent, HERE / "shots"
RIGHT, WRONG = "    shift: mx.array\n    scale: mx.array\n", "    scale: mx.array\n    shift: mx.array\n"
RUN = "from parity.cli import main; main()"
# Page -> the part of it that is shown, from its top on where that is empty, and how many pixels of it.
PARTS = {"broken": ("", 1000), "clean": ("charts", 900), "quantized": ("budget", 900), "pipeline": ("pictures", 900)}
SCHEMES = {"light": 1, "dark": 0}
# Plots for docs/plots.md: run, options, name of the figure.
PLOTS = {
    "heatmap": ("broken", ["--kind", "heatmap"], "heatmap.square.float32.isolated"),
    "ranges": ("broken", ["--kind", "ranges"], "ranges.square.float32"),
    "profile": ("broken", ["--kind", "profile"], "profile.square.float32.isolated.block.00.img.modulated"),
    "budget": ("quantized", ["--kind", "budget"], "budget.square.bfloat16.accumulated"),
}
WIDE, LARGEST = 1280, 150_000
# The page in a frame as tall as the page, moved up to the part that is wanted: of a page that is scrolled, Chromium
# takes only what lay on the screen.
FRAME = """<!doctype html><meta charset="utf-8"><style>html { color-scheme: light dark; overflow: hidden }
body { margin: 0 } iframe { border: 0; width: 100%%; height: 12000px }</style><iframe src="%s"></iframe><script>
const frame = document.querySelector("iframe"), part = "%s";
setInterval(() => {
  const node = part && frame.contentDocument.getElementById(part);
  if (node) frame.style.marginTop = `-${Math.max(0, node.getBoundingClientRect().top - 16)}px`;
}, 100);
</script>"""


def main() -> None:
    """Make the runs in a temporary folder, keep their pages, and take pictures of these."""
    if sys.argv[1:] not in ([], ["--pictures"]):
        sys.exit(f"reports/make.py: expected nothing or --pictures, found {' '.join(sys.argv[1:])}")
    SHOTS.mkdir(exist_ok=True)
    if not sys.argv[1:]:
        with tempfile.TemporaryDirectory() as work:
            make(work)
    program = chromium.installed()
    if program is None:
        print("no Chromium here: the pictures of the pages stay as they are", file=sys.stderr)
        return
    for name, (part, tall) in PARTS.items():
        for scheme, number in SCHEMES.items():
            shoot(program, HERE / name / "report.html", part, tall, SHOTS / f"{name}-{scheme}.png", number)


def make(work: str) -> None:
    """The runs, their pages, and plots of them."""
    broken = Path(work) / "broken_port"
    shutil.copytree(ROOT / "mlx_impl", broken, ignore=shutil.ignore_patterns("__pycache__"))
    source = (broken / "layers.py").read_text()
    if source.count(RIGHT) != 1:
        sys.exit("mlx_impl/layers.py does not read as it did; mend reports/make.py")
    (broken / "layers.py").write_text(source.replace(RIGHT, WRONG))
    square = ["--case", "square", "--detail", "block", "--dtype", "float32"]
    keep("clean", [*square, "--dtype", "bfloat16"], work, expected=0)
    keep("broken", [*square, "--candidate", "broken_port"], work, expected=1, diagnosed=True)
    parity(["weights", "quantize", "synthetic:tiny", "tiny-4bit", "--bits", "4"], work, expected=0)
    quantized = ["--weights", "tiny-4bit", "--original", "synthetic:tiny"]
    keep("quantized", [*square, "--dtype", "bfloat16", *quantized], work, expected=0)
    pipelines = ["pipeline", "--case", "image-128", "--case", "inpaint", "--dtype", "float32"]
    keep("pipeline", [*pipelines, "--dtype", "bfloat16"], work, expected=0)
    for name, (run, options, figure) in PLOTS.items():
        for ending, more in (("light", []), ("dark", ["--dark"])):
            parity(["plot", run, *options, *more, "--format", "png", "--out", "drawn", "--force"], work, expected=0)
            drawn = Path(work) / "drawn" / f"{figure}{'.dark' * bool(more)}.png"
            small(drawn, SHOTS / f"plot-{name}-{ending}.png")


def keep(name: str, options: list[str], work: str, *, expected: int, diagnosed: bool = False) -> None:
    """Run `parity run` with these options, and `parity diagnose` where there is something to explain; keep the page."""
    parity(["run", *options, "--out", name], work, expected=expected)
    if diagnosed:
        parity(["diagnose", name], work, expected=expected)
    anywhere(Path(work) / name)
    parity(["report", name], work, expected=expected)
    (HERE / name).mkdir(exist_ok=True)
    shutil.copy(Path(work) / name / "report.html", HERE / name / "report.html")


def anywhere(folder: Path) -> None:
    """Leave out of a run where it was made: paths become relative to the folder above it."""
    for path in folder.glob("*.json"):
        path.write_text(path.read_text().replace(f"{folder.resolve().parent}{os.sep}", ""))


def parity(arguments: list[str], work: str, *, expected: int) -> None:
    """Run one command of the toolkit in the temporary folder."""
    environment = {**os.environ, "PYTHONPATH": f"{work}{os.pathsep}{ROOT}"}
    code = subprocess.run([sys.executable, "-c", RUN, *arguments], cwd=work, env=environment, check=False).returncode
    if code != expected:
        sys.exit(f"parity {' '.join(arguments)} ended with exit code {code}, expected {expected}")


def shoot(program: str, page: Path, part: str, tall: int, target: Path, scheme: int) -> None:
    """A picture of a part of a page, in light (1) or dark (0)."""
    with tempfile.TemporaryDirectory() as work:
        frame, taken = Path(work) / "frame.html", Path(work) / "taken.png"
        frame.write_text(FRAME % (page.as_uri(), part), encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
        flags += [f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={WIDE},{tall}"]
        flags += [f"--user-data-dir={work}/profile", "--virtual-time-budget=8000", f"--screenshot={taken}"]
        done = subprocess.run([program, *flags, frame.as_uri()], check=False, capture_output=True, timeout=180)
        if done.returncode or not taken.exists():
            sys.exit(f"{program} took no picture of {page}: {done.stderr.decode(errors='replace')[-400:]}")
        small(taken, target)


def small(source: Path, target: Path) -> None:
    """A picture with a palette, as small as it has to be; the most colours with which it is."""
    with Image.open(source) as opened:
        picture = opened.convert("RGB")
    for colours in (256, 128, 64, 32, 16):
        reduced = picture.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        reduced.save(target, optimize=True)
        if target.stat().st_size <= LARGEST:
            return
    sys.exit(f"{target} is {target.stat().st_size:,} bytes, against a limit of {LARGEST:,}")


if __name__ == "__main__":
    main()
