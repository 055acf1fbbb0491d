"""Makes a set of image files and keeps their bytes: copies them or writes an index.

First the image files of folders, of class folders and of tar archives (also of archives
within these, as in ImageNet's) are listed. Then their bytes are copied into files of
records, several at a time; or only an index is written, and the images stay in place.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import ExifTags, Image
from tensorflow_datasets.core import dataset_info, naming
from tensorflow_datasets.core import splits as tfds_splits
from tensorflow_datasets.proto import tf_example_pb2

from invariance_jax.data import limits as checks
from invariance_jax.data import records
from invariance_jax.data.folders import visible_files
from invariance_jax.data.preparation import folder_for_new
from invariance_jax.data.sets import FORMAT, times_and_sizes, user_path
from invariance_jax.data.streams import FileRecords, Pictures, Store, cores

_SHARD_BYTES, _HEADER_BYTES = 2**28, 2**15
_HEADERS_AT_ONCE = 100  # of a thread, between updates of the progress bar
_TRANSPOSED = {5, 6, 7, 8}  # EXIF orientations that exchange height and width


class _Image(NamedTuple):
    """The bytes of an image in a file, its relative path, and its class if known."""

    file: str
    start: int
    size: int
    name: str
    class_name: str | None


def prepare_files(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    *,
    train: Sequence[str | os.PathLike[str]],
    test: Sequence[str | os.PathLike[str]] = (),
    classes: Sequence[str] | None = None,
    test_classes: Sequence[str] | None = None,
    index: bool = False,
) -> Path:
    """Makes a set of image files of any size and keeps their bytes.

    The class of an image in a folder is the first folder of its path. In an archive it
    is the first folder that not all images share, or the name of the archive within
    the archive. A call that was interrupted can be repeated; it continues.

    Without test images, a fixed random tenth of train becomes the test split. `classes`
    are the names of the classes to keep, None for all. `test_classes` has the class of
    each test image, in the order of the names of the images; it replaces class folders.
    With `index` the files stay in place and only an index is written.
    """
    root = folder_for_new(name, data_dir)
    if test_classes is not None and not test:
        raise ValueError("test_classes needs test, the images that it is about.")
    images = {"train": _list_images(train)}
    if test:
        images["test"] = _list_images(test)
        if test_classes is not None:
            images["test"] = _with_classes(images["test"], test_classes)
    if classes is not None:
        images = {split: _select(part, classes) for split, part in images.items()}
    if not test:
        images = _split_off_test(name, images["train"])
    class_names = _class_names(images)
    splits = {split: _records(part, class_names) for split, part in images.items()}
    temporary = root / name / "1.0.0.incomplete"
    try:
        shape = _common_size(name, splits)
        _check_plan(temporary, splits, index)
        _write(name, temporary, splits, class_names, shape, index)
        path = temporary.rename(temporary.with_name("1.0.0"))
        # Not before: without a plan, a later call would take these files for its own.
        (path / "plan.txt").unlink(missing_ok=True)
        return path
    except ValueError:
        raise
    except Exception as error:  # array_record and TFDS each raise their own errors
        raise OSError(
            f"{name} was not written to {temporary} ({checks.reason(error)}): check "
            "that the folder has room and is writable; the same command continues."
        ) from error


def _list_images(paths: Sequence[str | os.PathLike[str]]) -> list[_Image]:
    in_folders, in_archives = list[_Image](), list[_Image]()
    for path in (user_path("train or test", path) for path in paths):
        if path.is_dir():
            images = [*_list_folder(path)]
            in_folders += images
        elif path.is_file():
            images = _list_tar(path)
            in_archives += images
        else:
            raise ValueError(f"{path} does not exist; expected a folder or a tar file.")
        if not images:
            raise ValueError(f"{path} has no images.")
    images = in_folders + _with_folder_classes(in_archives)
    return sorted(images, key=lambda image: image.name)


def _list_folder(folder: Path) -> Iterator[_Image]:
    for path in visible_files(folder):
        name = path.relative_to(folder)
        class_name = name.parts[0] if len(name.parts) > 1 else None
        file, size = os.fspath(path.absolute()), path.stat().st_size
        yield _Image(file, 0, size, os.fspath(name), class_name)


def _list_tar(path: Path) -> list[_Image]:
    try:
        with path.open("rb") as file:
            absolute = os.fspath(path.absolute())
            return _list_archive(file, absolute, path.stat().st_size, None)
    except tarfile.TarError as error:
        raise ValueError(
            f"{path} is not an uncompressed tar file ({checks.reason(error)}); unpack "
            "or uncompress it first."
        ) from error


def _list_archive(
    file: BinaryIO, file_path: str, end: int, class_name: str | None
) -> list[_Image]:
    """Lists the images of an archive, and of those in it, from file.tell() to end."""
    images = list[_Image]()
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            path = Path(member.name)
            if any(part.startswith(".") and part != ".." for part in path.parts):
                continue  # hidden, as in `folders.visible_files`
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
                images.append(_Image(file_path, start, size, name, class_name))
        # tarfile takes a damaged header for the end. The true end is a block of zeros.
        file.seek(archive.offset)
        last_block = file.read(min(tarfile.BLOCKSIZE, end - archive.offset))
    if last_block != bytes(tarfile.BLOCKSIZE) or (class_name and not images):
        raise ValueError(
            f"{file_path}: the archive{f' of {class_name}' if class_name else ''} is "
            f"cut or damaged at byte {archive.offset}; get it again."
        )
    return images


def _with_folder_classes(images: list[_Image]) -> list[_Image]:
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


def _with_classes(images: list[_Image], classes: Sequence[str]) -> list[_Image]:
    if len(classes) != len(images):
        raise ValueError(
            f"test_classes has {len(classes)} names; expected one for each of the "
            f"{len(images)} test images, in the order of the names of the images."
        )
    pairs = zip(images, classes, strict=True)
    return [image._replace(class_name=class_name) for image, class_name in pairs]


def _select(images: list[_Image], classes: Sequence[str]) -> list[_Image]:
    if not classes:
        raise ValueError("classes has 0 names; expected one or more.")
    missing = sorted({*classes} - {image.class_name for image in images})
    if missing:
        raise ValueError(
            f"there is no image of {len(missing)} of the {len(classes)} classes, such "
            f"as {missing[0]!r}."
        )
    selected = {*classes}
    return [image for image in images if image.class_name in selected]


def _split_off_test(name: str, images: list[_Image]) -> dict[str, list[_Image]]:
    """Returns the training images and a fixed random tenth as test images."""
    if len(images) < 2:
        raise ValueError(f"{name} has {len(images)} images; expected 2 or more.")
    order = np.random.RandomState(0).permutation(len(images))
    test, train = np.split(order, [-(-len(images) // 10)])
    parts = {"train": np.sort(train), "test": np.sort(test)}
    return {split: [images[row] for row in rows] for split, rows in parts.items()}


def _records(images: list[_Image], class_names: list[str]) -> FileRecords:
    files = {image.file: None for image in images}
    file_indices = {file: index for index, file in enumerate(files)}
    places = [(file_indices[image.file], image.start, image.size) for image in images]
    times = [os.stat(file).st_mtime_ns for file in files]
    labels = None
    if class_names:
        label_of = {name: label for label, name in enumerate(class_names)}
        values = [label_of[image.class_name or ""] for image in images]
        labels = np.array(values, np.int32)
    return FileRecords(
        [*files], np.array(times, np.int64), np.array(places, np.int64), labels
    )


def _class_names(images: dict[str, list[_Image]]) -> list[str]:
    every = [image for part in images.values() for image in part]
    beside = [image for image in every if image.class_name is None]
    if beside and len(beside) < len(every):
        file, name = beside[0].file, beside[0].name
        raise ValueError(
            f"{file if file.endswith(name) else f'{file}: {name}'} is in no class "
            "folder, but other images are; expected all or none of them: move or hide "
            "it, or give test_classes, the classes of test images without folders."
        )
    train, test = ({i.class_name for i in images[split]} for split in ("train", "test"))
    if not test <= train:
        found = min(str(name) for name in test - train)
        text = f"classes of test must be among those of train; found {found!r}."
        raise ValueError(text)
    names = sorted(name for name in train if name is not None)
    return checks.class_names(names) if len(names) > 1 else []


def _check_plan(folder: Path, splits: dict[str, FileRecords], index: bool) -> None:
    """Writes a hash of the files to copy; refuses a folder with another.

    An index needs none: it is written at once.
    """
    digest = hashlib.sha256(json.dumps([index, _SHARD_BYTES]).encode())
    for part in splits.values():
        digest.update("\0".join(part.files).encode("utf-8", "surrogateescape"))
        for array in (part.times, part.places, part.labels):
            digest.update(b"" if array is None else array.tobytes())
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "plan.txt"
    if plan.exists() and plan.read_text() != digest.hexdigest():
        raise ValueError(
            f"{folder} was begun from other files; remove it, or give the same files."
        )
    if not index:
        temporary = plan.with_name("plan.tmp")
        temporary.write_text(digest.hexdigest())
        temporary.replace(plan)


def _write(
    name: str,
    folder: Path,
    splits: dict[str, FileRecords],
    class_names: list[str],
    shape: tuple[int | None, int | None],
    index: bool,
) -> None:
    lengths = {}
    for split, part in splits.items():
        arrays = {} if part.labels is None else {"labels": part.labels}
        if index:
            lengths[split] = [len(part)]
            text = "\0".join(part.files).encode("utf-8", "surrogateescape")
            arrays |= {"files": np.frombuffer(text, np.uint8)}
            arrays |= {"times": part.times, "places": part.places}
        else:
            stem = folder / f"{name}-{split}.{FORMAT}"
            lengths[split] = _copy_all(part, stem, f"Copying {name} {split}")
            written = sorted(folder.glob(f"{stem.name}-*-of-*[0-9]"))
            arrays |= {"shards": times_and_sizes(written)}
        np.savez(folder / f"{split}.npz", **arrays)  # type: ignore[arg-type]
    _write_metadata(name, folder, splits, lengths, class_names, shape)


def _copy_all(part: FileRecords, stem: Path, title: str) -> list[int]:
    """Copies images into files whose names begin with a stem; returns their lengths."""
    shards = _shards(part)

    def copy(number: int) -> int:
        suffix = f"-{number:05d}-of-{len(shards):05d}"
        _copy(part, shards[number], stem.with_name(stem.name + suffix))
        return len(shards[number])

    with ThreadPoolExecutor(cores()) as pool:
        counts = pool.map(copy, range(len(shards)))
        records.progress(counts, len(part), title)
    return [*map(len, shards)]


def _shards(part: FileRecords) -> list[range]:
    """Returns the rows of the images in each file of records; they are consecutive."""
    ends = np.cumsum(part.places[:, 2])
    count = int(-(-ends[-1] // _SHARD_BYTES))
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, count) / count)
    edges = sorted({0, *cuts.tolist(), len(part)})
    return [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def _copy(part: FileRecords, rows: range, path: Path) -> None:
    """Copies some images into a file, unless it exists."""
    if path.exists():
        return
    temporary = path.with_name(f"{path.name}.tmp")
    writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    try:
        for row in rows:
            example = tf_example_pb2.Example()
            feature = example.features.feature
            feature["image"].bytes_list.value.append(part.read(row))
            if part.labels is not None:
                feature["label"].int64_list.value.append(int(part.labels[row]))
            writer.write(example.SerializeToString())
    finally:
        writer.close()
    temporary.replace(path)


def _common_size(
    name: str, splits: dict[str, FileRecords]
) -> tuple[int | None, int | None]:
    """Returns the height and width of all images, None if they differ.

    Reads each header, so that a file that is no image is named before any is copied.
    """
    sizes = set[tuple[int, int]]()
    for split, part in splits.items():

        def check(rows: np.ndarray, part: FileRecords = part) -> int:
            sizes.update(_size_from_header(part, row) for row in rows)
            return len(rows)

        with ThreadPoolExecutor(cores()) as pool:
            jobs = np.array_split(
                np.arange(len(part)), -(-len(part) // _HEADERS_AT_ONCE)
            )
            counts = pool.map(check, jobs)
            records.progress(counts, len(part), f"Checking {name} {split}")
    return sizes.pop() if len(sizes) == 1 else (None, None)


def _size_from_header(part: FileRecords, row: int) -> tuple[int, int]:
    """Returns the size of an image; reads only the first bytes if they are enough."""
    try:
        return _size(part, row, part.read(row, _HEADER_BYTES))
    except ValueError:
        return _size(part, row, part.read(row))


def _size(part: FileRecords, row: int, content: bytes) -> tuple[int, int]:
    """Returns the height and width of an upright image from its header."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            transposed = image.getexif().get(ExifTags.Base.Orientation) in _TRANSPOSED
    except Exception as error:  # each format of Pillow raises its own errors
        raise ValueError(
            f"{part.where(row)} is not an image that can be read "
            f"({checks.reason(error)}); repair or remove it."
        ) from error
    return (width, height) if transposed else (height, width)


def _write_metadata(
    name: str,
    folder: Path,
    splits: dict[str, FileRecords],
    lengths: dict[str, list[int]],
    class_names: list[str],
    shape: tuple[int | None, int | None],
) -> None:
    """Writes the features, moments and splits of a set in TFDS's format."""
    train, side = splits["train"], records.SAMPLED_SIDE
    max_corrupt = min(len(train), records.SAMPLED) // 2
    store = Store(train, 3, (side, side), max_corrupt, cores(), squashed=True)
    moments = records.sampled_moments(Pictures(store, np.arange(len(train))))
    info = tfds.core.DatasetInfo(
        builder=dataset_info.DatasetIdentity(
            name=name,
            version=tfds.core.Version("1.0.0"),
            data_dir=os.fspath(folder),
            module_name="",
        ),
        description="Prepared from files.",
        **records.about((*shape, 3), class_names, moments),
    )
    info.set_file_format(FORMAT)
    template = naming.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, filetype_suffix=FORMAT
    )
    split_infos = [
        tfds_splits.SplitInfo(
            name=split,
            shard_lengths=lengths[split],
            num_bytes=int(part.places[:, 2].sum()),
            filename_template=template,
        )
        for split, part in splits.items()
    ]
    info.set_splits(tfds_splits.SplitDict(split_infos))
    info.write_to_directory(folder)
