"""Image files of any format, mode and orientation become the same bits everywhere."""

import io

import numpy as np
import pytest
from archives import image_file
from PIL import Image

from invariance_jax.data import decoding

LONG_COMMENT = b"\xff\xfe\x20\x02" + bytes(0x2000)


@pytest.mark.parametrize("size", [None, 5, 20, 100])
@pytest.mark.parametrize("shape", [(1, 1), (333, 501), (800, 17), (410, 400)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_both_decoders_give_the_same_bits(shape, size, mode, monkeypatch):
    pytest.importorskip("simplejpeg")
    file = image_file(shape, mode, quality=80, progressive=size == 20)
    fast, found = decoding.decode(file, channels=3, size=size)
    monkeypatch.setattr(decoding, "simplejpeg", None)
    slow, expected = decoding.decode(file, channels=3, size=size)
    assert found == expected == shape
    np.testing.assert_array_equal(fast, slow)


@pytest.mark.parametrize(
    ("mode", "form"),
    [("CMYK", "JPEG"), ("P", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("I;16", "PNG")],
)
def test_other_modes_become_colours_or_grey(mode, form):
    shown = 255 if mode == "1" else 200
    value = shown * 257 if mode == "I;16" else shown
    picture = Image.new("L" if mode != "I;16" else mode, (6, 4), value)
    picture = picture if mode == "I;16" else picture.convert(mode)
    file = io.BytesIO()
    picture.save(file, form)
    for channels in (1, 3):
        pixels, shape = decoding.decode(file.getvalue(), channels=channels, size=3)
        assert (pixels.shape, shape) == ((3, 3, channels), (4, 6))
        np.testing.assert_allclose(pixels, shown, atol=2)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright_and_the_header_gives_their_size(
    orientation, form
):
    quarters = np.array([[250, 170], [90, 10]], np.uint8)
    upright = np.kron(quarters, np.ones((8, 16), np.uint8))
    # What a camera stores so that the orientation makes it upright again.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(file, form, exif=exif, quality=100)
    pixels, shape = decoding.decode(file.getvalue(), channels=1, size=None)
    np.testing.assert_allclose(pixels[..., 0].astype(int), upright, atol=9)
    assert shape == decoding.size(file.getvalue(), "here") == upright.shape


def test_orientation_turns_and_transparency_is_white():
    exif = Image.Exif()
    exif[0x0112] = 6
    late = image_file((8, 4), exif=exif).replace(
        b"\xff\xe1", LONG_COMMENT + b"\xff\xe1", 1
    )
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    for file in (image_file((8, 4), exif=exif), late, image_file((8, 4), xmp=xmp)):
        assert decoding.decode(file, channels=3, size=2)[1] == (4, 8)
    clear = io.BytesIO()
    Image.new("RGBA", (2, 2), (9, 9, 9, 0)).save(clear, "PNG")
    pixels, _ = decoding.decode(clear.getvalue(), channels=3, size=None)
    assert (pixels == 255).all()
