"""Prepares a data set: `python -m invariance_jax.data NAME --data_dir=DIR`.

NAME is one of the sets that are downloaded, "spirograph", or the name of a new set
together with --train: a folder of image files, or of class folders of them.
"""

import argparse
import sys
from pathlib import Path

from invariance_jax.data import limits, loading, preparation, sets
from invariance_jax.runtime import terminal


def main(arguments: list[str]) -> None:
    """Prepares the set and prints what there is now."""
    options = _parse(arguments)
    name, data_dir = options.name, options.data_dir
    if name == "stamps" and options.train is None:
        from invariance_jax.data.stamps import prepare_stamps

        path = prepare_stamps(data_dir, options.source)
    elif options.train is None:
        path = preparation.prepare(name, data_dir=data_dir, source=options.source)
    elif options.image_size is None:
        # Imported here so that the others need no TFDS.
        from invariance_jax.data.originals import prepare_files

        path = prepare_files(
            name,
            data_dir,
            train=options.train,
            test=options.test or (),
            classes=_lines(options.classes),
            test_classes=_lines(options.test_classes),
            index=options.index,
        )
    else:
        if max(len(options.train), len(options.test or ())) > 1:
            raise ValueError("--image_size takes one folder for --train and --test")
        path = preparation.prepare_folder(
            name,
            data_dir,
            train=options.train[0],
            test=options.test[0] if options.test else None,
            image_size=options.image_size,
        )
    print(_summary(name, path), flush=True)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m invariance_jax.data",
        description="Prepares a data set, without TensorFlow.",
        allow_abbrev=False,
    )
    flags = {
        "name": f"{', '.join(sets.RESERVED)}, stamps; or a new name, with --train",
        "--data_dir": "folder of the prepared sets (default: that of TFDS)",
        "--source": "folder of the original files, instead of a download",
        "--train": "training images: folders, with a folder for each class or none, or "
        "uncompressed tar files; their bytes are kept as they are",
        "--test": "test images likewise (default: a tenth of the training images)",
        "--classes": "file with the names of the classes that are kept, one a line",
        "--test_classes": "file with the class of each test image, one a line, in the "
        "order of the names of the images",
        "--image_size": "scale and crop the images of folders to this side (pixels) "
        "instead of keeping them as they are",
    }
    for flag, meaning in flags.items():
        kind = int if flag == "--image_size" else str
        nargs = "+" if flag in ("--train", "--test") else None
        parser.add_argument(flag, help=meaning, type=kind, nargs=nargs)
    parser.add_argument(
        "--index",
        help="leave the files where they are, and write an index of them",
        action="store_true",
    )
    options = parser.parse_args(arguments)
    of_training = ("test", "classes", "test_classes", "index")
    given = {name for name in of_training if getattr(options, name)}
    scaled = options.image_size is not None
    if options.train is None and (given or scaled):
        parser.error("--test, --classes, --index and --image_size go with --train")
    if scaled and given - {"test"}:
        parser.error("--classes, --test_classes, --index do not go with --image_size")
    if options.train is not None and options.source is not None:
        parser.error("--source does not go with --train")
    return options


def _lines(path: str | None) -> list[str] | None:
    """Returns the lines of a file that are not empty."""
    if path is None:
        return None
    return [line for line in Path(path).read_text().splitlines() if line]


def _summary(name: str, path: Path) -> str:
    size = sum(file.stat().st_size for file in path.iterdir()) / 1e6
    place = f"{size:.0f} MB in {path}"
    if name == "spirograph":
        return f"spirograph: {place}"
    data_dir = path.parents[1]
    found = loading.describe(name, data_dir=data_dir)
    shape, more = " x ".join(map(str, found.image_shape)), ""
    if 0 in found.image_shape:
        shape, more = "of several sizes", " --config.data.store_size=SIDE"
    return (
        f"{name}: {found.num_train} training and {found.num_test} test images, "
        f"{shape}, {found.num_classes or 'no'} classes, {place}\n"
        f"Use it with --config.data.name={name} --config.data.data_dir={data_dir}{more}"
    )


if __name__ == "__main__":
    terminal.forgive()
    try:
        main(sys.argv[1:])
    except (OSError, ValueError, MemoryError) as error:
        sys.exit(f"error: {limits.reason(error)}")
    except KeyboardInterrupt:
        print("interrupted; no set was left half-written", file=sys.stderr)
        sys.exit(130)
