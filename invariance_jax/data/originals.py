"""Image files as a set, their bytes unchanged: copied into records, or where they lie.

The files of a folder, of class folders, or of tar archives (also of archives within
them, as ImageNet has them) are listed; then their bytes are copied into files of
records, several at a time, or an index of them is written and nothing is copied.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import ExifTags, Image
from tensorflow_datasets.core import dataset_info, naming, splits
from tensorflow_datasets.proto import tf_example_pb2

from invariance_jax.data import limits as checks
from invariance_jax.data import records
from invariance_jax.data.folders import visible_files
from invariance_jax.data.preparation import folder_for_new
from invariance_jax.data.sets import FORMAT, user_path
from invariance_jax.data.streams import FileRecords, Pictures, Store, cores

_SHARD_BYTES, _HEADER_BYTES = 2**28, 2**15
_TURNED = {5, 6, 7, 8}


class _Image(NamedTuple):
    """A file or a part of one, what it is named, and its class."""

    file: str
    start: int
    size: int
    name: str
    of: str | None


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
    """Makes a set of image files of any size, their bytes unchanged.

    A class is the first folder that an image lies in, in archives the first that not
    all of their images share, or the archive within an archive. What a start that was
    stopped has copied is not copied again.

    Without test images a fixed random tenth of train is put aside. Classes are those
    that are kept, None for all; test_classes are those of the test images in the order
    of the names of their files, where no folder tells. With index the files stay where
    they are, and only an index is written.
    """
    root = folder_for_new(name, data_dir)
    listed = {"train": _list(train)}
    if test:
        listed["test"] = _list(test)
        if test_classes is not None:
            listed["test"] = _named(listed["test"], test_classes)
    if classes is not None:
        listed = {split: _only(part, classes) for split, part in listed.items()}
    if not test:
        listed = _put_aside(name, listed["train"])
    class_names = _class_names(listed)
    found = {split: _records(part, class_names) for split, part in listed.items()}
    temporary = root / name / "1.0.0.incomplete"
    try:
        _check_plan(temporary, found, index)
        _write(name, temporary, found, class_names, index)
        return temporary.rename(temporary.with_name("1.0.0"))
    except ValueError:
        raise
    except Exception as error:  # array_record and TFDS each raise their own
        raise OSError(
            f"{name} was not written to {temporary} ({checks.reason(error)}): see that "
            "the folder has room and may be written; the same command continues."
        ) from error


def _list(paths: Sequence[str | os.PathLike[str]]) -> list[_Image]:
    in_folders, in_archives = list[_Image](), list[_Image]()
    for path in (user_path("train or test", path) for path in paths):
        if path.is_dir():
            found = [*_in_folder(path)]
            in_folders += found
        elif path.is_file():
            found = _in_tar(path)
            in_archives += found
        else:
            raise ValueError(f"{path} is not there; expected a folder or a tar file.")
        if not found:
            raise ValueError(f"{path} has no images.")
    images = in_folders + _by_folder(in_archives)
    return sorted(images, key=lambda image: image.name)


def _in_folder(folder: Path) -> Iterator[_Image]:
    for path in visible_files(folder):
        name = path.relative_to(folder)
        of = name.parts[0] if len(name.parts) > 1 else None
        file, size = os.fspath(path.absolute()), path.stat().st_size
        yield _Image(file, 0, size, os.fspath(name), of)


def _in_tar(path: Path) -> list[_Image]:
    try:
        with path.open("rb") as file:
            place = os.fspath(path.absolute())
            return _members(file, place, path.stat().st_size, None)
    except tarfile.TarError as error:
        raise ValueError(
            f"{path} is not an uncompressed tar file ({checks.reason(error)}); unpack "
            "or uncompress it first."
        ) from error


def _members(file: BinaryIO, place: str, end: int, of: str | None) -> list[_Image]:
    """Lists the archive from where the file stands to an end, and those within it."""
    found = list[_Image]()
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            path = Path(member.name)
            if member.islnk() or member.issym():
                raise ValueError(f"{place}: {path} is a link; expected files only.")
            if not member.isfile() or path.name.startswith("."):
                continue
            start, size = member.offset_data, member.size
            if path.suffix == ".tar":
                back = file.tell()
                file.seek(start)
                found += _members(file, place, start + size, path.stem)
                file.seek(back)
            else:
                name = os.path.join(of or "", path)
                found.append(_Image(place, start, size, name, of))
        # To tarfile a damaged header is the end, which blocks of zeros mark.
        file.seek(archive.offset)
        mark = file.read(min(tarfile.BLOCKSIZE, end - archive.offset))
    if mark != bytes(tarfile.BLOCKSIZE) or (of and not found):
        raise ValueError(
            f"{place}: the archive{f' of {of}' if of else ''} is cut or damaged at "
            f"byte {archive.offset}; get it again."
        )
    return found


def _by_folder(images: list[_Image]) -> list[_Image]:
    """Returns images of archives, each of the first folder that not all share."""
    folders = [Path(image.name).parent.parts for image in images]
    # The others are in an archive within one, which is their class.
    inside = [f for f, image in zip(folders, images, strict=True) if image.of is None]
    shared = len(os.path.commonprefix(inside))
    if len({*inside}) == 1:  # a single folder, or none
        shared = max(shared - 1, 0)
    return [
        image._replace(of=image.of or next(iter(parts[shared:]), None))
        for parts, image in zip(folders, images, strict=True)
    ]


def _named(images: list[_Image], classes: Sequence[str]) -> list[_Image]:
    if len(classes) != len(images):
        raise ValueError(
            f"the classes of the test images are {len(classes)}; expected one for each "
            f"of the {len(images)} images, in the order of their names."
        )
    return [image._replace(of=of) for image, of in zip(images, classes, strict=True)]


def _only(images: list[_Image], classes: Sequence[str]) -> list[_Image]:
    missing = sorted({*classes} - {image.of for image in images})
    if missing:
        raise ValueError(
            f"there is no image of {len(missing)} of the {len(classes)} classes, such "
            f"as {missing[0]!r}."
        )
    wanted = {*classes}
    return [image for image in images if image.of in wanted]


def _put_aside(name: str, images: list[_Image]) -> dict[str, list[_Image]]:
    """Returns training and test images, a fixed random tenth."""
    if len(images) < 2:
        raise ValueError(f"{name} has {len(images)} images; expected 2 or more.")
    order = np.random.RandomState(0).permutation(len(images))
    test, train = np.split(order, [-(-len(images) // 10)])
    parts = {"train": np.sort(train), "test": np.sort(test)}
    return {split: [images[row] for row in rows] for split, rows in parts.items()}


def _records(images: list[_Image], class_names: list[str]) -> FileRecords:
    files = {image.file: None for image in images}
    numbers = {file: number for number, file in enumerate(files)}
    places = [(numbers[image.file], image.start, image.size) for image in images]
    times = [os.stat(file).st_mtime_ns for file in files]
    labels = None
    if class_names:
        classes = {name: number for number, name in enumerate(class_names)}
        labels = np.array([classes[image.of or ""] for image in images], np.int32)
    return FileRecords(
        [*files], np.array(times, np.int64), np.array(places, np.int64), labels
    )


def _class_names(listed: dict[str, list[_Image]]) -> list[str]:
    train, test = ({i.of for i in listed[split]} for split in ("train", "test"))
    if not test <= train or (None in train and len(train) > 1):
        odd = sorted(str(name) for name in (test - train) | ({None} & train))
        raise ValueError(
            "train and test must have the same class folders, or none; only one of "
            f"them has {odd[0]!r} (None: an image in no folder)."
        )
    names = sorted(name for name in train if name is not None)
    return checks.class_names(names) if len(names) > 1 else []


def _check_plan(folder: Path, found: dict[str, FileRecords], index: bool) -> None:
    """Keeps what an earlier start of the same plan has written; refuses another one."""
    digest = hashlib.sha256(json.dumps([index, _SHARD_BYTES]).encode())
    for part in found.values():
        digest.update("\0".join(part.files).encode("utf-8", "surrogateescape"))
        for array in (part.times, part.places, part.labels):
            digest.update(b"" if array is None else array.tobytes())
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "plan.txt"
    if plan.exists() and plan.read_text() != digest.hexdigest():
        raise ValueError(
            f"{folder} was begun from other files; remove it, or give the same ones."
        )
    _write_text(plan, digest.hexdigest())


def _write_text(path: Path, text: str) -> None:
    """Writes a file that is whole or not there."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _write(
    name: str,
    folder: Path,
    found: dict[str, FileRecords],
    class_names: list[str],
    index: bool,
) -> None:
    sizes, lengths = set[tuple[int, int]](), {}
    for split, part in found.items():
        title = f"{'Indexing' if index else 'Copying'} {name} {split}"
        stem = None if index else folder / f"{name}-{split}.{FORMAT}"
        shards, found_sizes = _copy_all(part, stem, title)
        lengths[split] = [len(part)] if index else [*map(len, shards)]
        sizes |= found_sizes
        side = {} if part.labels is None else {"labels": part.labels}
        if index:
            text = "\0".join(part.files).encode("utf-8", "surrogateescape")
            side |= {"files": np.frombuffer(text, np.uint8)}
            side |= {"times": part.times, "places": part.places}
        np.savez(folder / f"{split}.npz", **side)  # type: ignore[arg-type]
    shape = sizes.pop() if len(sizes) == 1 else (None, None)
    _describe(name, folder, found, lengths, class_names, shape)
    (folder / "plan.txt").unlink()
    shutil.rmtree(folder / "sizes", ignore_errors=True)


def _copy_all(
    part: FileRecords, stem: Path | None, title: str
) -> tuple[list[range], set[tuple[int, int]]]:
    """Copies images into files that begin with a stem, if one is given.

    Returns which images go into which file, and the sizes of all.
    """
    shards, sizes = _shards(part), set[tuple[int, int]]()

    def copy(number: int) -> int:
        suffix = f"-{number:05d}-of-{len(shards):05d}"
        path = stem and stem.with_name(stem.name + suffix)
        sizes.update(_copy(part, shards[number], path))
        return len(shards[number])

    with ThreadPoolExecutor(cores()) as pool:
        counts = pool.map(copy, range(len(shards)))
        records.progress(counts, len(part), title)
    return shards, sizes


def _shards(part: FileRecords) -> list[range]:
    """Returns consecutive images of about one file of records each."""
    ends = np.cumsum(part.places[:, 2])
    count = int(-(-ends[-1] // _SHARD_BYTES))
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, count) / count)
    edges = sorted({0, *cuts.tolist(), len(part)})
    return [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def _copy(part: FileRecords, rows: range, path: Path | None) -> set[tuple[int, int]]:
    """Copies some images into a file, if there is one; returns their sizes."""
    if path is None:
        return {_size_of_file(part, row) for row in rows}
    done = path.parent / "sizes" / f"{path.name}.json"
    if done.exists() and path.exists():
        return {(height, width) for height, width in json.loads(done.read_text())}
    temporary = path.with_name(f"{path.name}.tmp")
    writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    sizes = set[tuple[int, int]]()
    try:
        for row in rows:
            content = part.read(row)
            sizes.add(_size(part, row, content))
            example = tf_example_pb2.Example()
            feature = example.features.feature
            feature["image"].bytes_list.value.append(content)
            if part.labels is not None:
                feature["label"].int64_list.value.append(int(part.labels[row]))
            writer.write(example.SerializeToString())
    finally:
        writer.close()
    temporary.rename(path)
    done.parent.mkdir(exist_ok=True)
    _write_text(done, json.dumps(sorted(sizes)))
    return sizes


def _size_of_file(part: FileRecords, row: int) -> tuple[int, int]:
    """Returns what `_size` does, from the first bytes if they are enough."""
    try:
        return _size(part, row, part.read(row, _HEADER_BYTES))
    except ValueError:
        return _size(part, row, part.read(row))


def _size(part: FileRecords, row: int, content: bytes) -> tuple[int, int]:
    """Returns the upright height and width that the header of an image tells."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
    except Exception as error:  # each format of Pillow raises its own
        raise ValueError(
            f"{part.where(row)} is not an image that can be read "
            f"({checks.reason(error)}); mend or remove it."
        ) from error
    return (width, height) if turned else (height, width)


def _describe(
    name: str,
    folder: Path,
    found: dict[str, FileRecords],
    lengths: dict[str, list[int]],
    class_names: list[str],
    shape: tuple[int | None, int | None],
) -> None:
    """Writes what TFDS and `describe` read of a set."""
    train, most = found["train"], min(len(found["train"]), records.SAMPLED) // 2
    side = records.SAMPLED_SIDE
    store = Store(train, 3, (side, side), most, cores(), squashed=True)
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
    each = [
        splits.SplitInfo(
            name=split,
            shard_lengths=lengths[split],
            num_bytes=int(part.places[:, 2].sum()),
            filename_template=template,
        )
        for split, part in found.items()
    ]
    info.set_splits(splits.SplitDict(each))
    info.write_to_directory(folder)
