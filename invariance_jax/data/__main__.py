"""Prepares a data set: `python -m invariance_jax.data NAME --data_dir=DIR`.

NAME is one of the sets that are downloaded, "spirograph", or the name of a new set
together with --train and --test, folders of class folders of image files.
"""

import argparse
import sys
from pathlib import Path

from invariance_jax.data import preparation, tfds


def main(arguments: list[str]) -> None:
    """Prepares the set and prints what there is now."""
    options = _parse(arguments)
    if options.train is None:
        path = preparation.prepare(
            options.name, data_dir=options.data_dir, source=options.source
        )
    else:
        path = preparation.prepare_folder(
            options.name,
            options.data_dir,
            train=options.train,
            test=options.test,
            image_size=options.image_size,
        )
    print(_summary(options.name, path))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m invariance_jax.data",
        description="Prepares a data set, without TensorFlow.",
        allow_abbrev=False,
    )
    known = ", ".join(preparation.RESERVED)
    parser.add_argument("name", help=f"{known}; or a new name, with --train and --test")
    parser.add_argument(
        "--data_dir", help="folder of the prepared sets (default: that of TFDS)"
    )
    parser.add_argument(
        "--source", help="folder of the original files, instead of a download"
    )
    parser.add_argument("--train", help="folder of class folders of training images")
    parser.add_argument("--test", help="folder of class folders of test images")
    parser.add_argument(
        "--image_size",
        type=int,
        help="scale and crop the images of the folders to this side (pixels)",
    )
    options = parser.parse_args(arguments)
    if (options.train is None) != (options.test is None):
        parser.error("--train and --test go together")
    if options.train is None and options.image_size is not None:
        parser.error("--image_size goes with --train and --test")
    if options.train is not None and options.source is not None:
        parser.error("--source does not go with --train and --test")
    return options


def _summary(name: str, path: Path) -> str:
    place = f"{_megabytes(path):.0f} MB in {path}"
    if name == "spirograph":
        return f"spirograph: {place}"
    data_dir = path.parents[1]
    found = tfds.describe(name, data_dir=data_dir)
    shape = " x ".join(map(str, found.image_shape))
    return (
        f"{name}: {found.num_train} training and {found.num_test} test images, "
        f"{shape}, {found.num_classes} classes, {place}\n"
        f"Use it with --config.data.name={name} --config.data.data_dir={data_dir}"
    )


def _megabytes(path: Path) -> float:
    return sum(file.stat().st_size for file in path.iterdir()) / 1e6


def _start() -> None:
    """Runs main; an error of the user's becomes one line and exit status 1."""
    try:
        main(sys.argv[1:])
    except (OSError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    _start()
