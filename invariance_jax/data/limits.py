"""Checks before memory is allocated or files are written; errors in one line."""

import os
from collections.abc import Sequence
from pathlib import Path

PROCESS_GROUPS = Path("/proc/self/cgroup")
CONTROL_GROUPS = Path("/sys/fs/cgroup")
_LIMITS = {"": "memory.max", "memory": "memory.limit_in_bytes"}
"""Controllers in a line of PROCESS_GROUPS -> file that has the memory limit."""


def machine_memory() -> int:
    """Returns the bytes of memory that this process may use.

    This is the memory of the machine, or less if Linux limits the memory of a container
    or a cluster job (control groups, version 1 or 2).
    """
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    own = PROCESS_GROUPS.read_text() if PROCESS_GROUPS.exists() else ""
    for line in own.splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory"):
            root, file = CONTROL_GROUPS / controllers, _LIMITS[controllers]
            folder = root / group.strip("/")
            for ancestor in (folder, *folder.parents):
                path = ancestor / file
                text = path.read_text().strip() if path.exists() else "max"
                sizes.append(int(text) if text != "max" else sizes[0])
    return min(sizes)


def memory(
    what: str, num_bytes: int, *, advice: str = "use less data", copies: int = 2
) -> None:
    """Raises ValueError unless 1 or 2 `copies` of num_bytes fit into memory."""
    available = machine_memory()
    if copies * num_bytes > available:
        raise ValueError(
            f"{what} take {num_bytes / 1e9:.3g} GB{', more than half' * (copies > 1)} "
            f"of the {available / 1e9:.3g} GB of memory of this machine; {advice}."
        )


def class_names(names: Sequence[str]) -> list[str]:
    """Returns the class names, after a check that TFDS can store each as one line."""
    for name in names:
        text = name if isinstance(name, str) else ""
        if text.encode("utf-8", "replace").decode().strip().splitlines() != [name]:
            raise ValueError(
                "class_names must each be one line of UTF-8 text with no space at its "
                f"ends; found {name!r}."
            )
    if len({*names}) < len(names):
        raise ValueError(f"class_names must be different; found {list(names)}.")
    return [str(name) for name in names]


def some(texts: Sequence[str], *, between: str = ", ") -> str:
    """Returns the first five of the texts as one, and the number of the others."""
    more = len(texts) - 5
    return between.join(texts[:5]) + (f"{between}... and {more} more" * (more > 0))


def reason(error: Exception) -> str:
    """Returns the message of an error in one line, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
