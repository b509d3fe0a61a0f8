# SPDX-License-Identifier: Apache-2.0
"""What the signatures of a SIF image say, and whether the image is what they say.

A signature is a text in a signed envelope: digests of the header, of the descriptors and of the contents of
all objects of one group. `examine` reads these texts strictly and compares each digest; it finds out which
objects a signature covers *if it is genuine*. Whether it is, and whose it is, is what `sif_signers` asks.

What no signature protects, by design of the format: the header's architecture and times, the order and the
places of descriptors and objects, the numbers of groups, modification times, bytes that belong to no object.

Source: apptainer/sif v2, pkg/integrity/{metadata,digest,select,clearsign,dsse}.go.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import struct
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .openpgp import OpenPGPError, clear_signed
from .sif import Descriptor, HashType, Sif

#: Bytes of one signature, enough for thousands of objects, and number of signatures of one image.
MAX_SIGNATURE = 1024 * 1024
MAX_SIGNATURES = 64
#: Digests of 256 bits and more; upstream refuses SHA-1 since CVE-2022-39237.
ALGORITHMS: Mapping[str, int] = {"sha256": 64, "sha384": 96, "sha512": 128}
DSSE_PAYLOAD_TYPE = "application/vnd.sylabs.sif-metadata+json"

_LEGACY = re.compile(r"SIFHASH:\n[0-9a-f]{32,128}")
_DIGEST = re.compile(r"(sha256|sha384|sha512):([0-9a-f]+)")
_RELATIVE = struct.Struct("<I")
# RFC 4880 sections 5.2.1 and 9.4: a signature of text, by a digest of the SHA-2 family.
_TEXT_SIGNATURE = 1
_SHA2 = frozenset([8, 9, 10, 11])
# Small enough for a processor's cache, large enough for a call not to count.
_CHUNK = 256 * 1024


class IntegrityError(ValueError):
    """A signature that can't be understood; the message says why, for people."""


class Digest(NamedTuple):
    """A digest: *algorithm* is a key of `ALGORITHMS`, *value* hexadecimal, lower case."""

    algorithm: str
    value: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value}"


class SignedObject(NamedTuple):
    """What a signature says of one object; *relative_id* is its ID less the lowest one of its group."""

    relative_id: int
    descriptor: Digest
    content: Digest


class Metadata(NamedTuple):
    """What a signature says of an image."""

    header: Digest
    objects: Tuple[SignedObject, ...]


class DsseSignature(NamedTuple):
    """The signature of a DSSE envelope: *message* is what is signed, *signature* are its octets."""

    message: bytes
    signature: bytes


@dataclass(frozen=True)
class SignatureReport:
    """A signature object, compared with the image.

    *id* is that of the object, *group* the group it is linked to, or None if it is linked to an object.
    *format* is ``pgp`` or ``dsse``. *legacy* is one of Singularity before 3.6: it covers contents only,
    neither header nor descriptors, and counts for nothing here. *claimed_signer* is the fingerprint in its
    descriptor, which proves nothing; *text* is what is signed, *dsse* what of an envelope is. *covers* are
    the IDs of the objects all of whose digests fit; *missing* those of the group that it does not name.
    *problems* are sentences; a signature that has one covers nothing reliably.
    """

    id: int
    group: Optional[int]
    format: str
    legacy: bool
    claimed_signer: str
    text: str
    covers: Tuple[int, ...]
    missing: Tuple[int, ...]
    problems: Tuple[str, ...]
    dsse: Optional[DsseSignature] = None

    @property
    def intact(self) -> bool:
        """Whether it names exactly the objects of its group, and every digest fits."""
        return bool(self.covers) and not (self.legacy or self.missing or self.problems)


@dataclass(frozen=True)
class Integrity:
    """All signatures of an image by ID, compared with it; *groups* are the IDs of the objects of each group.

    *problems* are those of the image as such, which no signature can cover wholly.
    """

    signatures: Tuple[SignatureReport, ...]
    groups: Mapping[int, Tuple[int, ...]]
    problems: Tuple[str, ...]

    def counting(self) -> Tuple[SignatureReport, ...]:
        """Return the signatures that Apptainer looks at: those of a group that are not legacy ones."""
        return tuple(s for s in self.signatures if s.group is not None and not s.legacy)

    @property
    def complete(self) -> bool:
        """Whether the image is wholly signed if only its signatures are genuine."""
        counting = self.counting()
        return (
            bool(counting)
            and not self.problems
            and all(s.intact for s in counting)
            and {s.group for s in counting} == set(self.groups)
            and len({s.format for s in counting}) == 1
        )


class Digests:
    """Digests of an image, each content read once for each algorithm.

    Raises SifError from all its methods if the file can't be read to where it said it would end.
    """

    def __init__(self, sif: Sif) -> None:
        self._sif = sif
        self._contents: Dict[Tuple[str, int], str] = {}

    def header(self, algorithm: str) -> Digest:
        """Return the digest of the header: launch script, magic, version and ID."""
        raw = self._sif.header.raw
        return Digest(algorithm, hashlib.new(algorithm, raw[:45] + raw[48:64]).hexdigest())

    def descriptor(self, descriptor: Descriptor, relative_id: int, algorithm: str) -> Digest:
        """Return the digest of a descriptor: type, relative ID, link, size, creation, owners, name, extra."""
        raw = descriptor.raw
        protected = b"".join(
            (raw[:5], _RELATIVE.pack(relative_id), raw[13:17], raw[25:33], raw[41:49], raw[57:])
        )
        return Digest(algorithm, hashlib.new(algorithm, protected).hexdigest())

    def content(self, descriptor: Descriptor, algorithm: str) -> Digest:
        """Return the digest of the content of an object."""
        key = (algorithm, descriptor.id)
        if key not in self._contents:
            hasher = hashlib.new(algorithm)
            for _, chunk in self._sif.source.chunks(descriptor.offset, descriptor.end, _CHUNK):
                hasher.update(chunk)
            self._contents[key] = hasher.hexdigest()
        return Digest(algorithm, self._contents[key])

    def whole(self, algorithms: Sequence[str] = ("sha256",)) -> str:
        """Return the SHA-256 of the whole file, hexadecimal, as `sha256sum` does.

        The digests of objects in these *algorithms* are computed in the same pass, so that a network file
        system is read once.
        """
        whole = hashlib.sha256()
        read = 0
        # Objects never overlap: the reader has seen to that.
        for descriptor in sorted(self._sif.descriptors, key=lambda d: d.offset):
            self._update(whole, read, descriptor.offset, [])
            hashers = [hashlib.new(algorithm) for algorithm in algorithms]
            self._update(whole, descriptor.offset, descriptor.end, hashers)
            for hasher in hashers:
                self._contents[(hasher.name, descriptor.id)] = hasher.hexdigest()
            read = descriptor.end
        self._update(whole, read, self._sif.file_size, [])
        return whole.hexdigest()

    def _update(self, whole: Any, begin: int, end: int, hashers: Sequence[Any]) -> None:
        for _, chunk in self._sif.source.chunks(begin, end, _CHUNK):
            whole.update(chunk)
            for hasher in hashers:
                hasher.update(chunk)


def examine(sif: Sif, digests: Optional[Digests] = None) -> Integrity:
    """Compare an image with all of its signatures, without checking these.

    Contents are read only for objects that a signature names and whose descriptor fits. *digests* may hold
    what was computed before. Raises SifError if the file can't be read.
    """
    digests = digests or Digests(sif)
    groups = {group: tuple(d.id for d in sif.objects(group)) for group in sif.groups()}
    problems = [
        f"object {d.id} ({d.data_type.label}) is in no group, and signatures are made of groups"
        for d in sif.objects(0)
    ]
    problems += [f"group {group} has nothing but signatures" for group, ids in groups.items() if not ids]
    signatures = sif.signatures()
    if len(signatures) > MAX_SIGNATURES:
        problems.append(f"it has {len(signatures)} signatures, of which {MAX_SIGNATURES} were looked at")
    return Integrity(
        tuple(_examine(sif, descriptor, digests) for descriptor in signatures[:MAX_SIGNATURES]),
        groups,
        tuple(problems),
    )


def _examine(sif: Sif, descriptor: Descriptor, digests: Digests) -> SignatureReport:
    group = descriptor.link.id if descriptor.link and descriptor.link.is_group else None
    claimed = descriptor.signature.fingerprint if descriptor.signature else ""
    kind, legacy, text, dsse = "pgp", False, "", None
    covers: Tuple[int, ...] = ()
    missing: Tuple[int, ...] = ()
    problems: List[str] = []
    try:
        if descriptor.size > MAX_SIGNATURE:
            raise IntegrityError(f"it has {descriptor.size} bytes, and the limit is {MAX_SIGNATURE}")
        octets = sif.read_object(descriptor, MAX_SIGNATURE)
        if octets[:1] == b"{":
            kind = "dsse"
            text, dsse = _dsse(octets, descriptor)
        else:
            text = _pgp(octets, claimed)
            legacy = bool(_LEGACY.fullmatch(text))
        if not legacy:
            metadata = parse_metadata(text)
            if group is None:
                raise IntegrityError("it is linked to an object, and only signatures of groups count")
            covers, missing, problems = _compare(sif, group, metadata, digests)
    except IntegrityError as error:
        problems = [str(error)]
    except OpenPGPError as error:
        problems = [f"it is no clear-signed message that can be read in one way only: {error}"]
    return SignatureReport(
        descriptor.id, group, kind, legacy, claimed, text, covers, missing, tuple(problems), dsse
    )


def _pgp(octets: bytes, claimed_signer: str) -> str:
    message = clear_signed(octets)
    issuer = message.signature.issuer
    if claimed_signer and not (issuer and claimed_signer.endswith(issuer)):
        # A subkey could have made it; `apptainer sign` has primary keys only.
        raise IntegrityError(
            f"it says that {issuer or 'nobody'} made it, and its descriptor {claimed_signer}"
        )
    if message.signature.kind != _TEXT_SIGNATURE:
        raise IntegrityError(
            f"a signature of type {message.signature.kind:#x}, where text has {_TEXT_SIGNATURE}"
        )
    if message.signature.hash_algorithm not in _SHA2:
        raise IntegrityError(f"digest algorithm {message.signature.hash_algorithm}, which is none of SHA-2")
    return message.text


def _dsse(octets: bytes, descriptor: Descriptor) -> Tuple[str, DsseSignature]:
    """Return the payload of a DSSE envelope and what there is to verify (DSSE protocol 1.0)."""
    envelope = _parse_json(octets)
    _expect_keys(envelope, ("payloadType", "payload", "signatures"), "the envelope")
    if envelope["payloadType"] != DSSE_PAYLOAD_TYPE:
        raise IntegrityError(f"payload of type {str(envelope['payloadType'])[:80]!r}, not of a SIF image")
    signatures = envelope["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise IntegrityError("an envelope that has not exactly one signature")
    if not set(signatures[0]) <= {"keyid", "sig"}:
        raise IntegrityError("unknown fields in the signature of the envelope")
    payload = _base64(envelope["payload"], "the payload")
    signature = _base64(signatures[0].get("sig"), "the signature")
    if descriptor.signature and descriptor.signature.hash_type is not HashType.SHA256:
        raise IntegrityError("an envelope by another digest than SHA-256")
    kind = DSSE_PAYLOAD_TYPE.encode()
    message = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    try:
        return payload.decode("ascii"), DsseSignature(message, signature)
    except UnicodeDecodeError as error:
        raise IntegrityError("the payload is not ASCII") from error


def _base64(text: Any, what: str) -> bytes:
    if not isinstance(text, str):
        raise IntegrityError(f"{what} of the envelope is no text")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise IntegrityError(f"{what} of the envelope is not base64") from error
    # Two texts of one meaning: Python takes stray bits after the last octet.
    if base64.b64encode(data).decode() != text:
        raise IntegrityError(f"{what} of the envelope is not base64: stray bits at its end")
    return data


def parse_metadata(text: str) -> Metadata:
    """Return what a signed text says. Raises IntegrityError unless it is one that upstream writes.

    Upstream's parser takes unknown, repeated and differently spelled fields, which could be read in two ways.
    """
    whole = _parse_json(text.encode())
    _expect_keys(whole, ("version", "header", "objects"), "the signed text")
    if whole["version"] != 1 or isinstance(whole["version"], bool):
        raise IntegrityError(f"metadata of version {str(whole['version'])[:20]}, and only 1 is known")
    _expect_keys(whole["header"], ("digest",), "the signed header")
    if not isinstance(whole["objects"], list) or not whole["objects"]:
        raise IntegrityError("the signed text names no objects")
    objects = []
    for item in whole["objects"]:
        _expect_keys(item, ("relativeId", "descriptorDigest", "objectDigest"), "a signed object")
        number = item["relativeId"]
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**28:
            raise IntegrityError(f"a signed object with the relative ID {str(number)[:20]}")
        objects.append(SignedObject(number, _digest(item["descriptorDigest"]), _digest(item["objectDigest"])))
    if len({item.relative_id for item in objects}) != len(objects):
        raise IntegrityError("the signed text names an object twice")
    return Metadata(_digest(whole["header"]["digest"]), tuple(objects))


def _parse_json(octets: bytes) -> Any:
    try:
        return json.loads(
            octets.decode("ascii"), object_pairs_hook=_once, parse_constant=_no_constant, parse_int=_small
        )
    except IntegrityError:
        raise
    except (ValueError, RecursionError) as error:
        raise IntegrityError("it is no JSON") from error


def _once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise IntegrityError("a field stands twice in its JSON")
    return fields


def _small(digits: str) -> int:
    # Python takes quadratic time for long numbers.
    if len(digits) > 10:  # noqa: PLR2004 - 32 bits
        raise IntegrityError("a number in its JSON is too large")
    return int(digits)


def _no_constant(name: str) -> Any:
    raise IntegrityError(f"{name} is no JSON")


def _expect_keys(value: Any, keys: Tuple[str, ...], what: str) -> None:
    if not isinstance(value, dict) or set(value) != set(keys):
        raise IntegrityError(f"{what} has other fields than {', '.join(keys)}")


def _digest(text: Any) -> Digest:
    match = _DIGEST.fullmatch(text) if isinstance(text, str) else None
    if not match or len(match.group(2)) != ALGORITHMS[match.group(1)]:
        raise IntegrityError(f"{str(text)[:80]!r} is no digest that counts")
    return Digest(match.group(1), match.group(2))


def _compare(
    sif: Sif, group: int, metadata: Metadata, digests: Digests
) -> Tuple[Tuple[int, ...], Tuple[int, ...], List[str]]:
    """Return the IDs of objects that are as signed, those of the group that are not named, and problems."""
    objects = {d.id: d for d in sif.objects(group)}
    if not objects:
        return (), (), [f"group {group} has no objects"]
    first = min(objects)
    named = {first + item.relative_id: item for item in metadata.objects}
    problems = [
        f"it names object {i}, which is not in group {group}" for i in sorted(set(named) - set(objects))
    ]
    if digests.header(metadata.header.algorithm) != metadata.header:
        problems.append("the header is not the one that was signed")
    covers = []
    for identifier in sorted(set(named) & set(objects)):
        item, descriptor = named[identifier], objects[identifier]
        what = f"object {identifier} ({descriptor.data_type.label})"
        if digests.descriptor(descriptor, item.relative_id, item.descriptor.algorithm) != item.descriptor:
            problems.append(f"the descriptor of {what} is not the one that was signed")
        elif digests.content(descriptor, item.content.algorithm) != item.content:
            problems.append(f"the content of {what} is not the one that was signed")
        else:
            covers.append(identifier)
    return tuple(covers), tuple(sorted(set(objects) - set(named))), problems
