# SPDX-License-Identifier: Apache-2.0
"""topology.conf: which nodes are at which switch, so that jobs get nodes near each other.

Source: topology.conf(5) of Slurm 24.11, plugin topology/tree.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Sequence, Set

from .slurm_conf import HEADER, SlurmConfError, Value, format_line

# The switch above all leaves where the inventory names none: without one, no job spans two leaves.
ROOT = "root"


def render(leaves: Mapping[str, str], switches: Sequence[Mapping[str, object]]) -> str:
    """Return topology.conf for *leaves*, hostlists by name of switch, and the *switches* above them.

    A switch is a mapping of name, and ``switches``, those below it. Without any, one more above two leaves or
    more connects them. Raises SlurmConfError, naming slurm_switches, for a tree that is none.
    """
    above: Dict[str, List[str]] = {
        str(switch["name"]): [str(name) for name in _list(switch.get("switches"))] for switch in switches
    }
    if len(above) != len(switches):
        raise SlurmConfError("slurm_switches: a name is there twice")
    if not switches and len(leaves) > 1:
        above = {ROOT: sorted(leaves)}
    if both := sorted(set(above) & set(leaves)):
        raise SlurmConfError(
            f"{both[0]} is in slurm_switches, and the slurm_switch of nodes: a switch has nodes or switches"
        )
    parents: Dict[str, str] = {}
    for name, below in above.items():
        for child in below:
            if child not in above and child not in leaves:
                raise SlurmConfError(
                    f"slurm_switches: {name} is above {child}, which is neither a switch there nor the "
                    "slurm_switch of any node"
                )
            if child in parents:
                raise SlurmConfError(f"slurm_switches: {child} is below {parents[child]} and below {name}")
            parents[child] = name
    roots = [name for name in (*leaves, *above) if name not in parents]
    if len(roots) > 1:
        raise SlurmConfError(f"slurm_switches: nothing connects {', '.join(roots)}: put a switch above them")
    _refuse_circles(above, parents, set(roots))
    lines: List[Dict[str, Value]] = [{"SwitchName": name, "Nodes": leaves[name]} for name in sorted(leaves)]
    lines += [{"SwitchName": name, "Switches": below} for name, below in above.items()]
    return HEADER + "".join(format_line(line, "slurm_switches") for line in lines)


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, (list, tuple)) else ()


def _refuse_circles(above: Mapping[str, Sequence[str]], parents: Mapping[str, str], roots: Set[str]) -> None:
    """Raise SlurmConfError for a switch that is below itself: no root is above it."""
    for name in above:
        seen = {name}
        at = name
        while at not in roots:
            at = parents[at]
            if at in seen:
                raise SlurmConfError(f"slurm_switches: {name} is below itself")
            seen.add(at)
