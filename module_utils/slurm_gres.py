# SPDX-License-Identifier: Apache-2.0
"""What an inventory may say of generic resources. Source: gres.conf(5) of Slurm 24.11."""

from __future__ import annotations

import re
from typing import Mapping, Sequence

from . import slurm_names
from .slurm_conf import SlurmConfError

#: Makers of accelerators that slurm_hardware.read_devices finds.
DETECTED = ("nvidia", "amd", "intel", "accel")
_RANGE = re.compile(r"(?P<first>[0-9]+)(-(?P<last>[0-9]+))?")


def check(entries: Sequence[Mapping[str, object]]) -> None:
    """Raise SlurmConfError unless each has a name, and either ``detect`` or a count, with as many files."""
    for gres in entries:
        name = gres.get("name")
        if not slurm_names.NAME.fullmatch(str(name or "")):
            raise SlurmConfError(f"{dict(gres)} needs a name such as gpu")
        count, file, detect = gres.get("count"), gres.get("file"), gres.get("detect")
        if detect:
            if detect not in DETECTED:
                raise SlurmConfError(f"detect of {name} is one of {', '.join(DETECTED)}")
            if count or file:
                raise SlurmConfError(f"{name} has detect, so leave count and file out")
            continue
        if not isinstance(count, int) or count < 1:
            raise SlurmConfError(f"{name} needs a count of 1 or more, or detect")
        if name == "gpu" and not file:
            # Slurm 24.11 counts none otherwise and sets the node to INVAL.
            raise SlurmConfError("gpu needs the device files, for example file: /dev/nvidia[0-3]")
        if file and (found := _files(str(file))) != count:
            raise SlurmConfError(
                f"{name} has the count {count}, but file {file} names {found}: make them equal"
            )


def _files(hostlist: str) -> int:
    """Return how many files *hostlist* names: commas outside brackets, ranges inside."""
    total = 0
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", hostlist):
        product = 1
        for inside in re.findall(r"\[([^\]]*)\]", part):
            ranges = [_RANGE.fullmatch(text.strip()) for text in inside.split(",")]
            product *= sum(
                int(item["last"] or item["first"]) - int(item["first"]) + 1 for item in ranges if item
            )
        total += product
    return total
