"""Lists the image files of folders and of tar archives, and their classes.

The class of an image in a folder is the first folder of its path. In an archive it is
the first folder that not all images share, or the name of the archive within the
archive. What is hidden is left out.
"""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from invariance_jax.data import decoding, limits
from invariance_jax.data.sets import user_path


class ImageFile(NamedTuple):
    """The bytes of an image in a file, its relative path, and its class if known."""

    file: str
    start: int
    size: int
    name: str
    class_name: str | None


def list_images(paths: Sequence[str | os.PathLike[str]]) -> list[ImageFile]:
    """Returns the images of folders and archives, sorted by name."""
    in_folders, in_archives = list[ImageFile](), list[ImageFile]()
    for path in (user_path("train or test", path) for path in paths):
        if path.is_file():
            in_archives += _list_tar(path)
        elif path.is_dir():
            in_folders += list_folder(path, may_be_empty=True)
        else:
            raise ValueError(f"{path} does not exist; expected a folder or a tar file.")
    images = in_folders + _with_folder_classes(in_archives)
    places = Counter((image.file, image.start) for image in images)
    if twice := [file for (file, _), count in places.items() if count > 1]:
        raise ValueError(f"{twice[0]} is given twice; expected each image once.")
    return sorted(images, key=lambda image: image.name)


def list_folder(folder: Path, *, may_be_empty: bool) -> list[ImageFile]:
    """Returns the images of a folder, in the order of their paths.

    A folder in it without images is left out or refused.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected a folder of images.")
    images = list[ImageFile]()
    for entry in _visible_entries(folder):
        files, class_name = [Path(entry)], None
        if entry.is_dir():
            files, class_name = [*_visible_files(Path(entry))], entry.name
        if not files and not may_be_empty:
            raise ValueError(f"{entry.path} has no images; add some or remove it.")
        for path in files:
            file, name = os.fspath(path.absolute()), os.fspath(path.relative_to(folder))
            with decoding.naming(os.fspath(path)):  # a link may lead nowhere
                size = path.stat().st_size
            images.append(ImageFile(file, 0, size, name, class_name))
    if not images:
        raise ValueError(f"{folder} has no images.")
    return images


def _visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        visible = (entry for entry in entries if not entry.name.startswith("."))
        return sorted(visible, key=lambda entry: entry.name)


def _visible_files(folder: Path) -> Iterator[Path]:
    for entry in _visible_entries(folder):
        if entry.is_dir():
            yield from _visible_files(Path(entry))
        else:
            yield Path(entry)


def _list_tar(path: Path) -> list[ImageFile]:
    try:
        with path.open("rb") as file:
            absolute = os.fspath(path.absolute())
            images = _list_archive(file, absolute, path.stat().st_size, None)
    except tarfile.TarError as error:
        raise ValueError(
            f"{path} is not an uncompressed tar file ({limits.reason(error)}); unpack "
            "or uncompress it first."
        ) from error
    if not images:
        raise ValueError(f"{path} has no images.")
    return images


def _list_archive(
    file: BinaryIO, file_path: str, end: int, class_name: str | None
) -> list[ImageFile]:
    """Lists the images of an archive, and of those in it, from file.tell() to end."""
    images = list[ImageFile]()
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            path = Path(member.name)
            if any(part.startswith(".") and part != ".." for part in path.parts):
                continue  # hidden, as in `_visible_files`
            if member.islnk() or member.issym():
                raise ValueError(f"{file_path}: {path} is a link; expected files only.")
            if not member.isfile():
                continue
            start, size = member.offset_data, member.size
            if path.suffix == ".tar":
                position = file.tell()
                file.seek(start)
                images += _list_archive(file, file_path, start + size, path.stem)
                file.seek(position)
            else:
                name = os.path.join(class_name or "", path)
                images.append(ImageFile(file_path, start, size, name, class_name))
        # tarfile takes a damaged header for the end. The true end is a block of zeros.
        file.seek(archive.offset)
        last_block = file.read(min(tarfile.BLOCKSIZE, end - archive.offset))
    if last_block != bytes(tarfile.BLOCKSIZE) or (class_name and not images):
        raise ValueError(
            f"{file_path}: the archive{f' of {class_name}' if class_name else ''} is "
            f"cut or damaged at byte {archive.offset}; get it again."
        )
    return images


def _with_folder_classes(images: list[ImageFile]) -> list[ImageFile]:
    """Returns images of archives; the class is the first folder that not all share."""
    folders = [Path(image.name).parent.parts for image in images]
    # Images of an archive within an archive have their class already.
    outer = [f for f, i in zip(folders, images, strict=True) if i.class_name is None]
    shared = len(os.path.commonprefix(outer))
    if len({*outer}) == 1:  # all in one folder, which is the class, or in none
        shared = max(shared - 1, 0)
    return [
        image._replace(class_name=image.class_name or next(iter(parts[shared:]), None))
        for parts, image in zip(folders, images, strict=True)
    ]


def class_names(splits: Mapping[str, Sequence[ImageFile]]) -> list[str]:
    """Returns the sorted class names of the splits "train" and "test"; [] without."""
    if not splits["train"]:
        raise ValueError("there is one image; expected 2 or more: one is for the test.")
    every = [image for images in splits.values() for image in images]
    beside = [image for image in every if image.class_name is None]
    if beside and len(beside) < len(every):
        file, name = beside[0].file, beside[0].name
        place = file if file.endswith(name) else f"{file}: {name}"
        others = f" and {len(beside) - 1} more" if len(beside) > 1 else ""
        raise ValueError(
            f"{place} is in no class folder, but other images are; expected all or "
            f"none of them: move or hide it{others}, or give test_classes, the classes "
            "of test images without folders."
        )
    train, test = ({i.class_name for i in splits[split]} for split in ("train", "test"))
    if not test <= train:
        raise ValueError(
            "classes of test must be among those of train; found "
            f"{limits.some(sorted(map(repr, test - train)))}: add images to train (a "
            "random tenth of it is the test split if there is no other)."
        )
    names = sorted(name for name in train if name is not None)
    return limits.class_names(names) if len(names) > 1 else []


def labels_of(images: Sequence[ImageFile], names: Sequence[str]) -> np.ndarray | None:
    """Returns the labels int32 of images, or None without class names."""
    label_of = dict[str | None, int](zip(names, range(len(names)), strict=True))
    values = [label_of[image.class_name] for image in images] if names else None
    return None if values is None else np.array(values, np.int32)
