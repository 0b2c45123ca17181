"""Many small pictures on one, each with a caption: to look at a batch with one's own eyes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_MARGIN = 6
_TEXT_PIXELS = 12
_LINE = _TEXT_PIXELS + 3
_SMALLEST_CELL = 96
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (130, 130, 130)


def contact_sheet(
    images: NDArray[np.uint8], captions: Sequence[tuple[str, str]], title: str = ""
) -> Image.Image:
    """Images in rows of about the sheet's square root, captions of two lines below each.

    Args:
        images: uint8 [B, 3, H, W]; small ones are enlarged by a whole factor, pixels kept square.
        captions: B pairs of lines; the first is cut at its front, the second at its end.
        title: a line above everything.
    """
    assert len(images) == len(captions)
    factor = max(1, -(-_SMALLEST_CELL // min(images.shape[2:])))
    tall, cell = (side * factor for side in images.shape[2:])
    columns = max(1, round(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    step_x, step_y = cell + _MARGIN, tall + 2 * _LINE + _MARGIN
    top = _MARGIN + (_LINE + _MARGIN if title else 0)
    sheet = Image.new("RGB", (columns * step_x + _MARGIN, rows * step_y + top), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT_PIXELS)
    draw.text((_MARGIN, _MARGIN), _fitting(title, sheet.width - 2 * _MARGIN, font), _INK, font)
    for number, (pixels, (name, label)) in enumerate(zip(images, captions, strict=True)):
        x, y = _MARGIN + number % columns * step_x, top + number // columns * step_y
        picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        sheet.paste(picture.resize((cell, tall), Image.Resampling.NEAREST), (x, y))
        draw.text((x, y + tall + 1), _fitting(name, cell, font, keep_end=True), _FAINT, font)
        draw.text((x, y + tall + 1 + _LINE), _fitting(label, cell, font), _INK, font)
    return sheet


def _fitting(
    text: str,
    width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    keep_end: bool = False,
) -> str:
    """The text, cut at its end or at its front so that it is at most `width` pixels wide."""
    shown = text
    while text and font.getlength(shown) > width:
        text = text[1:] if keep_end else text[:-1]
        shown = f"...{text}" if keep_end else f"{text}..."
    return shown
