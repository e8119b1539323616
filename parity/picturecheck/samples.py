"""Clean pictures to try the checks on: photographs that scikit-image ships, and made ones, many of them traps.

Pictures are H W 3 uint8. Each kind is a function of a random generator and a size; sizes are odd at
times, and photographs are cropped, rescaled, turned, darkened or compressed. A photograph whose file
is not installed is left out; nothing is downloaded.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

Kind = Callable[[np.random.Generator, int, int], np.ndarray]

PHOTOGRAPHS = (
    "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "color.png", "grass.png", "gravel.png",
    "brick.png", "horse.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png",
    "motorcycle_right.png", "page.png", "retina.jpg", "rocket.jpg", "text.png", "clock_motion.png", "cell.png",
    "phantom.png", "chessboard_RGB.png",
)  # fmt: skip
# Those with enough colour and detail that a fault changes what is seen.
RICH = (
    "astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg",
    "camera.png", "coins.png", "ihc.png", "retina.jpg", "gravel.png", "brick.png", "grass.png", "moon.png",
)  # fmt: skip


def clean(rng: np.random.Generator, kind: str | None = None) -> tuple[str, np.ndarray]:
    """A clean picture of a random kind and size, and what it is."""
    name = kind or str(rng.choice(list(KINDS)))
    height, width = (int(n) for n in rng.integers(150, 520, 2))
    if rng.random() < 0.4:
        height, width = height // 16 * 16, width // 16 * 16
    pixels = KINDS[name](rng, height, width)
    if rng.random() < 0.25:
        pixels, name = jpeg(pixels, int(rng.integers(70, 96))), f"{name}, as JPEG"
    return name, pixels


def rich(rng: np.random.Generator, multiple: int = 1, *, detailed: bool = False) -> np.ndarray:
    """A photograph with detail, sides that are multiples of `multiple`; at times a drawing, if not `detailed`."""
    height, width = (int(n) // multiple * multiple for n in rng.integers(192, 560, 2))
    kind = rng.choice(["photograph"] * 8 + ["landscape", "painting"] + ["drawing"] * (not detailed))
    if kind != "photograph":
        return KINDS[str(kind)](rng, height, width)
    return _cropped(rng, _photograph(str(rng.choice([n for n in RICH if _photograph(n) is not None]))), height, width)


def stretched(picture: np.ndarray) -> np.ndarray:
    """The picture with the whole range of values used, from black to white."""
    low, high = np.quantile(picture, [0.001, 0.999])
    return _bytes((picture - low) * (255 / max(high - low, 1.0)))


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """The picture after JPEG compression."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file).convert("RGB"))


@cache
def _photograph(name: str) -> np.ndarray | None:
    import skimage.data

    path = Path(skimage.data.__file__).parent / name
    return np.array(Image.open(path).convert("RGB")) if path.is_file() else None


def _cropped(rng: np.random.Generator, picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A random part of the picture, rescaled to the size; turned and mirrored at random."""
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    full_height, full_width = picture.shape[:2]
    largest = min(full_height / height, full_width / width)
    scale = largest * rng.uniform(0.55, 1.0)
    rows, columns = max(8, int(height * scale)), max(8, int(width * scale))
    top = int(rng.integers(0, full_height - rows + 1))
    left = int(rng.integers(0, full_width - columns + 1))
    part = Image.fromarray(np.ascontiguousarray(picture[top : top + rows, left : left + columns]))
    if scale > 0.9 and rng.random() < 0.5:  # as it is, without resampling, where it is large enough
        part = part.crop((0, 0, min(width, columns), min(height, rows)))
    return np.array(part.resize((width, height), Image.Resampling.LANCZOS))


def photograph(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Any of the photographs, scans and drawings that are installed."""
    names = [name for name in PHOTOGRAPHS if _photograph(name) is not None]
    return _cropped(rng, _photograph(str(rng.choice(names))), height, width)


def untouched(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A photograph exactly as it is installed."""
    names = [name for name in PHOTOGRAPHS if _photograph(name) is not None]
    return _photograph(str(rng.choice(names)))[:1024, :1024].copy()


def low_key(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A photograph taken in near darkness."""
    return (photograph(rng, height, width) * rng.uniform(0.04, 0.25)).astype(np.uint8)


def high_key(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A photograph that is light throughout."""
    low = rng.choice([rng.uniform(90, 118), rng.uniform(138, 190)])  # at 127.5 it is the fault itself
    return (low + photograph(rng, height, width) * (255 - low) / 255).astype(np.uint8)


def grey(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A photograph in greys."""
    return np.repeat(photograph(rng, height, width).mean(axis=2).astype(np.uint8)[..., None], 3, axis=2)


def toned(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A photograph in two tones."""
    value = photograph(rng, height, width).mean(axis=2)[..., None] / 255
    dark, light = rng.uniform(0, 110, 3), rng.uniform(140, 255, 3)
    return (dark + value * (light - dark)).astype(np.uint8)


def film(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A photograph with film grain: the same in all channels, or soft."""
    noise = rng.normal(0, rng.uniform(2, 9), (height, width, 1))
    if rng.random() < 0.5:
        noise = ndimage.gaussian_filter(noise, (0.7, 0.7, 0)) * 1.8
    return _bytes(photograph(rng, height, width) + noise)


def framed(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A photograph with bars above and below, or a frame all around."""
    picture = photograph(rng, height, width).copy()
    bar, colour = int(rng.integers(8, height // 6)), int(rng.choice([0, 255]))
    picture[:bar] = picture[-bar:] = colour
    if rng.random() < 0.5:
        picture[:, :bar] = picture[:, -bar:] = colour
    return picture


def collage(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Four photographs side by side."""
    half_height, half_width = height // 2, width // 2
    rows = [
        np.concatenate([photograph(rng, half_height, half_width) for _ in range(2)], axis=1) for _ in range(2)
    ]  # fmt: skip
    return np.concatenate(rows)


def bricks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A brick wall, each second row shifted by half a brick."""
    brick_width, brick_height = int(rng.integers(20, 70)), int(rng.integers(8, 30))
    mortar = int(rng.integers(1, 4))
    rows, columns = np.mgrid[:height, :width]
    row = rows // brick_height
    shifted = columns + (row % 2) * (brick_width // 2)
    colour = rng.uniform(60, 200, 3)
    shade = rng.normal(0, rng.uniform(0, 14), (height // brick_height + 2, width // brick_width + 3))
    picture = colour + shade[row, shifted // brick_width][..., None]
    joint = (rows % brick_height < mortar) | (shifted % brick_width < mortar)
    picture[joint] = rng.uniform(140, 230)
    return _bytes(picture + rng.normal(0, rng.choice([0, 3, 8]), (height, width, 1)))


def windows(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """The front of a house: equal windows at equal distances, some lit; at times exactly repeated."""
    down, across = int(rng.integers(2, 9)), int(rng.integers(2, 9))
    picture = np.empty((height, width, 3))
    picture[:] = rng.uniform(30, 220, 3)
    cell_height, cell_width = height // down, width // across
    same = rng.random() < 0.4
    glass = rng.uniform(0, 90, 3) * (rng.random() < 0.7)
    for row in range(down):
        for column in range(across):
            top, left = row * cell_height + cell_height // 5, column * cell_width + cell_width // 5
            lit = not same and rng.random() < 0.3
            pane = picture[top : top + cell_height * 3 // 5, left : left + cell_width * 3 // 5]
            pane[:] = (250, 220, 130) if lit else glass
            pane[:, pane.shape[1] // 2] = 255
    return _bytes(picture + rng.normal(0, rng.choice([0, 0, 2, 6]), (height, width, 1)))


def chessboard(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A chessboard of any number and size of squares, 8 and 16 pixels among them."""
    side = int(rng.choice([8, 16, 32, height // 8, int(rng.integers(3, 60)), max(1, width // 6)]))
    rows, columns = np.mgrid[:height, :width]
    dark, light = (0.0, 255.0) if rng.random() < 0.5 else (rng.uniform(0, 120, 3), rng.uniform(130, 255, 3))
    odd = ((rows // side + columns // side) % 2)[..., None]
    return _bytes(np.where(odd, light, dark) + np.zeros((1, 1, 3)))


def stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Stripes at any angle, hard or soft; slanted ones look like a sheared picture."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 60)
    if rng.random() < 0.4:
        angle = rng.choice([0, np.pi / 4, np.pi / 2, 3 * np.pi / 4])
    rows, columns = np.mgrid[:height, :width]
    wave = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * 2 * np.pi / period)
    wave = np.sign(wave) if rng.random() < 0.5 else wave
    one, other = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    return _bytes(one + (wave[..., None] + 1) / 2 * (other - one))


def plaid(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Woven cloth: stripes of both directions over each other."""
    lines = [np.repeat(rng.uniform(0, 255, (60, 3)), int(rng.integers(4, 30)), axis=0) for _ in range(2)]
    down = lines[0][np.arange(height) % (len(lines[0]) // 10)]
    across = lines[1][np.arange(width) % (len(lines[1]) // 10)]
    return _bytes((down[:, None] + across[None]) / 2 + rng.normal(0, rng.choice([0, 4]), (height, width, 1)))


def gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A gradient between two colours, straight or round."""
    rows, columns = np.mgrid[:height, :width]
    angle = rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)])
    along = rows * np.sin(angle) + columns * np.cos(angle)
    if rng.random() < 0.3:
        along = np.hypot(rows - height / 2, columns - width / 2)
    along = (along - along.min()) / np.ptp(along)
    one, other = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    if rng.random() < 0.3:
        one, other = np.full(3, rng.choice([0.0, 128.0])), np.full(3, 255.0)
    return _bytes(one + along[..., None] * (other - one))


def wedge(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A test chart: steps of grey, and bars of colour."""
    steps = int(rng.integers(5, 24))
    greys = np.rint(np.arange(width) * steps // width * 255 / (steps - 1))
    picture = np.repeat(np.broadcast_to(greys, (height, width))[..., None], 3, axis=2).copy()
    bars = np.arange(width) * 8 // width
    picture[height // 2 :] = np.stack([bars & 1, bars >> 1 & 1, bars >> 2 & 1], axis=1) * 255
    return _bytes(picture)


def fog(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Mist: hardly any contrast, or a light haze before hills."""
    base = _clouds(rng, height, width, rng.uniform(1.5, 2.4))
    low, depth = rng.uniform(60, 190), rng.uniform(6, 70)
    return _bytes(low + depth * base[..., None] + rng.uniform(-8, 8, 3))


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Sand, cloth, concrete: noise of every scale, fine ones among them."""
    base = _clouds(rng, height, width, rng.uniform(0.45, 1.4))
    tint = rng.uniform(0.6, 1.0, 3)
    return _bytes(255 * np.clip(0.5 + (base[..., None] - 0.5) * rng.uniform(0.5, 1.3), 0, 1) * tint)


def landscape(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Hills before a sky."""
    rows = np.arange(height)[:, None]
    top, bottom = rng.uniform(80, 255, 3), rng.uniform(120, 255, 3)
    picture = np.repeat((top + (rows / height) * (bottom - top))[:, None], width, axis=1)
    for layer in range(4):
        line = height * (0.35 + 0.15 * layer) + height * 0.2 * (_clouds(rng, 1, width, 1.6)[0] - 0.5)
        inside = rows > line[None]
        ground = rng.uniform(20, 150, 3) + 60 * (_clouds(rng, height, width, 1.1)[..., None] - 0.5)
        picture[inside] = ground[inside]
    return _bytes(picture)


def painting(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Soft fields of many colours."""
    channels = [_clouds(rng, height, width, rng.uniform(1.2, 2.0)) for _ in range(3)]
    return _bytes(255 * np.stack(channels, axis=2))


def night(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A night sky with stars, or a dark street with lamps."""
    picture = np.zeros((height, width, 3)) + rng.uniform(0, 12, 3)
    count = int(rng.integers(20, 400))
    picture[rng.integers(0, height, count), rng.integers(0, width, count)] += rng.uniform(40, 900, (count, 1))
    picture = ndimage.gaussian_filter(picture, (*[rng.uniform(0.4, 1.4)] * 2, 0))
    for _ in range(int(rng.integers(0, 6))):
        rows, columns = np.mgrid[:height, :width]
        distance = np.hypot(rows - rng.uniform(0, height), columns - rng.uniform(0, width))
        picture += 200 * np.exp(-distance / rng.uniform(5, 40))[..., None] * np.array([1, 0.85, 0.5])
    return _bytes(picture)


def drawing(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Flat shapes of a few colours."""
    image = Image.new("RGB", (width, height), tuple(int(n) for n in rng.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    palette = [tuple(int(n) for n in rng.integers(0, 256, 3)) for _ in range(int(rng.integers(1, 9)))]
    if rng.random() < 0.2:
        palette = [(0, 0, 0)]
    for _ in range(int(rng.integers(3, 40))):
        x, y = rng.uniform(-0.1, 1, 2) * (width, height)
        w, h = rng.uniform(0.03, 0.5, 2) * (width, height)
        shape = rng.choice([draw.ellipse, draw.rectangle])
        shape((x, y, x + w, y + h), fill=palette[int(rng.integers(len(palette)))])
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(0.7))
    return np.array(image)


def text(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A page of letters, black on white, white on black or in colours."""
    pair = [(255, 255, 255), (0, 0, 0)] if rng.random() < 0.6 else [tuple(rng.integers(0, 256, 3)) for _ in range(2)]
    paper, ink = (tuple(int(n) for n in one) for one in (pair if rng.random() < 0.7 else pair[::-1]))
    image = Image.new("RGB", (width, height), paper)
    draw, size = ImageDraw.Draw(image), int(rng.integers(8, 40))
    font = ImageFont.load_default(size)
    for top in range(int(rng.integers(0, 30)), height, int(size * 1.4)):
        line = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz      ABCDE.,")) for _ in range(width // 4))
        draw.text((int(rng.integers(-10, 20)), top), line, fill=ink, font=font)
    return np.array(image)


def pixel_art(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Large square pixels of a small palette; cells of 8 and 16 among them."""
    cell = int(rng.choice([2, 4, 8, 16, 12]))
    rows, columns = -(-height // cell), -(-width // cell)
    palette = rng.integers(0, 256, (int(rng.integers(3, 17)), 3)).astype(np.uint8)
    field = _clouds(rng, rows, columns, rng.choice([0.1, 1.0, 1.6]))
    small = palette[np.clip((field * len(palette)).astype(int), 0, len(palette) - 1)]
    return np.repeat(np.repeat(small, cell, 0), cell, 1)[:height, :width]


def halftone(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A photograph in black and white dots: printed, ordered or diffused."""
    picture = Image.fromarray(photograph(rng, height, width)).convert("L")
    way = rng.integers(3)
    if way == 0:
        return np.array(picture.convert("1").convert("RGB"))
    values = np.array(picture, dtype=float) / 255
    rows, columns = np.mgrid[:height, :width]
    if way == 1:
        period = rng.uniform(4, 10)
        screen = (np.sin(rows * 2 * np.pi / period) * np.sin(columns * 2 * np.pi / period) + 1) / 2
    else:
        screen = (np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) + 0.5)[
            rows % 4, columns % 4
        ] / 16
    return np.repeat(((values > screen) * 255).astype(np.uint8)[..., None], 3, axis=2)


def blueprint(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Squared paper, a table, a floor plan: lines at equal distances."""
    step = int(rng.choice([16, 32, 64, int(rng.integers(12, 90))]))
    picture = np.empty((height, width, 3))
    picture[:] = rng.uniform(150, 255, 3) if rng.random() < 0.6 else rng.uniform(0, 90, 3)
    line = rng.uniform(0, 255, 3)
    thick = int(rng.integers(1, 4))
    for offset in range(thick):
        picture[offset::step] = line
        picture[:, offset::step] = line
    return _bytes(picture + rng.normal(0, rng.choice([0, 2]), (height, width, 1)))


def floor(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A tiled floor: each tile of its own shade, with a little structure, joints or none."""
    side = int(rng.choice([32, 48, 64, int(rng.integers(24, 100))]))
    rows, columns = np.mgrid[:height, :width]
    shade = rng.normal(0, rng.uniform(8, 40), (height // side + 1, width // side + 1, 1))
    picture = rng.uniform(70, 190, 3) + shade[rows // side, columns // side]
    picture += 20 * (_clouds(rng, height, width, 0.8)[..., None] - 0.5)
    if rng.random() < 0.6:
        picture[(rows % side < 2) | (columns % side < 2)] = rng.uniform(0, 255)
    return _bytes(picture)


def modules(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A matrix code: random black and white squares with a quiet margin."""
    cell = int(rng.integers(3, 12))
    small = rng.integers(0, 2, (height // cell, width // cell)).astype(np.uint8) * 255
    small[:3] = small[-3:] = 255
    small[:, :3] = small[:, -3:] = 255
    return np.repeat(np.repeat(np.repeat(small, cell, 0), cell, 1)[..., None], 3, axis=2)


def posterised(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A poster: a picture in four to eight flat colours."""
    colours = int(rng.integers(4, 9))
    value = ndimage.gaussian_filter(photograph(rng, height, width).mean(axis=2), 2)
    edges = np.quantile(value, np.linspace(0, 1, colours + 1)[1:-1])
    palette = np.sort(rng.integers(0, 256, (colours, 3)), axis=0).astype(np.uint8)
    return palette[np.digitize(value, edges)]


def _clouds(rng: np.random.Generator, height: int, width: int, slope: float) -> np.ndarray:
    """Noise whose amplitude falls as 1/f^slope; H W in 0…1."""
    down, across = np.fft.fftfreq(2 * height)[:, None], np.fft.rfftfreq(2 * width)[None]
    frequency = np.maximum(np.hypot(down, across), 1 / (2 * max(height, width)))
    spectrum = np.fft.rfft2(rng.normal(size=(2 * height, 2 * width))) / frequency**slope
    values = np.fft.irfft2(spectrum, (2 * height, 2 * width))[:height, :width]
    low, high = np.quantile(values, [0.005, 0.995])
    return np.clip((values - low) / max(high - low, 1e-12), 0, 1)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


KINDS: dict[str, Kind] = {
    one.__name__: one
    for one in (
        photograph, untouched, low_key, high_key, grey, toned, film, framed, collage, bricks, windows, chessboard,
        stripes, plaid, gradient, wedge, fog, texture, landscape, painting, night, drawing, text, pixel_art, halftone,
        blueprint, floor, modules, posterised,
    )
}  # fmt: skip
