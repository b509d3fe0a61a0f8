# SPDX-License-Identifier: Apache-2.0
"""Names as Slurm has them."""

from __future__ import annotations

import re

#: What the name of a node, a partition or a resource is made of.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def node_name(host: str) -> str:
    """Return Slurm's name of an inventory host: what ``hostname -s`` prints there.

    Raises ValueError for an address and for anything else that is no host name.
    """
    name = str(host).split(".", 1)[0]
    if not NAME.fullmatch(name):
        raise ValueError(
            "inventory host %r has no name for Slurm: name it as `hostname` does there, "
            "and put its address into ansible_host" % (host,)
        )
    return name
