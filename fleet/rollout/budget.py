"""How many nodes of a partition may be missing at a time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from fleet.rollout.model import Seen

_ALL = 100  # per cent
_LIMIT = re.compile(r"([0-9]+)(%?)")


def check(text: str) -> str:
    """Return a limit, ``3`` or ``10%``, as it is. Raises ValueError for anything else."""
    match = _LIMIT.fullmatch(text)
    if not match or int(match[1]) == 0 or (match[2] and int(match[1]) > _ALL):
        raise ValueError(f"{text!r} is neither a number of nodes (3) nor a share of them (10%)")
    return text


def limit(text: str, size: int) -> int:
    """How many of *size* nodes that are: a share is rounded down, but to one at least."""
    match = _LIMIT.fullmatch(check(text))
    assert match  # noqa: S101 - check() has seen it
    return max(1, size * int(match[1]) // _ALL) if match[2] else int(match[1])


class Budget:
    """What is left of each partition's budget; nodes that are missing for whatever reason count.

    :param limits: as ``Settings.unavailable``.
    :param seen: all nodes of the cluster, not those of the rollout alone.
    """

    def __init__(self, limits: Mapping[str, str], seen: Mapping[str, Seen]) -> None:
        size = Counter(name for node in seen.values() for name in node.partitions)
        self.missing = Counter(
            name for node in seen.values() if not node.available for name in node.partitions
        )
        self.limits = {name: limit(limits.get(name, limits.get("*", "10%")), size[name]) for name in size}

    def full(self, partitions: Iterable[str]) -> list[str]:
        """Those of the partitions that can't miss one more node."""
        return sorted(name for name in partitions if self.missing[name] >= self.limits.get(name, 1))

    def take(self, seen: Seen) -> bool:
        """Let one more node be missing; False, and nothing taken, if a partition of it is full.

        A node that is missing anyway costs nothing.
        """
        if not seen.available:
            return True
        if self.full(seen.partitions):
            return False
        self.missing.update(seen.partitions)
        return True
