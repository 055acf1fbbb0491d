"""Prepares a data set: `python -m invariance_jax.data NAME --data_dir=DIR`.

NAME is a set that is downloaded, "spirograph", "stamps", or the name of a new set if
--train is given: folders of image files, folders of class folders, or tar files.
"""

import argparse
import sys
import warnings
from pathlib import Path

from invariance_jax.data import limits, loading, preparation, sets
from invariance_jax.runtime import terminal


def main(arguments: list[str]) -> None:
    """Prepares the set and prints a summary of it."""
    options = _parse(arguments)
    name, data_dir = options.name, options.data_dir
    if name == "stamps" and options.train is None:
        from invariance_jax.data.stamps import prepare_stamps

        path = prepare_stamps(data_dir, options.source)
    elif options.train is None:
        path = preparation.prepare(name, data_dir=data_dir, source=options.source)
    elif options.image_size is None:
        # Imported here, because it imports TFDS, which the other cases may not need.
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
            raise ValueError("with --image_size, --train and --test take one folder")
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
        "--data_dir": "folder of the prepared sets (default: TFDS's default)",
        "--source": "folder of the original files, instead of a download",
        "--train": "training images: folders, with or without class folders, or "
        "uncompressed tar files; without --image_size their bytes stay unchanged",
        "--test": "test images, as --train (default: a tenth of the training images)",
        "--classes": "file with the names of the classes to keep, one per line",
        "--test_classes": "file with the class of each test image, one per line, in "
        "the order of the names of the images",
        "--image_size": "scale and crop the images of a folder to squares of this side "
        "(pixels), instead of keeping the files unchanged",
    }
    for flag, meaning in flags.items():
        kind = int if flag == "--image_size" else str
        nargs = "+" if flag in ("--train", "--test") else None
        parser.add_argument(flag, help=meaning, type=kind, nargs=nargs)
    parser.add_argument(
        "--index",
        help="leave the files in place and write an index of them",
        action="store_true",
    )
    options = parser.parse_args(arguments)
    train_flags = ("test", "classes", "test_classes", "index")
    given = {name for name in train_flags if getattr(options, name)}
    scaled = options.image_size is not None
    if options.train is None and (given or scaled):
        parser.error(
            "--test, --classes, --test_classes, --index and --image_size need --train"
        )
    if scaled and given - {"test"}:
        parser.error("--image_size excludes --classes, --test_classes and --index")
    if options.test_classes and not options.test:
        parser.error("--test_classes needs --test")
    if options.train is not None and options.source is not None:
        parser.error("--train excludes --source")
    return options


def _lines(path: str | None) -> list[str] | None:
    if path is None:
        return None
    try:
        return [line for line in Path(path).read_text().splitlines() if line]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text; expected a name on each line.") from error


def _summary(name: str, path: Path) -> str:
    size = sum(file.stat().st_size for file in path.iterdir()) / 1e6
    size_and_path = f"{size:.0f} MB in {path}"
    if name == "spirograph":
        return f"spirograph: {size_and_path}"
    data_dir = path.parents[1]
    info = loading.describe(name, data_dir=data_dir)
    shape, flag = " x ".join(map(str, info.image_shape)), ""
    if 0 in info.image_shape:
        shape, flag = "of several sizes", " --config.data.store_size=SIDE"
    classes = "no classes"
    if info.class_names:
        classes = f"{info.num_classes} classes ({limits.some(info.class_names)})"
    return (
        f"{name}: {info.num_train} training and {info.num_test} test images, "
        f"{shape}, {classes}, {size_and_path}\n"
        f"Use it with --config.data.name={name} --config.data.data_dir={data_dir}{flag}"
    )


if __name__ == "__main__":
    terminal.forgive()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # those of Pillow, such as of a large image
    try:
        main(sys.argv[1:])
    except (OSError, ValueError, MemoryError) as error:
        sys.exit(f"error: {limits.reason(error)}")
    except KeyboardInterrupt:
        print("interrupted; no set was left half-written", file=sys.stderr)
        sys.exit(130)
