# SPDX-License-Identifier: Apache-2.0
"""Sign a SIF with an OpenPGP key, by Apptainer, and prove that all of it is signed.

The secret key is in a keyring of its own, in memory, for as long as this takes; its passphrase goes through a
pipe. Neither ever stands in arguments or in the environment of a program.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator, Optional, Sequence, Tuple

from . import atomic_file, image_keys, openpgp, sif, sif_signers
from .apptainer_packages import ENVIRONMENT
from .sif_signers import TrustedKeys
from .typed import printable

#: A file system in memory.
RUNTIME = "/run"


class SigningError(Exception):
    """An image that can't be signed; the message says why, and the mend."""


@dataclass(frozen=True)
class Signing:
    """With which key an image is signed; *key* is a secret key, armored, with its *passphrase* or none."""

    fingerprint: str
    key: str = field(repr=False)
    passphrase: str = field(default="", repr=False)


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """Give a folder in memory that nobody else can enter, and remove it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="apptainer-fleet-", dir=RUNTIME))
    try:
        yield folder
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)


def check(signing: Signing) -> None:
    """Raise SigningError unless the key can be used: for whoever has work to do before there is an image."""
    with temporary() as folder:
        _import(signing, folder)


def sign(part: Path, signing: Optional[Signing], keyrings: Sequence[Path]) -> Tuple[str, ...]:
    """Sign *part* unless that key has signed all of it, and return who signed all of it.

    *keyrings* are files with the keys of others who may have signed it. Without *signing* they alone count.
    Raises SigningError, KeyFileError, SifError and OSError.
    """
    keys = image_keys.read((str(path), path.read_bytes()) for path in keyrings)
    if signing is None:
        return _verified(part, keys)[0]
    with temporary() as folder:
        own = _import(signing, folder)
        keys = TrustedKeys((*(key for key in keys.pgp if key.fingerprint != own.fingerprint), own), keys.pem)
        signers, _ = _verified(part, keys)
        if signing.fingerprint in signers:
            return signers
        code, said = _apptainer(["sign", str(part)], folder, signing.passphrase)
        if code != 0:
            raise SigningError(f"the image could not be signed: {said}")
        signers, problem = _verified(part, keys)
    if signing.fingerprint not in signers:
        raise SigningError(
            f"the image was signed with {signing.fingerprint}, and its signatures are not good: {problem}"
        )
    return signers


def _import(signing: Signing, folder: Path) -> openpgp.PublicKey:
    """Give Apptainer the secret key, and return the public one. Raises SigningError."""
    (folder / "keys").mkdir(mode=0o700)
    secret = folder / "secret.asc"
    atomic_file.replace(str(secret), signing.key.encode(), 0o400)
    code, said = _apptainer(["key", "import", str(secret)], folder, signing.passphrase)
    secret.unlink()
    if code != 0:
        raise SigningError(f"the signing key can't be used; is its passphrase right? Apptainer said: {said}")
    try:
        (key,) = openpgp.public_keys((folder / "keys/pgp-public").read_bytes())
    except (OSError, ValueError) as error:
        raise SigningError(
            f"the signing key must be one secret OpenPGP key, and nothing else: {error}"
        ) from error
    if key.fingerprint != signing.fingerprint:
        raise SigningError(
            f"the signing key has the fingerprint {key.fingerprint}, and {signing.fingerprint} was promised"
        )
    return key


def _verified(part: Path, keys: TrustedKeys) -> Tuple[Tuple[str, ...], str]:
    """Return who signed all of an image, and what is wrong with its signatures."""
    with sif.open_image(part) as image, sif_signers.ApptainerAuthenticator(keys) as authenticate:
        result = sif_signers.verify(sif.read(image), authenticate)
    return tuple(sorted(result.signers)), "; ".join(result.problems)


def _apptainer(arguments: Sequence[str], folder: Path, passphrase: str) -> Tuple[int, str]:
    """Run Apptainer as root, with a keyring of its own; return its code, and its last words."""
    ended = subprocess.run(
        ["apptainer", *arguments],
        # It asks for it there where there is no terminal.
        input=f"{passphrase}\n".encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={
            **ENVIRONMENT,
            "HOME": str(folder),
            "APPTAINER_CONFIGDIR": str(folder),
            "APPTAINER_KEYSDIR": str(folder / "keys"),
        },
        cwd="/",
        start_new_session=True,
        check=False,
    )
    lines = ended.stdout.decode("utf-8", "replace").strip().splitlines()
    return ended.returncode, printable(lines[-1]) if lines else "nothing"
