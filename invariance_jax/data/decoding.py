"""Decoding of image files of any format, mode and size, the same bits on every machine.

A JPEG file is decoded by simplejpeg if it is installed, which is faster, and otherwise
by Pillow. Both use libjpeg-turbo and give the same pixels. Pillow also decodes the JPEG
files that simplejpeg does not handle: CMYK, with an orientation, damaged.
"""

import contextlib
import importlib
import io
import types
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from invariance_jax.data import limits

simplejpeg: types.ModuleType | None = None
with contextlib.suppress(ImportError):
    simplejpeg = importlib.import_module("simplejpeg")

GREY_MODES = {"1", "L", "LA"}
"""Pillow's modes without colour."""


def decode(
    content: bytes, *, channels: int, size: int | None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the pixels of an image file, upright, and its height and width.

    Pixels are uint8 `[H, W, channels]`, with 1 or 3 channels. Transparent pixels are
    put on white, 16 bits are cut to 8. If size is S, the whole image is squashed to
    `[S, S, channels]` with antialiasing, and a JPEG is first reduced by 2, 4 or 8 if
    both sides stay at least S. The height and width are those before squashing. Raises
    ValueError for Pillow's modes I and F, and otherwise the error of Pillow or NumPy.
    """
    decoded = _decode_with_simplejpeg(content, size) if channels == 3 else None
    if decoded is None:
        mode = "L" if channels == 1 else "RGB"
        decoded = _decode_with_pillow(content, mode, size)
    image, shape = decoded
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], channels), shape


def _decode_with_simplejpeg(
    content: bytes, size: int | None
) -> tuple[Image.Image, tuple[int, int]] | None:
    """Returns a JPEG image and its height and width; None if Pillow must decode it."""
    if simplejpeg is None or content[:2] != b"\xff\xd8":
        return None
    if b"Exif\0" in content or b"tiff:Orientation" in content:  # anywhere in the file
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
    """Returns the largest factor that keeps both sides of a JPEG at least size."""
    if size is None:
        return 1
    factors = (8, 4, 2)  # that both decoders have
    return next((f for f in factors if min(shape) // f >= size), 1)


def _decode_with_pillow(
    content: bytes, mode: str, size: int | None
) -> tuple[Image.Image, tuple[int, int]]:
    """Returns an upright image in the given mode, and its height and width."""
    with Image.open(io.BytesIO(content)) as image:
        shape = image.height, image.width
        if image.format == "JPEG" and image.mode != "CMYK":
            factor = _factor(shape, size)
            image.draft(None, (image.width // factor, image.height // factor))
        exchanged = turn(image)
        upright = _eight_bits(image).convert(mode)
    return upright, shape[::-1] if exchanged else shape


def _eight_bits(image: Image.Image) -> Image.Image:
    """Returns an image with 8 bits a channel and its transparent pixels on white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    _check_mode(image)
    if not image.has_transparency_data:
        return image
    foreground = image.convert("RGBA")
    white = Image.new("RGBA", foreground.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, foreground)


def size(content: bytes, place: str) -> tuple[int, int]:
    """Returns the height and width of an upright image, from the header of its file.

    Raises ValueError with its place if `decode` cannot read such a file.
    """
    with naming(place), Image.open(io.BytesIO(content)) as image:
        _check_mode(image)
        return image.size if _exchanged(image) else image.size[::-1]


@contextlib.contextmanager
def naming(place: str) -> Iterator[None]:
    """Turns each error about an image file into a ValueError that names the file."""
    try:
        yield
    except Exception as error:  # each format of Pillow raises its own errors
        reason = limits.reason(error)
        if isinstance(error, UnidentifiedImageError):
            reason = "its format is unknown"  # Pillow prints an object
        raise ValueError(
            f"{place} is not an image that can be read ({reason}); repair or remove it."
        ) from error


def _check_mode(image: Image.Image) -> None:
    if image.mode in ("I", "F"):
        raise ValueError(f"its mode {image.mode} has more than 16 bits")


def turn(image: Image.Image) -> bool:
    """Turns the image of a file upright; returns whether its sides were exchanged."""
    image.load()
    exchanged = False
    # Damaged EXIF data may raise errors, some of them after the pixels were turned.
    with contextlib.suppress(Exception):
        exchanged = _exchanged(image)
        ImageOps.exif_transpose(image, in_place=True)
    return exchanged


def _exchanged(image: Image.Image) -> bool:
    """Returns whether the orientation of a file exchanges its height and width."""
    # Those of a TIFF file have been exchanged already.
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    return image.format != "TIFF" and orientation in {5, 6, 7, 8}
