# SPDX-License-Identifier: Apache-2.0
"""AppArmor profiles that allow programs to create user namespaces, and nothing but that.

Sources: apparmor.d(5) for profiles, ``userns`` rules and ``flags=(unconfined)``; apparmor_parser(8);
security/apparmor/domain.c of Linux, by which a profile named like the program is taken before any pattern.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from . import atomic_file

MODULE = "/sys/module/apparmor/parameters/enabled"
PROFILES = "/sys/kernel/security/apparmor/profiles"

#: The arguments of the modules that call `bring`.
SPEC: Mapping[str, Any] = {
    "path": {"type": "path", "required": True},
    "programs": {"type": "list", "elements": "str", "required": True},
}
#: Where apparmor_parser is, beside the PATH of whoever runs this.
FOLDERS = ("/usr/sbin", "/sbin")

HEADER = "# Written by Ansible (module apparmor_userns); changes made here are lost.\n"

_PROGRAM = re.compile(r"(/[A-Za-z0-9._+@-]+)+")


class AppArmorError(ValueError):
    """A profile that can't be had; the message says why."""


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


def bring(
    params: Mapping[str, Any], check: bool, run: Callable[[List[str]], Tuple[int, str, str]]
) -> Dict[str, Any]:
    """Bring the node to *params*, or with *check* only predict it; return the result of a module.

    params: values of `SPEC`. run: runs a program. Raises AppArmorError and OSError.
    """
    path, programs = params["path"], list(dict.fromkeys(params["programs"]))
    text = render(programs)
    there = loaded(MODULE, PROFILES)
    if there is None:
        return {"changed": False, "enabled": False, "loaded": []}
    old = (atomic_file.read(path) or b"").decode(errors="surrogateescape")
    new: List[str] = []
    if programs:
        missing = [program for program in programs if program not in there]
        changed = old != text or bool(missing)
        new = programs if old != text else missing
        if old != text:
            # Not what the kernel gets to see: whether the parser takes it.
            with tempfile.TemporaryDirectory(prefix="apparmor-userns-") as folder:
                file = Path(folder, Path(path).name)
                file.write_text(text)
                _parse(run, "--skip-kernel-load", "--skip-cache", str(file))
            if not check:
                atomic_file.replace(path, text.encode(), owner=(0, 0) if os.geteuid() == 0 else None)
        if changed and not check:
            _parse(run, "--replace", path)
    else:
        text, changed = "", Path(path).exists()
        if changed and not check:
            _parse(run, "--remove", path)
            Path(path).unlink()
    diff = {"before_header": path, "after_header": path, "before": old, "after": text}
    return {"changed": changed, "enabled": True, "loaded": new, "diff": diff}


def _parse(run: Callable[[List[str]], Tuple[int, str, str]], *arguments: str) -> None:
    program = shutil.which("apparmor_parser", path=os.pathsep.join([os.environ.get("PATH", ""), *FOLDERS]))
    if program is None:
        raise AppArmorError("AppArmor is on, but there is no apparmor_parser: install the package apparmor")
    argv = [program, *arguments]
    code, out, err = run(argv)
    if code:
        raise AppArmorError(f"{' '.join(argv[:-1])} refuses the profiles: {(err or out).strip()}")
