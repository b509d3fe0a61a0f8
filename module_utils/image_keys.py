# SPDX-License-Identifier: Apache-2.0
"""Keys that signatures of images are verified with, from files as people have them."""

from __future__ import annotations

from typing import Iterable, List, Tuple

from . import image_policy, openpgp
from .openpgp import PublicKey
from .sif_signers import PemKey, TrustedKeys, pem_key

_WEEK = 7 * 86400


class KeyFileError(ValueError):
    """A file of keys that is none; the message begins with its name."""


def read(files: Iterable[Tuple[str, bytes]]) -> TrustedKeys:
    """Return the keys of *files*, each a name and its content.

    A content is an OpenPGP keyring, armored or not, such as Apptainer's ``global-pgp-public``, or one public
    key in PEM. Raises KeyFileError.
    """
    pgp: List[PublicKey] = []
    pem: List[PemKey] = []
    for name, content in files:
        try:
            if b"-----BEGIN" in content and b"-----BEGIN PGP" not in content:
                pem.append(pem_key(content.decode("ascii")))
            else:
                pgp.extend(openpgp.public_keys(content))
        except ValueError as error:
            raise KeyFileError(f"{name}: {error}") from error
    unique = {key.fingerprint: key for key in pgp}
    return TrustedKeys(tuple(unique.values()), tuple({key.name: key for key in pem}.values()))


def fingerprint(keys: TrustedKeys, now: float) -> str:
    """Return what changes when a signature could be worth something else: with the keys, and every week.

    A key that expires is noticed within a week, as is a content that has changed below its file system.
    """
    names = sorted(key.name for key in keys.pem)
    return image_policy.fingerprint(openpgp.keyring(keys.pgp).hex(), names, int(now // _WEEK))
