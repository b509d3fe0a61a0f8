# SPDX-License-Identifier: Apache-2.0
"""The global keyring: the keys whose signatures Apptainer trusts for all users of a node."""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from pathlib import Path
from typing import Callable, List, Mapping, Optional, Sequence, Tuple

from . import openpgp

#: Runs a program: argv and further variables → return code, output, errors.
Run = Callable[[Sequence[str], Mapping[str, str]], Tuple[int, str, str]]


def selected(keys: Sequence[Mapping[str, str]]) -> List[openpgp.PublicKey]:
    """Return the keys that were asked for, each by ``fingerprint`` and ``content``, armored or base64.

    Raises OpenPGPError, which names the entry.
    """
    result = []
    for number, entry in enumerate(keys):
        content = entry["content"].encode()
        try:
            if not content.lstrip().startswith(b"-----"):
                content = base64.b64decode(b"".join(content.split()), validate=True)
            result.append(openpgp.select(content, entry["fingerprint"]))
        except binascii.Error as error:
            raise openpgp.OpenPGPError(f"keys[{number}] is neither ASCII-armored nor base64") from error
        except openpgp.OpenPGPError as error:
            raise openpgp.OpenPGPError(f"keys[{number}]: {error}") from error
    return result


def present(content: Optional[bytes]) -> Tuple[List[str], List[str]]:
    """Return the fingerprints in a keyring that may be anything, and a line for each, for people."""
    if not content:
        return [], []
    try:
        keys = openpgp.public_keys(content)
    except openpgp.OpenPGPError as error:
        said = openpgp.printable(str(error).encode())
        return [], [f"{len(content)} bytes that are no keyring: {said}"]
    return [key.fingerprint for key in keys], sorted(key.describe() for key in keys)


def prove(apptainer: str, content: bytes, run: Run) -> None:
    """Raise OpenPGPError unless the program *apptainer* lists exactly the keys of the keyring *content*."""
    wanted = sorted(key.fingerprint for key in openpgp.public_keys(content)) if content else []
    if not wanted:
        return
    with tempfile.TemporaryDirectory(prefix="apptainer-keyring-") as folder:
        (Path(folder) / "pgp-public").write_bytes(content)
        variables = {"APPTAINER_KEYSDIR": folder, "APPTAINER_CONFIGDIR": folder, "LC_ALL": "C"}
        code, out, err = run([apptainer, "key", "list"], variables)
    listed = sorted(re.findall(r"\b[0-9A-F]{40}\b", out.upper()))
    if code or listed != wanted:
        raise openpgp.OpenPGPError(
            f"Apptainer on this node lists {', '.join(listed) or 'no key'} in the new keyring and not "
            f"{', '.join(wanted)}: {err.strip() or 'it does not support the others'}"
        )
