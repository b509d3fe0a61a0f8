"""Running programs for a lab: argv lists only, marked as the lab's, and gone when their starter is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fleet.errors import FleetError
from fleet.lab.model import lab_home

#: In the environment of every process that a lab starts, so that ``down`` finds them after any crash. Its
#: value is the lab's folder: a lab of the same name in another state folder is another lab.
LAB_MARK = "APPTAINER_FLEET_LAB_PROCESS"

#: Prefix for what mounts or starts daemons: all of it ends with the first process, however that ends.
ISOLATED = (
    "unshare",
    "--mount",
    "--propagation=private",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
)

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def run(
    argv: Sequence[str | Path],
    *,
    lab_name: str,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    mend: str = "",
) -> str:
    """Run a program to its end and give its standard output.

    The program is killed with this process, so that a killed ``fleet`` leaves no half-done build running.

    :param log: where its output goes instead; the error then names this file.
    :raises FleetError: it is missing or exits non-zero; the message holds the end of what it printed.
    """
    command = [str(word) for word in argv]
    try:
        with log.open("w") if log else open(os.devnull) as sink:  # noqa: PTH123
            result = subprocess.run(
                command,
                input=stdin,
                stdin=None if stdin is not None else subprocess.DEVNULL,
                stdout=sink if log else subprocess.PIPE,
                stderr=subprocess.STDOUT if log else subprocess.PIPE,
                text=True,
                check=False,
                env=environment(lab_name, env),
                preexec_fn=_die_with_parent,
            )
    except FileNotFoundError as error:
        raise FleetError(f"{command[0]}: no such program", "fleet lab up --install-host-packages") from error
    if result.returncode != 0:
        said = log.read_text(errors="replace") if log else result.stderr
        tail = "\n    ".join(said.strip().splitlines()[-12:])
        where = f" (all of it: {log})" if log else ""
        raise FleetError(f"{' '.join(command[:6])} … exited {result.returncode}{where}:\n    {tail}", mend)
    return result.stdout or ""


def environment(lab_name: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment with the lab's mark and a locale that programs print plain text in."""
    return {**os.environ, "LC_ALL": "C.UTF-8", LAB_MARK: str(lab_home(lab_name)), **(extra or {})}


def marked_processes(lab_name: str) -> list[int]:
    """Process ids of all that the lab of that name started and that still runs."""
    mark = f"{LAB_MARK}={lab_home(lab_name)}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue  # gone meanwhile, or a kernel thread
    return sorted(found)


def processes_naming(lab_name: str, folder: Path) -> list[int]:
    """Those of them that have a path below the folder in their command line."""
    wanted = f"{folder}/".encode()
    found = []
    for pid in marked_processes(lab_name):
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def kill_processes(find: Callable[[], list[int]]) -> None:
    """Kill what is found, and what is found then, until there is nothing.

    :raises FleetError: something is still there after ten seconds.
    """
    deadline = time.monotonic() + 10
    while left := find():
        if time.monotonic() > deadline:
            raise FleetError(f"processes {left} do not end on SIGKILL", "look for processes in state D")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
