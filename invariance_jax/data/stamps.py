"""The set "stamps": images of many sizes, drawn on the spot from Debian's packages.

Each image is a picture of `tuxpaint-stamps-default`, scaled, on a crop of one of the
wallpapers of `mate-backgrounds`, a known nuisance; its class is the category.
Every fifth picture of a category, and every fifth wallpaper, is for the test split
only. The pictures keep their licences: nothing of them is in this package.
"""

import hashlib
import os
from collections.abc import Iterator
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


def prepare_stamps(
    data_dir: str | os.PathLike[str] | None,
    *,
    source: str | os.PathLike[str] | None = None,
    name: str = "stamps",
    count: int = 20_000,
    seed: int = 0,
) -> Path:
    """Draws the set, JPEG files of 200 to 600 pixels a side, and prepares it.

    Args:
      data_dir: see `prepare_arrays`.
      source: folder with `tuxpaint/stamps` and `backgrounds`; None: /usr/share.
      name: name of the set.
      count: images, of which a fifth is the test split.
      seed: seed of all that is random.

    Returns:
      The folder of the prepared set.

    Raises:
      ValueError: if the packages are not installed, or the name is taken.
      OSError: if the set cannot be written.
    """
    root = folder_for_new(name, data_dir)
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
    drawn_from = repr((seed, count, stamps, walls)).encode()
    digest = hashlib.sha256(drawn_from).hexdigest()[:8]
    folder = root / "downloads" / f"{name}-{digest}"
    papers = {s: list(map(_shrunk, _of(walls, s))) for s in ("train", "test")}
    for split, part in (("train", count - count // 5), ("test", count // 5)):
        jobs = _jobs(categories, split, folder, part)

        def draw(job: tuple[int, Path, Path], split: str = split) -> int:
            number, stamp, file = job
            if file.exists():  # of a start that was stopped
                return 1
            random = np.random.default_rng([seed, split == "test", number])
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(".tmp")
            _draw(random, stamp, papers[split]).save(temporary, "JPEG", quality=85)
            temporary.rename(file)
            return 1

        with ThreadPoolExecutor(cores()) as pool:
            records.progress(pool.map(draw, jobs), part, f"Drawing {name} {split}")
    return prepare_files(
        name, data_dir, train=[folder / "train"], test=[folder / "test"]
    )


def _of(paths: list[Path], split: str) -> list[Path]:
    return [p for n, p in enumerate(paths) if (n % 5 == 4) == (split == "test")]


def _jobs(
    categories: dict[str, list[Path]], split: str, folder: Path, count: int
) -> Iterator[tuple[int, Path, Path]]:
    """Yields number, stamp and file of each image; the classes are of one size."""
    names = list(categories)
    for number in range(count):
        name = names[number % len(names)]
        pictures = _of(categories[name], split)
        stamp = pictures[number // len(names) % len(pictures)]
        yield number, stamp, folder / split / name / f"{number:06d}.jpg"


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
