"""Static and grain: white noise, known by its spectrum and by channels that know nothing of each other.

H height, W width; pictures are H W 3 uint8. Grass, sand and cloth are rough as well, but their channels
go together and their structure has a size; the film grain of photographs is the same in all channels.
"""

from __future__ import annotations

import numpy as np

from parity.picturecheck.finding import Finding, rounded
from parity.picturecheck.patches import evenness
from parity.picturecheck.steps import deviation, roughness

# Mean step over deviation: 1.128 for normal, 1.155 for uniform white noise.
WHITE_STEP = (0.9, 1.3)
LEAST_CONTRAST = 18.0
# Deviation of means over n × n pixels, times n, over the deviation: 1 for white noise.
WHITE_MEANS = (0.75, 1.35)
INDEPENDENT = 0.25
LEAST_GRAIN = 9.0
LEAST_LEVELS = 64
# Correlation with the neighbour of the second difference of white noise: −2/3.
WHITE_NEIGHBOUR = -2 / 3


def _block_means(values: np.ndarray, side: int) -> np.ndarray:
    height, width = (n // side * side for n in values.shape[:2])
    return values[:height, :width].reshape(height // side, side, width // side, side, -1).mean(axis=(1, 3))


def static(picture: np.ndarray) -> Finding | None:
    """White noise, or coloured noise that is smeared over a few pixels, and nothing else."""
    if min(picture.shape[:2]) < 32:
        return None
    values = picture[:512, :512].astype(np.float32)
    spread = values.reshape(-1, 3).std(axis=0)
    rough = roughness(picture[:512, :512])
    if spread.min() < LEAST_CONTRAST or rough.min() < 0.3:
        return None
    scaled = {n: (_block_means(values, n).reshape(-1, 3).std(axis=0) * n / spread).mean() for n in (2, 4, 8, 16)}
    figures = {
        "roughness": rounded(rough.mean()), "contrast": rounded(spread.mean()),
        **{f"means_of_{n}": rounded(one) for n, one in scaled.items()},
    }  # fmt: skip
    levels = np.unique(picture[:512, :512, 0]).size
    white = WHITE_STEP[0] < rough.min() and rough.max() < WHITE_STEP[1]
    if white and levels > 16 and all(WHITE_MEANS[0] < one < WHITE_MEANS[1] for one in scaled.values()):
        return Finding("picture.noise", "white noise", figures)
    together = np.abs(np.corrcoef(values.reshape(-1, 3).T)[np.triu_indices(3, 1)]).max()
    figures["channel_correlation"] = rounded(together)
    flat = float(np.mean(picture[:, 1:] == picture[:, :-1]))
    from_here = (scaled[b] / max(float(scaled[a]), 1e-6) for a, b in ((8, 16), (4, 8)))
    own = together < INDEPENDENT and evenness(picture) > 0.85  # large pixels are uneven
    if own and flat < 0.08 and all(0.8 < one < 1.3 for one in from_here):
        return Finding("picture.noise", "coloured noise, a few pixels wide", figures)
    return None


def grain(picture: np.ndarray) -> Finding | None:
    """White noise over a picture, each channel its own."""
    if min(picture.shape[:2]) < 48 or deviation(picture).min() < 4:
        return None
    if np.unique(picture[:512, :512, 1]).size < LEAST_LEVELS:  # a dithered picture
        return None
    values = picture[:768, :768].astype(np.float32)
    second = values[2:] - 2 * values[1:-1] + values[:-2]
    second = second[:, 2:] - 2 * second[:, 1:-1] + second[:, :-2]
    blocks = _blocks(second, 16)
    centre = _block_means(values[1:-1, 1:-1], 16).reshape(-1, 3)
    usable = ((centre > 40) & (centre < 215)).all(axis=1)
    if usable.sum() < 12:
        return None
    blocks = blocks[usable]
    power = (blocks**2).mean(axis=(1, 2))
    calm = blocks[np.argsort(power.sum(axis=1))[: max(8, len(blocks) // 2)]]
    sigma = np.sqrt((calm**2).mean(axis=(0, 1, 2)) / 36)  # the kernel's squares add up to 36
    pairs = [_correlation(calm[..., a], calm[..., b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    neighbours = [_correlation(calm[:, :, 1:], calm[:, :, :-1]), _correlation(calm[:, 1:], calm[:, :-1])]
    everywhere = float(np.sqrt(np.quantile(power.mean(axis=1), 0.05) / 36))
    figures = {
        "noise_levels": rounded(sigma.mean()), "channel_correlation": rounded(max(pairs)),
        "neighbour_correlation": rounded(np.mean(neighbours)),
    }  # fmt: skip
    white = all(abs(one - WHITE_NEIGHBOUR) < 0.09 for one in neighbours)
    own = max(pairs) < INDEPENDENT
    if sigma.min() < LEAST_GRAIN or everywhere < 0.6 * sigma.mean() or not white or not own:
        return None
    return Finding("picture.grain", f"white noise of {sigma.mean():.0f} levels", figures, confidence="possible")


def _blocks(values: np.ndarray, side: int) -> np.ndarray:
    """N × side × side × 3."""
    height, width = (n // side for n in values.shape[:2])
    cut = values[: height * side, : width * side].reshape(height, side, width, side, 3)
    return cut.transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).mean() / max(np.sqrt((one**2).mean() * (other**2).mean()), 1e-9))
