"""What the devices tell one another in a step, read from the compiled program."""

import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")

_INSTRUCTION = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\((.*)$", re.M)
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_HEADER = re.compile(r"\b(?:replica_count|num_partitions)=(\d+)")
# Of devices listed, numbered in rows, or along axes of a mesh that has a name for each.
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_NUMBERED = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}")


class Collective(NamedTuple):
    """An operation in which devices take part together.

    Attributes:
      kind: one of `KINDS`.
      size: bytes of the whole array: what is summed, or what all parts make together.
      devices: how many take part in it.
    """

    kind: str
    size: int
    devices: int

    @property
    def sent(self) -> float:
        """Returns the bytes that each device sends around a ring, and receives.

        A sum passes the ring twice: parts are added up, and the sums are handed on.
        """
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.size * (self.devices - 1) / self.devices


def collectives(program: str) -> list[Collective]:
    """Returns the collectives of a compiled program, in its order.

    Each counts once, in a loop or a branch too: of a program that loops over steps,
    these are the collectives of a step.

    Args:
      program: HLO as `jax.stages.Compiled.as_text` gives it.

    Returns:
      Those among several devices; what XLA made into one is one.
    """
    everyone = math.prod(map(int, _HEADER.findall(program.partition("\n")[0])))
    found = []
    for shape, kind, start, rest in _INSTRUCTION.findall(program):
        sizes = [_bytes(*array) for array in _ARRAY.findall(shape)]
        if start and kind != "all-reduce":
            sizes = sizes[len(sizes) // 2 :]  # after what goes in comes what comes out
        devices = _devices(rest) or everyone
        whole = sum(sizes) * (devices if kind == "reduce-scatter" else 1)
        if devices > 1:
            found.append(Collective(kind, whole, devices))
    return found


def _devices(attributes: str) -> int | None:
    """Returns how many devices take part together, None if that is not told."""
    if listed := _LISTED.search(attributes):
        return listed[1].count(",") + 1
    if numbered := _NUMBERED.search(attributes):
        return int(numbered[1])
    if mesh := _MESH.search(attributes):
        sizes = dict(axis.split("=") for axis in mesh[1].split(","))
        return math.prod(int(sizes[name]) for name in mesh[2].split(","))
    return None


def _bytes(dtype: str, shape: str) -> int:
    width = re.search(r"\d+", dtype)
    bits = int(width.group()) if width else 8  # pred
    return math.prod(map(int, filter(None, shape.split(",")))) * bits // 8
