"""OpenPGP keys of gpg that sign images as Apptainer does: with their primary key, in clear text."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator

import pysequoia
from sif_builder import MASK, Object, signature

from module_utils import openpgp

Gpg = Callable[..., bytes]


@contextlib.contextmanager
def gpg_home() -> Iterator[Gpg]:
    """Give what runs gpg with a home of its own; its path has to be short, as there are sockets in it."""
    home = tempfile.mkdtemp(prefix="gpg-", dir="/tmp")

    def run(*arguments: str, given: bytes | None = None) -> bytes:
        argv = ["gpg", "--homedir", home, "--batch", "--no-tty", "--quiet", "--passphrase", "", *arguments]
        return subprocess.run(argv, input=given, capture_output=True, check=True).stdout

    try:
        yield run
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"], check=False)
        shutil.rmtree(home, ignore_errors=True)


class Signer:
    """An OpenPGP key as Apptainer makes them, whose primary key signs."""

    def __init__(self, gpg: Gpg, name: str, *options: str, expires: str = "0") -> None:
        self.gpg = gpg
        gpg(*options, "--quick-generate-key", name, "ed25519", "cert,sign", expires)
        tsk = pysequoia.Tsk.from_bytes(gpg("--export-secret-keys", name))
        self.certificate = tsk.extract_certificate()
        self.fingerprint = self.certificate.fingerprint.upper()
        self.signer = tsk.signer() if expires == "0" else None

    @property
    def key(self) -> openpgp.PublicKey:
        (key,) = openpgp.public_keys(bytes(self.certificate))
        return key

    def clear_sign(self, text: bytes) -> bytes:
        message = pysequoia.sign(self.signer, text, mode=pysequoia.SignatureMode.CLEAR)
        return message.replace(b"\r\n", b"\n")

    def sign(self, text: bytes, *, group: int = 1, **more: object) -> Object:
        entity = bytes.fromhex(self.fingerprint)
        return signature(self.clear_sign(text), entity=entity, link=MASK | group, **more)
