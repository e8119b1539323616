"""Makes the sample reports: a clean run, a port with shift and scale exchanged and why, 4-bit weights, pipelines.

Run by ``make samples``. The pictures for the README need Chromium and stay as they are without it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RIGHT, WRONG = "    shift: mx.array\n    scale: mx.array\n", "    scale: mx.array\n    shift: mx.array\n"


def main() -> None:
    """Make the runs in a temporary folder and keep their pages."""
    with tempfile.TemporaryDirectory() as work:
        broken = Path(work) / "broken_port"
        shutil.copytree(HERE.parent / "mlx_impl", broken, ignore=shutil.ignore_patterns("__pycache__"))
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
    for name, scheme in (("report-light", 1), ("report-dark", 0)):
        picture(HERE / "broken" / "report.html", HERE / f"{name}.png", scheme)


def keep(name: str, options: list[str], work: str, *, expected: int, diagnosed: bool = False) -> None:
    """Run `parity run` with these options, and `parity diagnose` where there is something to explain; keep the page."""
    parity(["run", *options, "--out", name], work, expected=expected)
    if diagnosed:
        parity(["diagnose", name], work, expected=expected)
    (HERE / name).mkdir(exist_ok=True)
    shutil.copy(Path(work) / name / "report.html", HERE / name / "report.html")


def parity(arguments: list[str], work: str, *, expected: int) -> None:
    """Run one command of the toolkit in the temporary folder."""
    command = [shutil.which("parity", path=str(Path(sys.executable).parent)) or "parity", *arguments]
    code = subprocess.run(command, cwd=work, env={**os.environ, "PYTHONPATH": work}, check=False).returncode
    if code != expected:
        sys.exit(f"parity {' '.join(arguments)} ended with exit code {code}, expected {expected}")


def picture(page: Path, target: Path, scheme: int) -> None:
    """A screenshot of the head of a page, in light (1) or dark (0)."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print(f"no Chromium here: {target.name} stays as it is", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        flags += [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1280,1500"]
        flags += ["--virtual-time-budget=4000", f"--screenshot={target}"]
        subprocess.run([chromium, *flags, page.resolve().as_uri()], check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    main()
