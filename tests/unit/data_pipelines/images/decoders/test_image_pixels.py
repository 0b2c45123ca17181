"""Which inputs are images for us, and what becomes of unusual ones."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_pipelines.images.decoders.dali import dali_is_installed
from data_pipelines.images.decoders.limits import BadImage
from data_pipelines.images.decoders.open import open_decoder
from data_pipelines.images.decoders.pixels import (
    ImageFacts,
    decode_jpeg_scaled,
    decode_rgb,
    read_facts,
    sniff_format,
    validate_image,
)
from data_pipelines.images.packing.formats import storable
from data_pipelines.views import AdmCenterView, view_geometry
from tests.support.image_samples import encode, smooth_pixels

PIXELS = smooth_pixels(48, 64)
ALPHA = np.arange(48 * 64, dtype=np.uint8).reshape(48, 64)
TRANSPARENT = Image.fromarray(np.dstack([PIXELS, ALPHA]))


def _pillow_rgb(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _ycck(pixels: np.ndarray) -> bytes:
    """A JPEG of four channels whose Adobe marker says that the first three are YCC."""
    data = bytearray(encode(Image.fromarray(pixels).convert("CMYK")))
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    data[transform] = 2
    return bytes(data)


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize(
    ("data", "image_format"),
    [
        (encode(PIXELS), "jpeg"),
        (encode(PIXELS, progressive=True), "jpeg"),
        (encode(PIXELS, subsampling=0), "jpeg"),
        (encode(Image.fromarray(PIXELS).convert("L")), "jpeg"),
        (encode(Image.fromarray(PIXELS).convert("CMYK")), "jpeg"),
        (_ycck(PIXELS), "jpeg"),
        (encode(PIXELS, "PNG"), "png"),
        (encode(Image.fromarray(PIXELS).convert("RGBA"), "PNG"), "png"),
        (encode(Image.fromarray(PIXELS).convert("LA"), "PNG"), "png"),
        (encode(Image.fromarray(PIXELS).convert("P"), "PNG"), "png"),
        (encode(Image.fromarray(PIXELS).convert("1"), "PNG"), "png"),
        (encode(PIXELS, "WEBP"), "webp"),
        (encode(PIXELS, keep_rgb=True), "jpeg"),
        (encode(PIXELS, restart_marker_blocks=3), "jpeg"),
        (encode(PIXELS, icc_profile=b"profile" * 30, exif=_exif(6)), "jpeg"),
        (encode(Image.fromarray(PIXELS), "MPO"), "jpeg"),
        (encode(TRANSPARENT, "PNG"), "png"),
        (encode(TRANSPARENT.convert("LA"), "PNG", exif=_exif(8)), "png"),
        (
            encode(Image.fromarray(PIXELS).convert("P"), "PNG", transparency=bytes(range(256))),
            "png",
        ),
        (encode(PIXELS, "PNG", transparency=(1, 2, 3)), "png"),
        (encode(TRANSPARENT, "WEBP", lossless=True), "webp"),
    ],
    ids="rgb progressive 444 grey cmyk ycck png rgba grey-alpha palette 1-bit webp stored-rgb"  # noqa: SIM905
    " restart profile mpo alpha grey-orientation palette-alpha one-colour webp-alpha".split(),
)
@pytest.mark.filterwarnings("ignore:Palette images")
def test_decodes_as_the_released_code_on_both_decoders(data, image_format):
    assert validate_image(data) == read_facts(data) == ImageFacts(48, 64, image_format)
    theirs = _pillow_rgb(data)
    np.testing.assert_array_equal(decode_rgb(data), theirs)
    geometry = view_geometry(
        AdmCenterView(48), seed=0, epoch=0, sample_ids=np.zeros(1, int), views=np.zeros(1, int),
        heights=np.array([48]), widths=np.array([64]),
    )  # fmt: skip
    for kind in ("cpu", "dali") if dali_is_installed() else ("cpu",):
        decoder = open_decoder(kind, (48, 48), threads=1)
        images = decoder.decode([data], geometry).images
        decoder.close()
        apart = np.abs(images[0].numpy().transpose(1, 2, 0).astype(int) - theirs[:, 8:56])
        assert apart.max() <= 1  # nothing is resized, but DALI's resize rounds


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    decoded = decode_rgb(encode(Image.fromarray(grey), "PNG"))
    np.testing.assert_allclose(decoded[:, :, 1], grey / 257, atol=0.51)


def test_sixteen_bit_colour_keeps_the_upper_bits():
    wide = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    np.testing.assert_array_equal(decode_rgb(data), wide >> 8)


def test_alpha_is_dropped_not_blended():
    pixels = np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])
    np.testing.assert_array_equal(decode_rgb(encode(pixels, "PNG")), PIXELS)


def test_animated_webp_shows_its_first_frame():
    frames = [Image.fromarray(smooth_pixels(48, 64, seed)) for seed in (0, 1)]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(decode_rgb(data), PIXELS)


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(PIXELS, exif=exif.tobytes())
    assert decode_rgb(data).shape == (48, 64, 3)


def test_more_than_eight_bits_of_a_jpeg_are_named():
    data = bytearray(encode(PIXELS))
    data[data.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(BadImage, match="a JPEG of 12 bits; store it with 8"):
        validate_image(bytes(data))


def test_heif_is_converted_where_its_plug_in_is_installed():
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    buffer = io.BytesIO()
    heif.from_pillow(Image.fromarray(PIXELS)).save(buffer, quality=-1)
    data = buffer.getvalue()
    assert sniff_format(storable(data, 1 << 20)) == "png"
    decoded = decode_rgb(storable(data, 1 << 20)).astype(int)
    assert np.abs(decoded - np.asarray(heif.open_heif(data))).max() == 0


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_numbers_of_unknown_range_are_named_when_packing(kind):
    data = encode(Image.fromarray(np.arange(48 * 64, dtype=kind).reshape(48, 64)), "TIFF")
    with pytest.raises(BadImage, match="numbers, whose range is unknown"):
        storable(data, 1 << 20)


def test_content_decides_not_the_name():
    assert sniff_format(encode(PIXELS, "PNG")) == "png"


def test_stray_bytes_behind_the_image_are_harmless():
    data = encode(PIXELS)
    np.testing.assert_array_equal(decode_rgb(data + b"\0" * 37), decode_rgb(data))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_truncated_image_is_refused(image_format, kept):
    data = encode(smooth_pixels(100, 120), image_format)
    with pytest.raises(BadImage):
        validate_image(data[: int(len(data) * kept)])


def test_jpeg_without_its_end_marker_is_refused():
    with pytest.raises(BadImage, match="truncated"):
        validate_image(encode(PIXELS)[:-2])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"junk" * 100, "not a JPEG, PNG or WebP image"),
        (bytes(600) + encode(PIXELS)[600:], "not a JPEG, PNG or WebP image"),
        (b"\xff\xd8\xff" + bytes(300), "damaged JPEG header"),
        (b"\x89PNG\r\n\x1a\n" + bytes(300), "cannot identify|broken PNG|Truncated"),
        (encode(PIXELS, "GIF"), "not a JPEG, PNG or WebP image"),
        (encode(PIXELS, "BMP"), "not a JPEG, PNG or WebP image"),
    ],
    ids=["empty", "junk", "zeroed-header", "jpeg-rot", "png-rot", "gif", "bmp"],
)
def test_what_is_no_image_is_refused(data, reason):
    with pytest.raises(BadImage, match=reason):
        validate_image(data)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_too_many_pixels_are_refused_before_decoding(image_format):
    with pytest.raises(BadImage, match="64x48 pixels exceed the limit of 3071 pixels"):
        validate_image(encode(PIXELS, image_format), max_pixels=48 * 64 - 1)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_refused():
    bomb = encode(Image.new("1", (12_000, 12_000)), "PNG")
    assert len(bomb) < 200_000
    with pytest.raises(BadImage, match="exceed"):
        validate_image(bomb)


def test_jpeg_that_claims_to_be_huge_is_refused():
    data = bytearray(encode(smooth_pixels(48, 64)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    with pytest.raises(BadImage, match="65000x65000 pixels exceed"):
        validate_image(bytes(data))


@pytest.mark.parametrize("denominator", [2, 4, 8])
def test_scaled_decode_rounds_sizes_up(denominator):
    scaled = decode_jpeg_scaled(encode(smooth_pixels(101, 203)), denominator)
    assert scaled is not None
    assert scaled.shape == (-(-101 // denominator), -(-203 // denominator), 3)
