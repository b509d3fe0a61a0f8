# SPDX-License-Identifier: Apache-2.0
"""The MUNGE key of a cluster, and the proof that two nodes understand each other.

Sources: munged(8) (key of 32 to 1024 bytes, 0400, owned by munge), munge(1), unmunge(1) (exit status is
the error number, its text on standard error), munge.h (error numbers).
"""

from __future__ import annotations

import secrets
import subprocess
from typing import List

KEY_FILE = "/etc/munge/munge.key"
NEXT_KEY_FILE = f"{KEY_FILE}.next"
KEY_MODE = 0o400
SHORTEST_KEY, LONGEST_KEY = 32, 1024

# One credential is shown to all nodes of a run, and 5,000 of them take minutes.
CREDENTIAL_SECONDS = 600

_SOCKET, _INVALID, _EXPIRED, _REWOUND = 6, 14, 15, 16
_MENDS = {
    _SOCKET: "munged does not answer: see `systemctl status munge`",
    _INVALID: f"munged has another key than the cluster: is there another --key-file than {KEY_FILE}?",
}


class MungeError(Exception):
    """MUNGE does not work: why, and how to mend it. The message never holds a key or a credential."""


class ClockError(MungeError):
    """The clocks of two nodes differ by more than a credential lives."""


def new_key() -> bytes:
    """Return a key of 1024 random bytes, the most that munged(8) takes."""
    return secrets.token_bytes(LONGEST_KEY)


def check_key(key: bytes) -> None:
    """Raise MungeError unless munged(8) takes *key*."""
    if not SHORTEST_KEY <= len(key) <= LONGEST_KEY:
        raise MungeError(
            f"a munge key has {SHORTEST_KEY} to {LONGEST_KEY} bytes, not {len(key)}: "
            "remove the key file of the controller, and a new key is made"
        )


def encode() -> str:
    """Return a credential that only root can decode, for CREDENTIAL_SECONDS. Raises MungeError."""
    return _run(["munge", "--no-input", "--restrict-uid=0", f"--ttl={CREDENTIAL_SECONDS}"], "").strip()


def decode(credential: str) -> None:
    """Raise MungeError unless munged of this node accepts *credential*, which it does once only."""
    _run(["unmunge", "--keys=STATUS"], credential)


def _run(argv: List[str], text: str) -> str:
    """Run *argv* with *text* on standard input: what is secret never stands in the list of processes."""
    try:
        result = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        raise MungeError(f"{argv[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise MungeError(f"{argv[0]} did not answer within 30 s: see `systemctl status munge`") from None
    if result.returncode:
        # munge(1) tells on standard error, unmunge(1) in its metadata.
        text = result.stderr.strip() or " ".join(result.stdout.split())
        if result.returncode in (_EXPIRED, _REWOUND):
            raise ClockError(f"{argv[0]}: {text}: the clocks of the two nodes differ, synchronise them")
        raise MungeError(
            f"{argv[0]}: {text}: {_MENDS.get(result.returncode, 'see `journalctl --unit munge`')}"
        )
    return result.stdout
