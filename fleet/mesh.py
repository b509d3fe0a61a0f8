"""Receptor's mesh as this machine sees it: its control socket, and units of work on other nodes of the mesh.

The protocol is a line of JSON for a command and one for its answer; ``work submit`` takes the payload, and
``work results`` gives the output, on the same connection (Receptor 1.5, pkg/controlsvc and pkg/workceptor).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import time
from collections.abc import Iterator
from io import BufferedRWPair
from pathlib import Path
from typing import Any

from fleet.errors import FleetError

#: Where role execution_node has the socket on the machine that `fleet site` runs on.
SOCKET = Path("/run/apptainer-fleet-mesh/control.sock")
#: The type of work that execution nodes offer: `ansible-runner worker`, if who submits it has the key.
WORK = "ansible-runner"
#: Seconds for an answer. A submission is answered after the other node has the payload.
_ANSWER, _SUBMIT = 10, 120
_LOOKS = 10


class MeshError(Exception):
    """Receptor refused a command, or does not answer."""


class Mesh:
    """The control service of Receptor on this machine.

    :param path: its Unix socket, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def check(self, nodes: list[str]) -> None:
        """Raise FleetError unless all *nodes* are on the mesh and take signed work.

        A node that has just joined says after some seconds what it takes, so there are several looks.
        """
        for looks in range(_LOOKS, 0, -1):
            try:
                wrong = _missing(nodes, self._ask({"command": "status"}))
            except MeshError as error:
                wrong = f"mesh: {error}"
            if not wrong:
                return
            if looks > 1:
                time.sleep(1)
        raise FleetError(wrong, "playbooks/execution_nodes.yml makes a mesh; docs/scale.md says how")

    def reaches(self, node: str) -> bool:
        """Whether there is a way to *node*. Raises MeshError if Receptor itself does not answer."""
        return node in (self._ask({"command": "status"}).get("RoutingTable") or {})

    def submit(self, node: str, payload: Path) -> str:
        """Give *node* a unit of work, signed, and return its name on this machine. Raises MeshError."""
        command = {"command": "work", "subcommand": "submit", "node": node, "worktype": WORK}
        with self._connection() as (connection, stream):
            connection.settimeout(_SUBMIT)
            said = _send(stream, {**command, "signwork": "true"})
            unit = said.removeprefix("Work unit created with ID ").partition(".")[0]
            if said == unit:
                raise MeshError(said)
            try:
                with payload.open("rb") as content:
                    shutil.copyfileobj(content, stream)
                stream.flush()
                connection.shutdown(socket.SHUT_WR)
                _parse(stream.readline())
            except (OSError, MeshError) as error:
                self.release(unit)
                raise MeshError(str(error)) from error
            return unit

    @contextlib.contextmanager
    def results(self, unit: str) -> Iterator[tuple[socket.socket, BufferedRWPair]]:
        """The output of a unit, as it comes, and the connection, to be shut down to end it before its end."""
        with self._connection() as (connection, stream):
            said = _send(stream, {"command": "work", "subcommand": "results", "unitid": unit, "startpos": 0})
            if not said.startswith("Streaming results"):
                raise MeshError(said)
            connection.settimeout(None)
            yield connection, stream

    def detail(self, unit: str) -> str:
        """What Receptor says about how a unit is; empty if it says nothing."""
        with contextlib.suppress(MeshError):
            answer = self._ask({"command": "work", "subcommand": "status", "unitid": unit})
            return f"{answer.get('StateName', '')}: {answer.get('Detail', '')}"
        return ""

    def release(self, unit: str) -> None:
        """End a unit if it still runs, and remove all of it, here and there.

        A node that can't be reached is told so when it is back.
        """
        with contextlib.suppress(MeshError):
            self._ask({"command": "work", "subcommand": "release", "unitid": unit})

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        with self._connection() as (_, stream):
            return _parse(_send(stream, command).encode())

    @contextlib.contextmanager
    def _connection(self) -> Iterator[tuple[socket.socket, BufferedRWPair]]:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_ANSWER)
                connection.connect(str(self._path))
                with connection.makefile("rwb") as stream:
                    greeting = stream.readline()
                    if not greeting.startswith(b"Receptor Control"):
                        raise MeshError(f"{self._path} is no control socket of Receptor")
                    yield connection, stream
        except OSError as error:
            raise MeshError(f"Receptor does not answer at {self._path}: {error}") from error


def _missing(nodes: list[str], status: dict[str, Any]) -> str:
    """What is wrong with the first of *nodes* that something is wrong with."""
    routes = set(status.get("RoutingTable") or {})
    offers: dict[str, bool] = {}
    for service in status.get("Advertisements") or []:
        for work in service.get("WorkCommands") or []:
            if work.get("WorkType") == WORK:
                offers[service["NodeID"]] = bool(work.get("Secure"))
    for node in nodes:
        if node not in routes:
            return f"--on {node}: not on the mesh, which has {', '.join(sorted(routes)) or 'no other node'}"
        if not offers.get(node):
            what = "takes work that nobody has signed" if node in offers else f"has no work type {WORK}"
            return f"--on {node}: {what}"
    return ""


def _send(stream: BufferedRWPair, command: dict[str, Any]) -> str:
    stream.write(json.dumps(command).encode() + b"\n")
    stream.flush()
    return stream.readline().decode().strip()


def _parse(line: bytes) -> dict[str, Any]:
    text = line.decode().strip()
    if not text.startswith("{"):
        raise MeshError(text.removeprefix("ERROR: ") or "Receptor closed the connection")
    answer: dict[str, Any] = json.loads(text)
    return answer
