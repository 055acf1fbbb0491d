"""The set "stamps": images of many sizes, drawn on the spot from Debian's packages.

Each image is a picture of `tuxpaint-stamps-default`, scaled, on a crop of one of the
wallpapers of `mate-backgrounds`, a known nuisance; its class is the category.
Every fifth picture of a category, and every fifth wallpaper, is for the test split
only. The pictures keep their licences: nothing of them is in this package.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from invariance_jax.data import records
from invariance_jax.data.originals import prepare_files
from invariance_jax.data.preparation import folder_for_new
from invariance_jax.data.sets import user_path
from invariance_jax.data.streams import cores

_PACKAGES = "apt-get install tuxpaint-stamps-default mate-backgrounds"
_FEWEST = 12  # pictures of a category
_SIDES = (200, 600)
_COUNTS = {"train": 16_000, "test": 4_000}


def prepare_stamps(
    data_dir: str | os.PathLike[str] | None, source: str | os.PathLike[str] | None
) -> Path:
    """Draws the set, JPEG files of 200 to 600 pixels a side, and prepares it.

    The source has the folders `tuxpaint/stamps` and `backgrounds`; None: /usr/share.
    """
    root = folder_for_new("stamps", data_dir)
    share = user_path("source", source or "/usr/share")
    stamps = sorted((share / "tuxpaint" / "stamps").rglob("*.png"))
    walls = [
        path
        for path in sorted((share / "backgrounds").rglob("*"))
        if path.suffix in (".jpg", ".png") and not path.is_symlink()
    ]
    categories: dict[str, list[Path]] = {}
    for path in stamps:
        category = path.relative_to(share / "tuxpaint" / "stamps").parts[0]
        categories.setdefault(category, []).append(path)
    categories = {k: v for k, v in categories.items() if len(v) >= _FEWEST}
    if len(categories) < 2 or len(walls) < 5:
        raise ValueError(
            f"{share} has {len(stamps)} stamps and {len(walls)} wallpapers; expected "
            f"those of Debian: {_PACKAGES}."
        )
    digest = hashlib.sha256(repr((stamps, walls)).encode()).hexdigest()[:8]
    folder = root / "downloads" / f"stamps-{digest}"
    for split in _COUNTS:
        _draw_split(folder / split, split, categories, _of(walls, split))
    return prepare_files(
        "stamps", data_dir, train=[folder / "train"], test=[folder / "test"]
    )


def _draw_split(
    folder: Path, split: str, categories: dict[str, list[Path]], walls: list[Path]
) -> None:
    """Draws as many images of each category, those that are not there yet."""
    papers, names = [*map(_shrunk, walls)], [*categories]

    def draw(number: int) -> int:
        name = names[number % len(names)]
        file = folder / name / f"{number:06d}.jpg"
        if file.exists():  # of a start that was stopped
            return 1
        stamps = _of(categories[name], split)
        stamp = stamps[number // len(names) % len(stamps)]
        random = np.random.default_rng([0, split == "test", number])
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        _draw(random, stamp, papers).save(temporary, "JPEG", quality=85)
        temporary.rename(file)
        return 1

    with ThreadPoolExecutor(cores()) as pool:
        counts = pool.map(draw, range(_COUNTS[split]))
        records.progress(counts, _COUNTS[split], f"Drawing stamps {split}")


def _of(paths: list[Path], split: str) -> list[Path]:
    """Returns every fifth path for the test split, the others for training."""
    return [p for n, p in enumerate(paths) if (n % 5 == 4) == (split == "test")]


def _shrunk(path: Path) -> Image.Image:
    with Image.open(path) as file:
        image = file.convert("RGB")
    image.thumbnail((1600, 1600))
    return image


def _draw(
    random: np.random.Generator, stamp: Path, paper: list[Image.Image]
) -> Image.Image:
    """Returns a stamp on a crop of a wallpaper."""
    width, height = random.integers(*_SIDES, 2, endpoint=True).tolist()
    wall = paper[int(random.integers(len(paper)))]
    scale = max(width / wall.width, height / wall.height) * random.uniform(1.0, 2.0)
    size = (width / scale, height / scale)
    left, top = random.uniform(0, np.array(wall.size) - size + 1e-6).clip(0)
    box = (left, top, min(left + size[0], wall.width), min(top + size[1], wall.height))
    image = wall.resize((width, height), Image.Resampling.BILINEAR, box=box)
    with Image.open(stamp) as file:
        picture = file.convert("RGBA")
    share = random.uniform(0.4, 0.9) * min(
        width / picture.width, height / picture.height
    )
    sides = [max(1, round(side * share)) for side in picture.size]
    picture = picture.resize((sides[0], sides[1]), Image.Resampling.BILINEAR)
    place = random.integers(0, np.array(image.size) - sides, endpoint=True).tolist()
    image.paste(picture, (place[0], place[1]), picture)
    return image
