"""An image file as pixels: any format, mode and size, the same bits on every machine.

JPEG is decoded by simplejpeg where it is installed, which is faster, and otherwise by
Pillow; both by libjpeg-turbo, to the same pixels. What simplejpeg does not take as it
is (CMYK, an orientation, a damaged file) goes to Pillow, which decides.
"""

import contextlib
import importlib
import io
import types
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

simplejpeg: types.ModuleType | None = None
with contextlib.suppress(ImportError):
    simplejpeg = importlib.import_module("simplejpeg")

GREY_MODES = {"1", "L", "LA"}
"""Those of Pillow without colour."""

_FACTORS = (8, 4, 2)
"""By which both decoders reduce a JPEG while they decode it."""

_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What an EXIF orientation asks for."""


def decode(
    content: bytes, *, channels: int, size: int | None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the pixels of an image file, upright, and its height and width.

    Pixels are uint8 `[H, W, channels]`, of 1 or 3 channels; what is transparent shows
    white, 16 bits are cut to 8. With a size S the whole image is squashed into `[S, S,
    channels]`, with antialiasing (a JPEG is first reduced by 2, 4 or 8 while it stays
    larger). A file that cannot be decoded raises whatever Pillow or NumPy does.
    """
    image = _fast(content, size) if channels == 3 else None
    if image is None:
        image = _upright(io.BytesIO(content), "L" if channels == 1 else "RGB", size)
    pixels, shape = image
    if size is not None and pixels.size != (size, size):
        pixels = pixels.resize((size, size), Image.Resampling.BILINEAR)
    array = np.asarray(pixels)
    return array.reshape(*array.shape[:2], channels), shape


def _fast(
    content: bytes, size: int | None
) -> tuple[Image.Image, tuple[int, int]] | None:
    """Returns a plain colour or grey JPEG, decoded by simplejpeg; None of others."""
    if simplejpeg is None or content[:2] != b"\xff\xd8":
        return None
    if b"Exif\0" in content or b"tiff:Orientation" in content:  # wherever it stands
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
        if colorspace not in ("YCbCr", "RGB", "Gray"):
            return None
        factor = _factor((height, width), size)
        pixels = simplejpeg.decode_jpeg(
            content,
            "RGB",
            min_height=-(-height // factor),
            min_width=-(-width // factor),
            min_factor=factor,
        )
    except ValueError:
        return None
    return Image.fromarray(pixels), (height, width)


def _factor(shape: tuple[int, int], size: int | None) -> int:
    """Returns by how much a JPEG may be reduced without losing what is needed."""
    if size is None:
        return 1
    return next((f for f in _FACTORS if min(shape) // f >= size), 1)


def _upright(
    file: BinaryIO, mode: str, size: int | None
) -> tuple[Image.Image, tuple[int, int]]:
    """Returns the image that Pillow reads, in a mode, and its size."""
    with Image.open(file) as image:
        shape = image.height, image.width
        if image.format == "JPEG" and image.mode != "CMYK":
            factor = _factor(shape, size)
            image.draft(None, (image.width // factor, image.height // factor))
        turned = turn(image, _eight_bits(image).convert(mode))
    return turned, shape if turned.size[0] == image.width else shape[::-1]


def _eight_bits(image: Image.Image) -> Image.Image:
    """Returns an image whose modes Pillow converts without loss of meaning."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode[0] in "IF":
        raise ValueError(f"its mode {image.mode} has more than 8 bits")
    if not image.has_transparency_data:
        return image
    pixels = image.convert("RGBA")
    white = Image.new("RGBA", pixels.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, pixels)


def turn(file: Image.Image, image: Image.Image) -> Image.Image:
    """Returns an image as the EXIF orientation of its file wants it."""
    # What else stands in the EXIF may be damaged.
    with contextlib.suppress(Exception):
        orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
        return image.transpose(_TURNS[orientation])
    return image
