"""How far apart two pictures are, in the figures that people report.

H height, W width. Pictures are H W 3 uint8, in sRGB. RMSE, largest difference, mean and standard
deviation are over all channels, on 0…255. PSNR is against 255. SSIM is that of Wang et al. (2004):
Gaussian windows with σ = 1.5 pixels. FLIP is NVIDIA's, at its default viewing distance (67 pixels
per degree): the mean of a map on 0…1, of differences as an eye sees them that flips between the two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from parity.errors import MissingPackageError, UsageError

# Pixels each way of SSIM's window; smaller pictures have no SSIM.
SSIM_WINDOW = 11


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of a picture's values, on 0…255."""

    mean: float
    std: float


@dataclass(frozen=True)
class PictureMetrics:
    """Two pictures against each other.

    Attributes:
        rmse, max_abs: on 0…255.
        max_at: row, column and channel of the largest difference.
        psnr: in dB; inf for equal pictures.
        ssim: 1 for equal pictures; None for pictures that are smaller than its window.
        flip: 0 for equal pictures.
        reference, candidate: of each picture alone.
    """

    rmse: float
    max_abs: int
    max_at: tuple[int, int, int]
    psnr: float
    ssim: float | None
    flip: float
    reference: Moments
    candidate: Moments

    def as_dict(self) -> dict[str, Any]:
        """As a dictionary of numbers, for `parity.runfolder.to_json`."""
        return asdict(self)


def measure(reference: np.ndarray, candidate: np.ndarray) -> PictureMetrics:
    """Compare two pictures of one size.

    Raises:
        UsageError: they differ in size, or are no pictures.
        MissingPackageError: scikit-image or flip-evaluator is not installed.
    """
    _check(reference, candidate)
    difference = np.abs(reference.astype(np.int16) - candidate.astype(np.int16))
    mean_square = float(np.mean(difference.astype(np.float64) ** 2))
    return PictureMetrics(
        rmse=math.sqrt(mean_square),
        max_abs=int(difference.max()),
        max_at=tuple(int(n) for n in np.unravel_index(difference.argmax(), difference.shape)),
        psnr=10 * math.log10(255**2 / mean_square) if mean_square else math.inf,
        ssim=_ssim(reference, candidate),
        flip=float(flip_map(reference, candidate).mean()),
        reference=_moments(reference),
        candidate=_moments(candidate),
    )


def flip_map(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """FLIP of every pixel: H W float32 in 0…1.

    Raises:
        UsageError, MissingPackageError: as for `measure`.
    """
    _check(reference, candidate)
    try:
        from flip_evaluator import evaluate
    except ModuleNotFoundError:
        raise _missing("FLIP", "flip-evaluator") from None
    unit = (np.divide(picture, 255, dtype=np.float32) for picture in (reference, candidate))
    found, _, _ = evaluate(*unit, "LDR", applyMagma=False)
    return found[..., 0]


def rows(metrics: PictureMetrics) -> list[tuple[str, str, str]]:
    """Metric, the reference's figure, the candidate's; differences stand with the candidate."""
    return [
        ("RMSE", "–", f"{metrics.rmse:.2f}"),
        ("Mean", f"{metrics.reference.mean:.2f}", f"{metrics.candidate.mean:.2f}"),
        ("Std", f"{metrics.reference.std:.2f}", f"{metrics.candidate.std:.2f}"),
        ("Largest difference", "–", f"{metrics.max_abs}"),
        ("PSNR (dB)", "–", "∞" if math.isinf(metrics.psnr) else f"{metrics.psnr:.2f}"),
        ("SSIM", "–", "–" if metrics.ssim is None else f"{metrics.ssim:.4f}"),
        ("FLIP", "–", f"{metrics.flip:.4f}"),
    ]


def markdown(metrics: PictureMetrics, names: tuple[str, str] = ("reference", "candidate")) -> str:
    """The table in Markdown."""
    lines = [_line(("Metric", *names)), _line(("---", "---:", "---:")), *map(_line, rows(metrics))]
    return "\n".join(lines)


def table(metrics: PictureMetrics, names: tuple[str, str] = ("reference", "candidate")) -> str:
    """The table for a terminal, in columns."""
    cells = [("Metric", *names), *rows(metrics)]
    first, second, third = (max(map(len, column)) for column in zip(*cells, strict=True))
    return "\n".join(f"{a:<{first}}  {b:>{second}}  {c:>{third}}" for a, b, c in cells)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ssim(reference: np.ndarray, candidate: np.ndarray) -> float | None:
    if min(reference.shape[:2]) < SSIM_WINDOW:
        return None
    try:
        from skimage.metrics import structural_similarity
    except ModuleNotFoundError:
        raise _missing("SSIM", "scikit-image") from None
    return float(
        structural_similarity(
            reference, candidate, channel_axis=-1, data_range=255,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
    )  # fmt: skip


def _moments(picture: np.ndarray) -> Moments:
    wide = picture.astype(np.float64)
    return Moments(float(wide.mean()), float(wide.std()))


def _check(reference: np.ndarray, candidate: np.ndarray) -> None:
    for picture in (reference, candidate):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise UsageError(f"no picture: an array {picture.shape} of {picture.dtype}, expected H W 3 of uint8")
    if reference.shape != candidate.shape:
        sizes = (f"{height} × {width}" for height, width, _ in (reference.shape, candidate.shape))
        raise UsageError("pictures of different sizes: {} for the reference, {} for the candidate".format(*sizes))


def _missing(what: str, package: str) -> MissingPackageError:
    return MissingPackageError(f"{what} needs the package {package}, which is not installed: pip install {package}")
