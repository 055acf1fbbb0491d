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
from collections.abc import Sequence
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
from invariance_jax.data.preparation import folder_for_new
from invariance_jax.data.sets import FORMAT, user_path
from invariance_jax.data.streams import FileRecords, Pictures, Store, cores

_SHARD_BYTES, _HEADER_BYTES = 2**28, 2**15
_TURNED = {5, 6, 7, 8}


class _Listed(NamedTuple):
    """Images where they lie: files, (file, start, size) of each, and its class."""

    files: list[str]
    places: list[tuple[int, int, int]]
    names: list[str]
    classes: list[str | None]

    def add(self, place: tuple[int, int, int], name: str, of: str | None) -> None:
        """Takes an image, its name and its class."""
        self.places.append(place)
        self.names.append(name)
        self.classes.append(of)

    def records(self, class_names: list[str]) -> FileRecords:
        """Returns them to be read."""
        labels = None
        if class_names:
            number = {name: n for n, name in enumerate(class_names)}
            labels = np.array([number[c or ""] for c in self.classes], np.int32)
        times = np.array([os.stat(file).st_mtime_ns for file in self.files], np.int64)
        return FileRecords(self.files, times, np.array(self.places, np.int64), labels)

    def chosen(self, rows: Sequence[int]) -> "_Listed":
        """Returns some of them."""
        columns = ([column[n] for n in rows] for column in self[1:])
        return _Listed(self.files, *columns)  # type: ignore[arg-type]


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

    Args:
      name: see `prepare_arrays`.
      data_dir: see `prepare_arrays`.
      train: folders and uncompressed tar archives.
      test: the same of the test split; none: a fixed random tenth of train.
      classes: names of the classes that are kept; None: all.
      test_classes: names of the classes of the test images, in the order of the names
        of their files, where no folder tells; None: the folders tell.
      index: whether the files stay where they are, and only an index is written.

    Returns:
      The folder of the prepared set.

    Raises:
      ValueError: if the name is invalid or taken, a file is no image, there are none,
        or train and test have other classes.
      OSError: if the set cannot be written.
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
        rows = np.random.RandomState(0).permutation(len(listed["train"].places))
        if len(rows) < 2:
            raise ValueError(f"{name} has {len(rows)} images; expected 2 or more.")
        first = -(-len(rows) // 10)
        listed = {
            split: listed["train"].chosen(np.sort(part).tolist())
            for split, part in (("train", rows[first:]), ("test", rows[:first]))
        }
    class_names = _class_names(listed)
    found = {split: part.records(class_names) for split, part in listed.items()}
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


def _list(paths: Sequence[str | os.PathLike[str]]) -> _Listed:
    listed, archived = _Listed([], [], [], []), list[int]()
    for path in (user_path("train or test", path) for path in paths):
        before = len(listed.places)
        if path.is_dir():
            _list_folder(path, listed)
        elif path.is_file():
            listed.files.append(os.fspath(path.absolute()))
            _list_tar(path, listed)
            archived += range(before, len(listed.places))
        else:
            raise ValueError(f"{path} is not there; expected a folder or a tar file.")
        if len(listed.places) == before:
            raise ValueError(f"{path} has no images.")
    inside = {
        number: Path(listed.names[number]).parent.parts
        for number in archived
        if listed.classes[number] is None  # no archive within one
    }
    shared = len(os.path.commonprefix([*inside.values()]))
    if len({*inside.values()}) == 1:  # a single folder, or none
        shared = max(shared - 1, 0)
    for number, folders in inside.items():
        listed.classes[number] = next(iter(folders[shared:]), None)
    order = sorted(range(len(listed.places)), key=lambda n: listed.names[n])
    return listed.chosen(order)


def _list_folder(folder: Path, listed: _Listed) -> None:

    def refuse(error: OSError) -> None:
        raise error

    for parent, below, files in os.walk(folder, onerror=refuse, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith("."))
        inside = Path(parent).relative_to(folder)
        for file in sorted(files):
            path = Path(parent, file).absolute()
            if not file.startswith("."):
                place = len(listed.files), 0, path.stat().st_size
                listed.files.append(os.fspath(path))
                name = next(iter(inside.parts), None)
                listed.add(place, os.fspath(inside / file), name)


def _list_tar(path: Path, listed: _Listed) -> None:
    try:
        with path.open("rb") as file:
            _list_members(file, path.stat().st_size, None, listed)
    except tarfile.TarError as error:
        raise ValueError(
            f"{path} is not an uncompressed tar file ({checks.reason(error)}); unpack "
            "or uncompress it first."
        ) from error


def _list_members(file: BinaryIO, end: int, name: str | None, listed: _Listed) -> None:
    """Lists the archive from where the file stands to an end, and those within it."""
    before = len(listed.places)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            path = Path(member.name)
            if member.islnk() or member.issym():
                raise ValueError(
                    f"{listed.files[-1]}: {path} is a link; expected files only."
                )
            if not member.isfile() or path.name.startswith("."):
                continue
            if path.suffix == ".tar":
                back = file.tell()
                file.seek(member.offset_data)
                inner = member.offset_data + member.size
                _list_members(file, inner, path.stem, listed)
                file.seek(back)
            else:
                place = len(listed.files) - 1, member.offset_data, member.size
                listed.add(place, os.path.join(name or "", path), name)
        # To tarfile a damaged header is the end, which blocks of zeros mark.
        file.seek(archive.offset)
        mark = file.read(min(tarfile.BLOCKSIZE, end - archive.offset))
    if mark != bytes(tarfile.BLOCKSIZE) or (name and len(listed.places) == before):
        raise ValueError(
            f"{listed.files[-1]}: the archive{f' of {name}' if name else ''} is cut or "
            f"damaged at byte {archive.offset}; get it again."
        )


def _named(listed: _Listed, classes: Sequence[str]) -> _Listed:
    if len(classes) != len(listed.places):
        raise ValueError(
            f"the classes of the test images are {len(classes)}; expected one for each "
            f"of the {len(listed.places)} images, in the order of their names."
        )
    return listed._replace(classes=list(classes))


def _only(listed: _Listed, classes: Sequence[str]) -> _Listed:
    missing = sorted({*classes} - {*listed.classes})
    if missing:
        raise ValueError(
            f"there is no image of {len(missing)} of the {len(classes)} classes, such "
            f"as {missing[0]!r}."
        )
    wanted = {*classes}
    rows = [n for n, name in enumerate(listed.classes) if name in wanted]
    return listed.chosen(rows)


def _class_names(listed: dict[str, _Listed]) -> list[str]:
    train, test = ({*listed[split].classes} for split in ("train", "test"))
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
        shards = [range(len(part))] if index else _shards(part)
        title = f"{'Indexing' if index else 'Copying'} {name} {split}"

        def copy(
            job: tuple[int, range],
            part: FileRecords = part,
            shards: list[range] = shards,
            split: str = split,
        ) -> int:
            number, rows = job
            suffix = f"{number:05d}-of-{len(shards):05d}"
            path = None if index else folder / f"{name}-{split}.{FORMAT}-{suffix}"
            sizes.update(_copy(part, rows, path))
            return len(rows)

        jobs = [*enumerate(shards)]
        if index:
            jobs = [(n, r) for n, r in enumerate(_parts(len(part)))]
        with ThreadPoolExecutor(cores()) as pool:
            records.progress(pool.map(copy, jobs), len(part), title)
        lengths[split] = [len(rows) for rows in shards]
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


def _parts(count: int) -> list[range]:
    return [range(n, min(n + 500, count)) for n in range(0, count, 500)]


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
    writer, sizes = (
        ArrayRecordWriter(str(temporary), "group_size:1,uncompressed"),
        set(),
    )
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
    features = {"image": tfds.features.Image(shape=(*shape, 3))}
    if class_names:
        features["label"] = tfds.features.ClassLabel(names=class_names)
    train, most = found["train"], min(len(found["train"]), records.SAMPLED) // 2
    store = Store(train, 3, records.SAMPLED_SIDE, (0, 0), most, cores())
    mean, std = records.sampled_moments(Pictures(store, np.arange(len(train))))
    info = tfds.core.DatasetInfo(
        builder=dataset_info.DatasetIdentity(
            name=name,
            version=tfds.core.Version("1.0.0"),
            data_dir=os.fspath(folder),
            module_name="",
        ),
        description="Prepared from files.",
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("image", "label") if class_names else None,
        metadata=tfds.core.MetadataDict(mean=mean, std=std),
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
