# SPDX-License-Identifier: Apache-2.0
"""Signatures of SIF images, checked in this process, without a program per image.

OpenPGP: pysequoia, a binding of Sequoia. It was compared with PGPy, the only other OpenPGP library on PyPI
that needs no GnuPG. PGPy's last release, 0.6.0, is of 2022. It does not import on Python 3.13, as it needs
the module imghdr, which is gone, and it refuses what Apptainer 1.4 signs, as that armor has no checksum.
pysequoia has wheels for every Python this project supports, a release every few weeks, and the judgement of
Sequoia's standard policy: no SHA-1, no MD5, no short RSA. Its interface is not stable yet, so the range in
pyproject.toml is narrow, and what is used of it stands in two functions here.

DSSE: cryptography, which ansible-core needs, too.

Where these differ from Apptainer, they are stricter; molecule/image_corpus compares them case by case.
"""

from __future__ import annotations

from datetime import UTC, datetime

import pysequoia
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from fleet.errors import FleetError
from module_utils.sif import Sif
from module_utils.sif_integrity import DsseSignature, Integrity, SignatureReport
from module_utils.sif_signers import Authenticity, PemKey, TrustedKeys

MINIMUM_RSA_BITS = 2048

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


class LocalAuthenticator:
    """Checks signatures with keys in memory; may be used for any number of images, from one thread."""

    def __init__(self, keys: TrustedKeys) -> None:
        """Read the keys.

        :raises FleetError: one of them can't be used, named with what is wrong.
        """
        self._certificates = {key.fingerprint: _certificate(key.raw, key.fingerprint) for key in keys.pgp}
        self._public_keys = {key.name: _public_key(key) for key in keys.pem}

    def __call__(self, sif: Sif, integrity: Integrity) -> dict[int, Authenticity]:
        """Return an answer for each intact signature of a group, by its ID."""
        return {s.id: self._check(sif, s) for s in integrity.counting() if s.intact}

    def _check(self, sif: Sif, signature: SignatureReport) -> Authenticity:
        if signature.dsse:
            return self._dsse(signature.dsse)
        return self._pgp(sif.read_object(sif.object(signature.id)), signature)

    def _pgp(self, message: bytes, signature: SignatureReport) -> Authenticity:
        certificate = self._certificates.get(signature.claimed_signer)
        if certificate is None:
            return Authenticity(
                problem=f"its key {signature.claimed_signer or 'without name'} is none of the trusted ones",
                unknown_key=True,
            )
        problem = _pgp_problem(message, signature, certificate)
        return Authenticity(problem=problem) if problem else Authenticity(signature.claimed_signer)

    def _dsse(self, envelope: DsseSignature) -> Authenticity:
        for name, key in self._public_keys.items():
            try:
                _verify(key, envelope)
            except InvalidSignature:
                continue
            return Authenticity(name)
        return Authenticity(problem="its key is none of the trusted ones, or it is forged", unknown_key=True)


def _pgp_problem(message: bytes, signature: SignatureReport, certificate: pysequoia.Cert) -> str:
    """Return why a clear-signed message is not genuinely by the key of its descriptor, or nothing."""
    try:
        verified = pysequoia.verify(message, lambda _: [certificate])
    except (RuntimeError, ValueError) as error:
        return f"it is not genuine: {_first_line(error)}"
    primary = certificate.fingerprint.upper()
    signers = [(s.certificate.upper(), s.signing_key.upper()) for s in verified.valid_sigs]
    expired = certificate.expiration is not None and certificate.expiration <= datetime.now(UTC)
    objections = {
        "it is not exactly one signature": len(signers) != 1,
        "it is by another key than its descriptor says": signers != [(primary, primary)],
        "what was verified is another text than what was read": verified.bytes != signature.text.encode(),
        # Sequoia asks whether the key was good when it signed; Apptainer, whether it still is.
        f"its key {primary} has expired": expired,
        f"its key {primary} is revoked, or has no valid user ID": (
            certificate.is_revoked or not certificate.user_ids
        ),
    }
    return next((objection for objection, holds in objections.items() if holds), "")


def _certificate(raw: bytes, fingerprint: str) -> pysequoia.Cert:
    try:
        certificate = pysequoia.Cert.from_bytes(raw)
    except (RuntimeError, ValueError) as error:
        raise FleetError(
            f"OpenPGP key {fingerprint}: {_first_line(error)}", "export it anew, or use another key"
        ) from error
    if certificate.fingerprint.upper() != fingerprint:
        raise FleetError(f"OpenPGP key {fingerprint}: it is {certificate.fingerprint}", "export it anew")
    return certificate


def _public_key(key: PemKey) -> PublicKey:
    try:
        loaded = load_pem_public_key(key.pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FleetError(f"key {key.name}: {_first_line(error)}", "make it with openssl genpkey") from error
    if isinstance(loaded, rsa.RSAPublicKey) and loaded.key_size < MINIMUM_RSA_BITS:
        raise FleetError(f"key {key.name}: {loaded.key_size} bits of RSA", f"use {MINIMUM_RSA_BITS} or more")
    if not isinstance(loaded, PublicKey):
        raise FleetError(f"key {key.name}: not of RSA, ECDSA or Ed25519", "use one of these")
    return loaded


def _verify(key: PublicKey, envelope: DsseSignature) -> None:
    """Raise InvalidSignature unless it is by this key, as sigstore's verifiers judge with SHA-256."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(envelope.signature, envelope.message)
    elif isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(envelope.signature, envelope.message, ec.ECDSA(hashes.SHA256()))
    else:
        key.verify(envelope.signature, envelope.message, padding.PKCS1v15(), hashes.SHA256())


def _first_line(error: Exception) -> str:
    """Return what pysequoia says without the stack of its Rust functions."""
    return next(iter(str(error).splitlines()), type(error).__name__)
