"""Small real images, made up on the spot."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def smooth_pixels(height: int, width: int, seed: int = 0, cell: int = 12) -> np.ndarray:
    """Smooth uint8 [H, W, 3], blobs of `cell` pixels: resizers agree on it, unlike on noise."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(2, height // cell), max(2, width // cell), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encode(pixels: np.ndarray | Image.Image, image_format: str = "JPEG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    if image_format == "JPEG":
        options = {"quality": 92, **options}
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def write_class_folder(root: Path, per_class: int = 5) -> Path:
    """Three classes of JPEG, PNG and WebP images between 40 and 80 pixels."""
    extensions = {"JPEG": "JPEG", "PNG": "png", "WEBP": "webp"}
    for number, (image_format, extension) in enumerate(extensions.items()):
        folder = root / f"class{number}"
        folder.mkdir(parents=True)
        for i in range(per_class):
            pixels = smooth_pixels(40 + 7 * i, 80 - 5 * i, seed=10 * number + i)
            (folder / f"image.{i}.{extension}").write_bytes(encode(pixels, image_format))
    return root
