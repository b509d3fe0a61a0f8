"""Control groups of the lab's nodes: one of its own for each.

systemd-nspawn makes those of a container below the one it is started in. Started in the same, a service would
be one group in all nodes, and what systemd kills with `cgroup.kill` in one node would end in all of them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

#: Seconds. The last process of a group may be a moment in going.
PATIENCE = 5.0


def make(lab_name: str, node_name: str) -> list[Path]:
    """Make the groups of a node, one in each hierarchy that systemd-nspawn looks at."""
    groups = [top / node_name for top in _tops(lab_name)]
    for group in groups:
        group.mkdir(parents=True, exist_ok=True)
    return groups


def there(lab_name: str) -> bool:
    """Whether the lab has any."""
    return any(top.exists() for top in _tops(lab_name))


def remove(lab_name: str) -> None:
    """Remove those of the lab, whose processes have ended.

    :raises OSError: a process is still there after `PATIENCE`.
    """
    deadline = time.monotonic() + PATIENCE
    for top in _tops(lab_name):
        while top.exists():
            try:
                _remove_tree(top)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


def _tops(lab_name: str) -> Iterator[Path]:
    """The lab's group in the unified hierarchy and, on a hybrid host, in systemd's own (cgroups(7))."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(",")):
            yield Path(before.split()[4], f"apptainer-fleet-{lab_name}")


def _remove_tree(group: Path) -> None:
    for below in group.iterdir():
        if below.is_dir():
            _remove_tree(below)
    with contextlib.suppress(FileNotFoundError):
        group.rmdir()
