# SPDX-License-Identifier: Apache-2.0
"""Work that may never end, done within a deadline: each piece in a process of its own, all at the same time.

A look at a file system whose server is gone can't be interrupted, not even by SIGKILL. So nobody waits for
such a process: it is killed and left behind, and `Ended.process` says which one it is. Next time the caller
gives it back, and no second process joins it as long as it is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional

_REAPING = 0.5
_CHUNK = 65536


class Task(NamedTuple):
    """Work: a function whose result JSON can hold, and the *seconds* that it may take."""

    function: Callable[[], Any]
    seconds: float


class Ended(NamedTuple):
    """How it went: the *value* that it returned, or an *error*; *process*, ``PID START``, if it stayed.

    *late*: the deadline was over.
    """

    value: Any = None
    error: str = ""
    seconds: float = 0.0
    process: str = ""
    late: bool = False


class _Child:
    """A process at work, and what it has said so far."""

    def __init__(self, task: Task) -> None:
        self.began = time.monotonic()
        self.deadline = self.began + task.seconds
        self.said = b""
        self.pipe, inner = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _work(task, inner)
        os.close(inner)

    def ended(self) -> Ended:
        """Return how it went, once its pipe is closed."""
        os.close(self.pipe)
        os.waitpid(self.pid, 0)
        seconds = time.monotonic() - self.began
        try:
            kind, value = json.loads(self.said)
        except ValueError:
            return Ended(error="ended without a word", seconds=seconds)
        return Ended(value if kind == "value" else None, value if kind == "error" else "", seconds)

    def too_late(self, reaping: float) -> Ended:
        """Kill it with all that it has started, wait *reaping* seconds at most, and return how it went."""
        os.close(self.pipe)
        process = identity(self.pid)
        # Its group, and itself, in case it had no time to make one.
        for kill, target in ((os.killpg, self.pid), (os.kill, self.pid)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(target, signal.SIGKILL)
        seconds = time.monotonic() - self.began
        error = f"did not answer within {seconds:.0f} seconds"
        end = time.monotonic() + reaping
        while not os.waitpid(self.pid, os.WNOHANG)[0]:
            if time.monotonic() >= end:
                return Ended(error=error, seconds=seconds, process=process, late=True)
            time.sleep(0.01)
        return Ended(error=error, seconds=seconds, late=True)


def run(
    tasks: Mapping[str, Task], left: Optional[Mapping[str, str]] = None, reaping: float = _REAPING
) -> Dict[str, Ended]:
    """Do all *tasks* at the same time and return how each went, by its name.

    *left* are processes that earlier calls have left behind, by the name of their task; as long as one is
    there, its task is not begun. *reaping*: seconds until one that was killed counts as one that can't be.
    """
    result: Dict[str, Ended] = {}
    children: Dict[str, _Child] = {}
    for name, task in tasks.items():
        process = (left or {}).get(name, "")
        if process and identity(int(process.split()[0])) == process:
            error = f"has not answered since an earlier look (process {process.split()[0]})"
            result[name] = Ended(error=error, process=process)
        else:
            children[name] = _Child(task)
    while children:
        now = time.monotonic()
        for name in [name for name, child in children.items() if child.deadline <= now]:
            result[name] = children.pop(name).too_late(reaping)
        by_pipe = {child.pipe: name for name, child in children.items()}
        pause = min((child.deadline - now for child in children.values()), default=0)
        for pipe in select.select(list(by_pipe), [], [], max(0, pause))[0] if by_pipe else ():
            child = children[by_pipe[pipe]]
            piece = os.read(pipe, _CHUNK)
            child.said += piece
            if not piece:
                result[by_pipe[pipe]] = children.pop(by_pipe[pipe]).ended()
    return {name: result[name] for name in tasks}


def identity(pid: int) -> str:
    """Return ``PID START`` of a process, START being when it began; empty if there is none, or a dead one."""
    try:
        # The name of the program, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    state, start = fields[0], fields[19]
    return "" if state in "ZX" else f"{pid} {start}"


def _work(task: Task, pipe: int) -> None:
    """Do the work in the child, and end it."""
    try:
        os.setsid()
        # Whoever waits for the end of the parent's output must not wait for this process.
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nothing, descriptor)
        try:
            answer: List[Any] = ["value", task.function()]
        except Exception as error:  # whatever it is, it is what the caller wants to know
            answer = ["error", f"{error}" or type(error).__name__]
        data = json.dumps(answer).encode()
        while data:
            data = data[os.write(pipe, data) :]
    finally:
        os._exit(0)
