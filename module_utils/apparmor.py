# SPDX-License-Identifier: Apache-2.0
"""AppArmor profiles that allow programs to create user namespaces, and nothing but that.

Sources: apparmor.d(5) for profiles, ``userns`` rules and ``flags=(unconfined)``; apparmor_parser(8);
security/apparmor/domain.c of Linux, by which a profile named like the program is taken before any pattern.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import List, Optional, Sequence

MODULE = "/sys/module/apparmor/parameters/enabled"
PROFILES = "/sys/kernel/security/apparmor/profiles"

HEADER = "# Written by Ansible (module apparmor_userns); changes made here are lost.\n"

_PROGRAM = re.compile(r"(/[A-Za-z0-9._+@-]+)+")


class AppArmorError(ValueError):
    """A program that no profile can be written for; the message says why."""


def loaded(module: str = MODULE, profiles: str = PROFILES) -> Optional[List[str]]:
    """Return the names of the loaded profiles, or None where AppArmor is off or out of reach (a container).

    Raises OSError if the kernel's list is there and can't be read.
    """
    try:
        if Path(module).read_text().strip() != "Y":
            return None
        text = Path(profiles).read_text()
    except FileNotFoundError:
        return None
    return [line.rpartition(" (")[0] for line in text.splitlines() if " (" in line]


def render(programs: Sequence[str]) -> str:
    """Return a file with a profile for each of *programs*, absolute paths, in their order, each once.

    A profile is named by the path of its program. So it can stand beside the one that a package brings for
    the same program by a pattern, and there is never a conflict of which to take.
    Raises AppArmorError for what is no path, or could be read as a pattern.
    """
    unique = list(dict.fromkeys(programs))
    for program in unique:
        if not _PROGRAM.fullmatch(program) or "/.." in program or "/./" in program:
            raise AppArmorError(f"{program!r} is no absolute path of letters, digits and . _ + @ -")
    profiles = (f'\n"{program}" flags=(unconfined) {{\n  userns,\n}}\n' for program in unique)
    return HEADER + "abi <abi/4.0>,\n" + "".join(profiles)
