"""Prepares a data set: `python -m invariance_jax.data NAME --data_dir=DIR`.

NAME is one of the sets that are downloaded, "spirograph", or the name of a new set
together with --train: a folder of image files, or of class folders of them.
"""

import argparse
import sys
from pathlib import Path

from invariance_jax.data import loading, preparation, sets
from invariance_jax.runtime import terminal


def main(arguments: list[str]) -> None:
    """Prepares the set and prints what there is now."""
    options = _parse(arguments)
    name, data_dir = options.name, options.data_dir
    if options.train is None:
        path = preparation.prepare(name, data_dir=data_dir, source=options.source)
    else:
        path = preparation.prepare_folder(
            name,
            data_dir,
            train=options.train,
            test=options.test,
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
        "name": f"{', '.join(sets.RESERVED)}; or a new name, with --train",
        "--data_dir": "folder of the prepared sets (default: that of TFDS)",
        "--source": "folder of the original files, instead of a download",
        "--train": "folder of training images, or of a folder of them for each class",
        "--test": "folder of test images (default: a tenth of the training images)",
        "--image_size": "scale and crop the images of folders to this side (pixels)",
    }
    for flag, meaning in flags.items():
        kind = int if flag == "--image_size" else str
        parser.add_argument(flag, help=meaning, type=kind)
    options = parser.parse_args(arguments)
    if options.train is None and (options.test, options.image_size) != (None, None):
        parser.error("--test and --image_size go with --train")
    if options.train is not None and options.source is not None:
        parser.error("--source does not go with --train")
    return options


def _summary(name: str, path: Path) -> str:
    size = sum(file.stat().st_size for file in path.iterdir()) / 1e6
    place = f"{size:.0f} MB in {path}"
    if name == "spirograph":
        return f"spirograph: {place}"
    data_dir = path.parents[1]
    found = loading.describe(name, data_dir=data_dir)
    shape = " x ".join(map(str, found.image_shape))
    return (
        f"{name}: {found.num_train} training and {found.num_test} test images, "
        f"{shape}, {found.num_classes or 'no'} classes, {place}\n"
        f"Use it with --config.data.name={name} --config.data.data_dir={data_dir}"
    )


if __name__ == "__main__":
    terminal.forgive()
    try:
        main(sys.argv[1:])
    except (OSError, ValueError, MemoryError) as error:
        sys.exit(f"error: {' '.join(str(error).split()) or type(error).__name__}")
    except KeyboardInterrupt:
        print("interrupted; no set was left half-written", file=sys.stderr)
        sys.exit(130)
