"""The set "stamps": images of many sizes, drawn from files of two Debian packages.

Each image shows a stamp, a picture of `tuxpaint-stamps-default`, on a crop of a
wallpaper of `mate-backgrounds`. The class is the category of the stamp; its scale and
place and the wallpaper are a known nuisance. Every fifth stamp of a category and every
fifth wallpaper appear only in the test split. None of these files is part of this
package: they keep their own licences.
"""

import hashlib
import itertools
import os
from pathlib import Path

import numpy as np
from PIL import Image

from invariance_jax.data import records
from invariance_jax.data.originals import prepare_files
from invariance_jax.data.preparation import folder_for_new
from invariance_jax.data.sets import user_path

_PACKAGES = "apt-get install tuxpaint-stamps-default mate-backgrounds"
_MIN_STAMPS = 12  # in a category; smaller categories are left out
_SIDES = (200, 600)  # smallest and largest side of an image, in pixels
_COUNTS = {"train": 16_000, "test": 4_000}


def prepare_stamps(
    data_dir: str | os.PathLike[str] | None, source: str | os.PathLike[str] | None
) -> Path:
    """Draws the images, JPEG files of 200 to 600 pixels a side; prepares the set.

    The source, /usr/share if None, has `tuxpaint/stamps` and `backgrounds/mate`.
    """
    downloads = folder_for_new("stamps", data_dir) / "downloads"
    share = user_path("source", source or "/usr/share")
    root = share / "tuxpaint" / "stamps"
    stamps = sorted(root.rglob("*.png"))
    walls = [
        path
        for path in sorted((share / "backgrounds" / "mate").rglob("*"))
        if path.suffix in (".jpg", ".png") and not path.is_symlink()
    ]
    grouped = itertools.groupby(stamps, lambda path: path.relative_to(root).parts[0])
    found = {category: [*paths] for category, paths in grouped}
    categories = {k: v for k, v in found.items() if len(v) >= _MIN_STAMPS}
    if len(categories) < 2 or len(walls) < 5:
        raise ValueError(
            f"{share} has {len(stamps)} stamps and {len(walls)} wallpapers; expected "
            f"those of Debian: {_PACKAGES}."
        )
    digest = hashlib.sha256(repr((stamps, walls)).encode()).hexdigest()[:8]
    folder = downloads / f"stamps-{digest}"
    for split in _COUNTS:
        _draw_split(folder / split, split, categories, _of_split(walls, split))
    return prepare_files(
        "stamps", data_dir, train=[folder / "train"], test=[folder / "test"]
    )


def _draw_split(
    folder: Path, split: str, categories: dict[str, list[Path]], walls: list[Path]
) -> None:
    """Draws the missing images of a split, equally many of each category."""
    wallpapers, names = [*map(_read_wallpaper, walls)], [*categories]

    def draw(number: int) -> None:
        name = names[number % len(names)]
        file = folder / name / f"{number:06d}.jpg"
        if file.exists():  # from an interrupted call
            return
        stamps = _of_split(categories[name], split)
        stamp = stamps[number // len(names) % len(stamps)]
        random = np.random.default_rng([0, split == "test", number])
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        _draw(random, stamp, wallpapers).save(temporary, "JPEG", quality=85)
        temporary.rename(file)

    records.for_each(draw, _COUNTS[split], f"Drawing stamps {split}")


def _of_split(paths: list[Path], split: str) -> list[Path]:
    """Returns every fifth path for the test split, the others for training."""
    return [p for n, p in enumerate(paths) if (n % 5 == 4) == (split == "test")]


def _read_wallpaper(path: Path) -> Image.Image:
    with Image.open(path) as file:
        image = file.convert("RGB")
    image.thumbnail((1600, 1600))
    return image


def _draw(
    random: np.random.Generator, stamp: Path, wallpapers: list[Image.Image]
) -> Image.Image:
    width, height = random.integers(*_SIDES, 2, endpoint=True).tolist()
    wall = wallpapers[int(random.integers(len(wallpapers)))]
    scale = max(width / wall.width, height / wall.height) * random.uniform(1.0, 2.0)
    size = (width / scale, height / scale)
    left, top = random.uniform(0, np.array(wall.size) - size + 1e-6).clip(0)
    box = (left, top, min(left + size[0], wall.width), min(top + size[1], wall.height))
    image = wall.resize((width, height), Image.Resampling.BILINEAR, box=box)
    with Image.open(stamp) as file:
        picture = file.convert("RGBA")
    largest = min(width / picture.width, height / picture.height)
    stamp_scale = random.uniform(0.4, 0.9) * largest
    sides = [max(1, round(side * stamp_scale)) for side in picture.size]
    picture = picture.resize((sides[0], sides[1]), Image.Resampling.BILINEAR)
    corner = random.integers(0, np.array(image.size) - sides, endpoint=True).tolist()
    image.paste(picture, (corner[0], corner[1]), picture)
    return image
