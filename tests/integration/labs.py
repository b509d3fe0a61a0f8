"""What the tests of labs share: the command, and what a lab could leave behind on this machine."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

BUSY = os.environ.get("LAB_TEST_BUSY_MACHINE") == "1"
OURS = re.compile(r"itlab|it-lab|lab-it|10\.77\.9[89]\.|pytest-")

# Whatever loses its parent comes to this process and not to init: so nothing that a lab leaves behind is
# missed, and nothing of others is counted. PR_SET_CHILD_SUBREAPER of prctl(2).
ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)


def write_inventory(
    folder: Path, name: str, network: str, hosts: dict[str, dict[str, object]], repository: str = ""
) -> Path:
    """An inventory file of these hosts; the first serves the packages, unless another one is named."""
    path = folder / f"{name}.yml"
    variables = {"lab_name": name, "lab_network": network}
    groups = {"lab_repository": {"hosts": {repository or next(iter(hosts)): None}}}
    path.write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": variables, "children": groups}}))
    return path


def fleet(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    argv = [str(Path(sys.executable).with_name("fleet")), "lab", *map(str, arguments)]
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )


def succeed(*arguments: str | Path, env: dict[str, str] | None = None) -> str:
    result = fleet(*arguments, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def host_state() -> dict[str, list[str]]:
    """What a lab could leave behind on this machine."""

    def said(*argv: str) -> list[str]:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()

    state = {
        "mounts": [line.split(" ", 2)[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()],
        "links": [line.split(": ")[1] for line in said("ip", "-oneline", "link")],
        "nft": said("nft", "list", "ruleset"),
        "processes": [f"{pid} {command}" for pid, command in processes()],
        "hosts": Path("/etc/hosts").read_text().splitlines(),
        "forwarding": [] if BUSY else [Path("/proc/sys/net/ipv4/ip_forward").read_text()],
        "control groups": [str(p) for p in Path("/sys/fs/cgroup").glob("**/apptainer-fleet-*")],
        "nspawn": [p.name for p in Path("/run/systemd/nspawn").rglob("*")],
    }
    if BUSY:
        state = {
            what: lines if what == "processes" else [line for line in lines if OURS.search(line)]
            for what, lines in state.items()
        }
    return {what: sorted(lines) for what, lines in state.items()}


def processes() -> Iterator[tuple[int, str]]:
    """What this process has started, however indirectly, and still runs; zombies not."""
    parents, commands = {}, {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit():
                parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(") ", 1)[1].split()[1])
                commands[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue

    def is_descendant(pid: int) -> bool:
        parent = parents.get(pid, 0)
        return parent == os.getpid() or (parent > 0 and is_descendant(parent))

    # What has ended and only waits for its parent to notice has no command line.
    return ((pid, command) for pid, command in commands.items() if command and is_descendant(pid))


def assert_host_is_as(before: dict[str, list[str]]) -> None:
    """The kernel frees namespaces a moment after their last process; nothing else may take time."""
    deadline = time.monotonic() + 3
    while (after := host_state()) != before and time.monotonic() < deadline:
        time.sleep(0.1)
    for what, value in before.items():
        assert after[what] == value, what


def kill_up_after(
    inventory: Path,
    seconds: float,
    once: Callable[[], bool] = lambda: True,
    env: dict[str, str] | None = None,
) -> None:
    """Kill it so long after something is the case."""
    argv = [str(Path(sys.executable).with_name("fleet")), "lab", "up", "-i", str(inventory)]
    quiet = subprocess.DEVNULL
    victim = subprocess.Popen(argv, stdout=quiet, stderr=quiet, env={**os.environ, **(env or {})})
    while not once() and victim.poll() is None:
        time.sleep(0.05)
    time.sleep(seconds)
    victim.kill()
    victim.wait()
