"""Talking to a running QEMU: just enough of its Machine Protocol (QEMU documentation, "QMP Protocol")."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fleet.errors import FleetError

#: What a QEMU says itself, in the folder that it runs in.
QEMU_LOG = "qemu.log"


class Qmp:
    """A QMP session over a connected socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._lines = connection.makefile("rw", encoding="utf-8")
        self._message()  # its greeting
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        """Give a command and wait for its answer.

        :raises FleetError: QEMU refuses it, or ends.
        """
        self._lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._lines.flush()
        answer = self._message()
        if "error" in answer:
            raise FleetError(f"QEMU refuses {command}: {answer['error'].get('desc')}")
        return answer.get("return")

    def wait_for_migration(self, deadline: float) -> None:
        """Wait until the machine is saved or restored.

        :raises FleetError: that failed, or takes too long.
        """
        while time.monotonic() < deadline:
            status = self.ask("query-migrate").get("status")
            if status == "completed":
                return
            if status == "failed":
                raise FleetError("QEMU cannot save or restore the machine", "fleet lab down, then up again")
            time.sleep(0.01)
        raise FleetError("QEMU takes too long to save or restore the machine", "try on a quieter machine")

    def _message(self) -> dict[str, Any]:
        while line := self._lines.readline():
            message: dict[str, Any] = json.loads(line)
            if "event" not in message:
                return message
        raise FleetError("QEMU has ended", "see the machine's console log")


@contextmanager
def connected(path: Path, deadline: float, has_ended: Callable[[], object]) -> Iterator[socket.socket]:
    """A connection to a socket that a QEMU is about to make; reads time out at the deadline.

    A socket's address has 107 bytes at the most, so the path is reached through its folder's descriptor.

    :param has_ended: says whether that QEMU has ended.
    :raises FleetError: there is none in time, or it does not answer in time.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            while True:
                try:
                    connection.connect(f"/proc/self/fd/{folder}/{path.name}")
                    break
                except OSError as error:
                    if has_ended():
                        raise FleetError(_last_words(path.parent)) from error
                    if time.monotonic() > deadline:
                        raise FleetError(f"{path}: {error}", "see the machine's console log") from error
                    time.sleep(0.01)
            connection.settimeout(max(1.0, deadline - time.monotonic()))
            try:
                yield connection
            except (TimeoutError, ConnectionError) as error:
                if has_ended():
                    raise FleetError(_last_words(path.parent)) from error
                raise FleetError(f"{path}: no answer in time", "see the machine's console log") from error
    finally:
        os.close(folder)


def _last_words(folder: Path) -> str:
    log = folder / QEMU_LOG
    said = log.read_text(errors="replace").strip().splitlines()[-3:] if log.exists() else []
    return "\n    ".join([f"QEMU has ended ({log}):", *said])
