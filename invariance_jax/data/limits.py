"""What is checked before anything is allocated or written."""

import os
from collections.abc import Sequence
from pathlib import Path

PROCESS_GROUPS = Path("/proc/self/cgroup")
CONTROL_GROUPS = Path("/sys/fs/cgroup")
_LIMITS = {"": "memory.max", "memory": "memory.limit_in_bytes"}
"""The file of a limit, by the controllers that a line of PROCESS_GROUPS names."""


def machine_memory() -> int:
    """Returns the bytes of memory that this process may take.

    That is the memory of the machine, or less where Linux limits a container or a job
    of a cluster (control groups, version 1 or 2).
    """
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    own = PROCESS_GROUPS.read_text() if PROCESS_GROUPS.exists() else ""
    for line in own.splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory"):
            root, file = CONTROL_GROUPS / controllers, _LIMITS[controllers]
            folder = root / group.strip("/")
            for place in (folder, *folder.parents):
                limit = place / file
                text = limit.read_text().strip() if limit.exists() else "max"
                sizes.append(int(text) if text != "max" else sizes[0])
    return min(sizes)


def memory(what: str, num_bytes: int) -> None:
    """Refuses arrays of which the memory of this machine does not hold two copies."""
    there = machine_memory()
    if 2 * num_bytes > there:
        raise ValueError(
            f"{what} take {num_bytes / 1e9:.3g} GB, more than half of the "
            f"{there / 1e9:.3g} GB of memory of this machine; take fewer or smaller."
        )


def class_names(names: Sequence[str]) -> list[str]:
    """Refuses names that would not come back: TFDS keeps them as lines of text."""
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


def reason(error: Exception) -> str:
    """Returns a library's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__
