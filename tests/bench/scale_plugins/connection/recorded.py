# SPDX-License-Identifier: Apache-2.0
"""Connection plugin: answers from recorded results, for what a run costs the controller alone."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: recorded
short_description: Answers modules from a file
description:
  - Contacts nobody. A module gets the result that the file in E(RECORDED_ANSWERS) has for its name; commands
    succeed and say nothing but the temporary folder that Ansible asks for. Hosts in E(RECORDED_SILENT), names
    with commas between them, can't be reached.
options: {}
extends_documentation_fragment:
  - connection_pipelining
"""

_MODULE = re.compile(rb"^ansible_module='([\w.]+)',$", re.MULTILINE)
_FOLDER = re.compile(r"(ansible-tmp-[\d.-]+)=")
_SILENT = os.environ.get("RECORDED_SILENT", "").split(",")
_ANSWERS = json.loads(Path(os.environ["RECORDED_ANSWERS"]).read_text())


class Connection(ConnectionBase):
    """Looks like a connection with pipelining."""

    transport = "recorded"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True):
        """Return code, standard output and standard error, as the module has recorded them."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        if self._play_context.remote_addr in _SILENT:
            raise AnsibleConnectionFailure("Connection timed out")
        if in_data:
            # The module's arguments stand at the end, behind its code.
            name = _MODULE.search(in_data)[1].decode().rpartition(".")[2]
            return 0, json.dumps(_ANSWERS[name]).encode(), b""
        folder = _FOLDER.search(cmd)
        return 0, f"{folder[1]}=/tmp/{folder[1]}\n".encode() if folder else b"", b""

    def put_file(self, in_path: str, out_path: str) -> None:
        """Take a file."""

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Never asked for."""

    def close(self) -> None:
        """There is nothing to close."""
        self._connected = False
