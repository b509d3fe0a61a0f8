# SPDX-License-Identifier: Apache-2.0
"""Who signed a SIF image: the verdict on all of its signatures, by keys that the caller trusts.

`verify` joins two answers. `sif_integrity` says what each signature covers and whether the image is what it
says; an authenticator says which signatures are genuine, and whose. There are two of these: on a controller
`fleet.images.signers` checks signatures in this process, on a node `ApptainerAuthenticator` asks Apptainer.

An image is ``signed`` only if Apptainer would say so, too: every object is in a group, every group has a
signature, and every signature that is there is intact and by a key that is known. Signers are named by the
full fingerprint of their primary key (40 digits, upper case), keys in PEM by `PemKey.name`.

Source: apptainer/sif v2, pkg/integrity/verify.go; apptainer v1.4, internal/app/apptainer/verify.go.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import (
    Callable,
    Dict,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Type,
)

from .openpgp import PublicKey, keyring
from .sif import ImageFile, Sif
from .sif_integrity import Digests, Integrity, SignatureReport, examine

SIGNED, UNSIGNED, LEGACY, PARTIAL, UNKNOWN_KEY, INVALID = (
    *("signed", "unsigned", "legacy", "partial"),
    *("unknown-key", "invalid"),
)
#: From best to worst; an image is as good as the worst thing that is true of it.
STATES = (SIGNED, LEGACY, UNSIGNED, PARTIAL, UNKNOWN_KEY, INVALID)

_PEM = re.compile(r"\s*-----BEGIN PUBLIC KEY-----\n([A-Za-z0-9+/=\n]+)-----END PUBLIC KEY-----\s*")


class PemKey(NamedTuple):
    """A public key for DSSE envelopes, which ``apptainer sign --key`` makes.

    *name* is ``sha256:`` and the digest of its SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7) in DER, which
    ``openssl pkey -pubin -outform DER | sha256sum`` prints; *pem* is its text.
    """

    name: str
    pem: str


def pem_key(text: str) -> PemKey:
    """Return the key of a text with one block PUBLIC KEY. Raises ValueError for everything else."""
    match = _PEM.fullmatch(text.replace("\r\n", "\n"))
    if match is None:
        if "PRIVATE KEY" in text:
            raise ValueError("it holds a private key: give the public one, openssl pkey -pubout makes it")
        if "CERTIFICATE" in text:
            raise ValueError("it is a certificate: give its key, openssl x509 -noout -pubkey prints it")
        raise ValueError("it is no block -----BEGIN PUBLIC KEY-----")
    try:
        octets = base64.b64decode(match.group(1).replace("\n", ""), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("the block PUBLIC KEY is not base64") from error
    return PemKey(f"sha256:{hashlib.sha256(octets).hexdigest()}", match.group(0).strip() + "\n")


@dataclass(frozen=True)
class TrustedKeys:
    """The keys whose signatures mean something: OpenPGP keys, and keys in PEM."""

    pgp: Tuple[PublicKey, ...] = ()
    pem: Tuple[PemKey, ...] = ()


class Authenticity(NamedTuple):
    """Whether a signature is genuine: *signer* names its key if so, else *problem* says what is wrong.

    *unknown_key* if nothing is known against it but that its key is none of the trusted ones.
    """

    signer: str = ""
    problem: str = ""
    unknown_key: bool = False


#: Takes an image and what is known of its signatures; returns answers by ID, for intact ones that count.
Authenticator = Callable[[Sif, Integrity], Mapping[int, Authenticity]]


class SignatureVerdict(NamedTuple):
    """The verdict on one signature; *signer* is empty unless it is genuine and covers its whole group."""

    id: int
    group: Optional[int]
    format: str
    legacy: bool
    claimed_signer: str
    signer: str
    covers: Tuple[int, ...]
    problems: Tuple[str, ...]


@dataclass(frozen=True)
class Verification:
    """The verdict on all signatures of an image.

    *state* is the worst of `STATES` that is true: ``signed``, wholly and by known keys only; ``legacy``, by
    nothing but signatures of Singularity before 3.6, which count as none; ``unsigned``; ``partial``, with
    objects that no signature covers; ``unknown-key``, with a signature by none of the trusted keys;
    ``invalid``, with one that is damaged, forged, or about another image. *groups* names who signed each
    group wholly, and *problems* says why it is not ``signed``.
    """

    state: str
    groups: Mapping[int, FrozenSet[str]]
    signatures: Tuple[SignatureVerdict, ...]
    problems: Tuple[str, ...]

    @property
    def signers(self) -> FrozenSet[str]:
        """Those who signed every object of every group; nobody unless the image is ``signed``."""
        if self.state != SIGNED:
            return frozenset()
        return frozenset.intersection(*self.groups.values())

    def covered_by(self, allowed: Iterable[str]) -> bool:
        """Whether it is ``signed``, and each of its groups wholly by one of the *allowed* at least."""
        wanted = frozenset(allowed)
        return self.state == SIGNED and all(signers & wanted for signers in self.groups.values())


def verify(sif: Sif, authenticate: Authenticator, digests: Optional[Digests] = None) -> Verification:
    """Return the verdict on an image that is open. Raises SifError if it can't be read."""
    integrity = examine(sif, digests)
    answers = authenticate(sif, integrity) if any(s.intact for s in integrity.counting()) else {}
    verdicts = tuple(_verdict(s, answers.get(s.id)) for s in integrity.signatures)
    groups = {
        group: frozenset(v.signer for v in verdicts if v.signer and v.group == group)
        for group in integrity.groups
    }
    findings = [*_judge_image(integrity, verdicts), *_judge_signatures(integrity, verdicts, answers)]
    if not findings and not all(s.id in answers for s in integrity.counting()):
        findings = [(INVALID, "not all of its signatures were checked")]
    state = max((state for state, _ in findings), key=STATES.index, default=SIGNED)
    return Verification(state, groups, verdicts, tuple(problem for _, problem in findings))


def _verdict(signature: SignatureReport, answer: Optional[Authenticity]) -> SignatureVerdict:
    problems = list(signature.problems)
    if signature.missing:
        problems.append(f"it leaves out {_objects(signature.missing)} of group {signature.group}")
    if answer and answer.problem:
        problems.append(answer.problem)
    return SignatureVerdict(
        signature.id,
        signature.group,
        signature.format,
        signature.legacy,
        signature.claimed_signer,
        answer.signer if answer and signature.intact else "",
        signature.covers,
        tuple(problems),
    )


def _objects(ids: Sequence[int]) -> str:
    return f"object{'s' if len(ids) > 1 else ''} {', '.join(map(str, ids))}"


def _judge_image(integrity: Integrity, verdicts: Tuple[SignatureVerdict, ...]) -> Iterator[Tuple[str, str]]:
    """Yield what keeps the image as such from being signed: a state and a sentence."""
    counting = integrity.counting()
    if not counting:
        if not verdicts:
            yield UNSIGNED, "it has no signature"
        elif all(s.legacy for s in integrity.signatures):
            yield LEGACY, "its signatures are those of Singularity before 3.6, which do not cover headers"
        else:
            yield INVALID, "none of its signatures is one of a group"
        return
    for problem in integrity.problems:
        yield PARTIAL, problem
    for group, ids in integrity.groups.items():
        if not any(s.group == group for s in counting):
            yield PARTIAL, f"group {group} ({_objects(ids)}) has no signature"
    if len({s.format for s in counting}) > 1:
        yield INVALID, "it has signatures of OpenPGP and of DSSE, and Apptainer can check one kind only"
    elif len({v.signer for v in verdicts if v.signer and v.format == "dsse"}) > 1:
        yield UNKNOWN_KEY, "its DSSE envelopes are of several keys, and Apptainer can be given one key only"


def _judge_signatures(
    integrity: Integrity, verdicts: Tuple[SignatureVerdict, ...], answers: Mapping[int, Authenticity]
) -> Iterator[Tuple[str, str]]:
    """Yield what is wrong with signatures of groups: a state and a sentence."""
    counting = {s.id: s for s in integrity.counting()}
    for verdict in verdicts:
        signature, answer = counting.get(verdict.id), answers.get(verdict.id)
        if signature is None:
            continue
        if signature.problems or (answer and answer.problem and not answer.unknown_key):
            state = INVALID
        elif answer and answer.unknown_key:
            state = UNKNOWN_KEY
        else:
            state = PARTIAL
        for problem in verdict.problems:
            yield state, f"signature {verdict.id}: {problem}"


class ApptainerAuthenticator:
    """Asks ``apptainer verify`` of this machine, with a keyring of its own. Use it as a context manager.

    Its word counts only together with what was read here: that it ended well is not enough, it also has to
    name every object of every signature, by the key that the signature claims. Apptainer knows the keys of
    the machine's global keyring, too; they are none of the trusted ones for that.
    """

    def __init__(self, keys: TrustedKeys, program: str = "apptainer", timeout: float = 600) -> None:
        self._keys = keys
        self._program = program
        self._timeout = timeout
        self._folder: Optional[str] = None

    def __enter__(self) -> ApptainerAuthenticator:
        self._folder = tempfile.mkdtemp(prefix="apptainer-keys-")
        Path(self._folder, "pgp-public").write_bytes(keyring(self._keys.pgp))
        for number, key in enumerate(self._keys.pem):
            Path(self._folder, f"{number}.pem").write_text(key.pem)
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        value: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __call__(self, sif: Sif, integrity: Integrity) -> Dict[int, Authenticity]:
        """Return what Apptainer says of the signatures.

        It is not asked about signatures by keys that are not trusted. Where some are damaged or missing it is
        asked about those groups only that have all theirs.
        Raises OSError or subprocess.TimeoutExpired if it can't be run, and TypeError for an image that was
        not read from a file.
        """
        counting = integrity.counting()
        fingerprints = {key.fingerprint for key in self._keys.pgp}
        strangers = {
            s.id: Authenticity(
                problem=f"its key {s.claimed_signer or 'without name'} is none of the trusted ones",
                unknown_key=True,
            )
            for s in counting
            if s.intact and s.format == "pgp" and s.claimed_signer not in fingerprints
        }
        if integrity.complete and not strangers:
            return self._check(sif, counting, [])
        answers = dict(strangers)
        # Apptainer refuses groups, too, where an object is in none.
        for group in () if integrity.problems else integrity.groups:
            signatures = [s for s in counting if s.group == group]
            formats = {s.format for s in signatures}
            if len(formats) == 1 and all(s.intact and s.id not in strangers for s in signatures):
                answers.update(self._check(sif, signatures, ["--group-id", str(group)]))
        return answers

    def _check(
        self, sif: Sif, signatures: Sequence[SignatureReport], options: List[str]
    ) -> Dict[int, Authenticity]:
        """Return answers for all signatures of an image or a group, which have one format."""
        if signatures[0].format == "pgp":
            problem = self._ask(sif, signatures, ["--local", *options])
            if not problem:
                return {s.id: Authenticity(s.claimed_signer) for s in signatures}
            return {s.id: Authenticity(problem=problem) for s in signatures}
        problem = "no key is given that could be its own"
        for number, key in enumerate(self._keys.pem):
            problem = self._ask(sif, signatures, ["--key", f"{self._folder}/{number}.pem", *options])
            if not problem:
                return {s.id: Authenticity(key.name) for s in signatures}
        return {s.id: Authenticity(problem=problem, unknown_key=True) for s in signatures}

    def _ask(self, sif: Sif, signatures: Sequence[SignatureReport], options: List[str]) -> str:
        """Return why Apptainer does not vouch for these signatures, or nothing if it does."""
        image = sif.source
        if not isinstance(image, ImageFile) or self._folder is None:
            raise TypeError("Apptainer reads files, and this is none, or there is no keyring")
        ended = subprocess.run(
            [self._program, "verify", *options, "--json", f"/proc/self/fd/{image.fd}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[image.fd],
            env={
                "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
                "HOME": str(self._folder),
                "APPTAINER_KEYSDIR": str(self._folder),
            },
            timeout=self._timeout,
            check=False,
        )
        if ended.returncode:
            return f"apptainer verify says: {_last_line(ended.stderr)}"
        expected = Counter(
            (sif.object(i).data_type.label, s.claimed_signer.lower()) for s in signatures for i in s.covers
        )
        try:
            named = Counter(
                (entry["Partition"], entry["Fingerprint"])
                for entry in (item["Signer"] for item in json.loads(ended.stdout)["SignerKeys"])
                if entry["DataCheck"] is True and (entry["KeyCheck"] is True or not entry["Fingerprint"])
            )
        except (ValueError, KeyError, TypeError):
            return "apptainer verify ended well, and its report can't be understood"
        if named != expected:
            return "apptainer verify ended well, and vouches for other objects than the signatures name"
        return ""


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
    return re.sub(r"^FATAL:\s*|\x1b\[[0-9;]*m", "", lines[-1])
