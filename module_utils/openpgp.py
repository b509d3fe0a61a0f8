# SPDX-License-Identifier: Apache-2.0
"""OpenPGP: public keys and clear-signed messages, as far as keyrings and SIF images need them.

Nothing here checks a signature: what is proved is that the primary key of a key is the one whose fingerprint
was promised. Whether its user IDs and subkeys are bound to it is judged by the program that uses the keyring.

Sources: RFC 4880 and RFC 9580, whose sections are named below; algorithm numbers from RFC 9580 section 9.1.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Iterable, Iterator, List, Mapping, Tuple

# Far above every real key, photographs in user attributes included.
MAX_BYTES = 4 * 1024 * 1024
MAX_PACKETS = 20_000

SIGNATURE, SECRET_KEY, PUBLIC_KEY, SECRET_SUBKEY, USER_ID, PUBLIC_SUBKEY, USER_ATTRIBUTE = (
    2,
    5,
    6,
    7,
    13,
    14,
    17,
)

_ARMOR_BEGIN = re.compile(r"-----BEGIN PGP ([A-Z0-9 ,/]+)-----")
_ARMOR_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]*: .*")
_ARMOR_LINE = re.compile(r"[A-Za-z0-9+/]{1,76}={0,2}")
_ARMOR_CHECKSUM = re.compile(r"=[A-Za-z0-9+/]{4}")
# What programs agree on in a clear-signed message: no blank at the end of a line, no dash at its beginning.
_HASH_HEADER = re.compile(r"Hash: SHA(224|256|384|512)(,SHA(224|256|384|512))*")
_PLAIN_LINE = re.compile(r"[!-,.-~]([ -~]*[!-~])?")
_FINGERPRINT = re.compile(r"[0-9A-F]{40}")

# What the body of a key packet holds after its algorithm (RFC 9580 section 5.5.5): so many multiprecision
# integers (m), a curve's name (c), key derivation parameters (k), or octets of a fixed number.
_ALGORITHMS: Mapping[int, Tuple[str, str]] = {
    1: ("rsa", "mm"),
    2: ("rsa-encrypt", "mm"),
    3: ("rsa-sign", "mm"),
    16: ("elgamal", "mmm"),
    17: ("dsa", "mmmm"),
    18: ("ecdh", "cmk"),
    19: ("ecdsa", "cm"),
    22: ("eddsa", "cm"),
    25: ("x25519", "32"),
    26: ("x448", "56"),
    27: ("ed25519", "32"),
    28: ("ed448", "57"),
}
_NO_SECRETS = (
    "it holds a secret key, which belongs on no node and into no repository: "
    "export the public one with gpg --armor --export, and consider this one as disclosed"
)
_TAG_NAMES: Mapping[int, str] = {
    1: "an encrypted message",
    3: "an encrypted message",
    8: "compressed data",
    9: "encrypted data",
    11: "a message",
    12: "a trust packet of one program's own keyring",
    18: "encrypted data",
    20: "encrypted data",
}


class OpenPGPError(ValueError):
    """What is no keyring of public keys; the message says what is wrong and how to mend it."""


@dataclass(frozen=True)
class Packet:
    """A packet: its type, its *body*, and *raw*, the octets it came as, header included."""

    tag: int
    body: bytes
    raw: bytes


@dataclass(frozen=True)
class PublicKey:
    """A transferable public key.

    *fingerprint* has 40 hexadecimal digits, upper case; *algorithm* is a name such as ``rsa``; *subkeys* is
    their number; *raw* are the octets of all packets.
    """

    fingerprint: str
    user_ids: Tuple[str, ...]
    algorithm: str
    subkeys: int
    raw: bytes

    def describe(self) -> str:
        """Return one line for people; its digest tells two states of one key apart."""
        names = "; ".join(self.user_ids) or "no user ID"
        digest = hashlib.sha256(self.raw).hexdigest()[:16]
        return f"{self.fingerprint}  {names}  ({self.algorithm}, sha256 {digest})"


def check_fingerprint(text: object) -> str:
    """Return *text* as 40 hexadecimal digits, upper case; blanks as gpg prints them may be there.

    Raises OpenPGPError for anything shorter, as a key can be made to fit a short ID, and for fingerprints
    of other versions than 4, which Apptainer's lists of keys cannot name.
    """
    if not isinstance(text, str):
        raise OpenPGPError(f"{text!r} is not a fingerprint: write its 40 hexadecimal digits in quotes")
    digits = re.sub(r" +", "", text).upper()
    if _FINGERPRINT.fullmatch(digits):
        return digits
    if re.fullmatch(r"(0X)?[0-9A-F]{8}([0-9A-F]{8})?", digits):
        raise OpenPGPError(
            f"{text!r} is a short key ID, which others can make a key for: "
            "write the full fingerprint of 40 digits, which gpg --show-keys prints"
        )
    if re.fullmatch(r"[0-9A-F]{32}", digits):
        raise OpenPGPError(
            f"{text!r} is a fingerprint of version 3 (MD5), which is no protection: use another key"
        )
    if re.fullmatch(r"[0-9A-F]{64}", digits):
        raise OpenPGPError(
            f"{text!r} is a fingerprint of version 5 or 6, and Apptainer can name keys of version 4 only: "
            "make a key of version 4"
        )
    raise OpenPGPError(f"{text!r} is not a fingerprint of 40 hexadecimal digits")


def crc24(data: bytes) -> int:
    """Return the checksum of *data* (RFC 4880 section 6.1)."""
    crc = 0xB704CE
    for octet in data:
        crc = (crc << 8 & 0xFFFFFF) ^ _CRC24[crc >> 16 ^ octet]
    return crc


def _crc24_of(octet: int) -> int:
    crc = octet << 16
    for _ in range(8):
        crc <<= 1
        if crc & 0x1000000:
            crc ^= 0x1864CFB
    return crc


_CRC24 = tuple(map(_crc24_of, range(256)))


def dearmor(text: str) -> bytes:
    """Return the packets of *text*: one or more armored public keys, and nothing else but empty lines.

    A checksum has to fit; it may be missing (RFC 9580 section 6.1). Raises OpenPGPError.
    """
    lines = iter(text.splitlines())
    data = b"".join(_armored_blocks(lines))
    if not data:
        raise OpenPGPError("there is no line -----BEGIN PGP PUBLIC KEY BLOCK-----")
    return data


def _armored_blocks(lines: Iterator[str]) -> Iterator[bytes]:
    for line in lines:
        if not line.strip():
            continue
        begin = _ARMOR_BEGIN.fullmatch(line.rstrip())
        if begin is None:
            raise OpenPGPError(f"{line[:40]!r} stands outside of an armored key: remove it")
        kind = begin.group(1)
        if "PRIVATE" in kind or "SECRET" in kind:
            raise OpenPGPError(_NO_SECRETS)
        if kind != "PUBLIC KEY BLOCK":
            raise OpenPGPError(f"it is a PGP {kind}, not a PGP PUBLIC KEY BLOCK")
        yield _armored_block(lines, f"-----END PGP {kind}-----", "an armored key")


def _armored_block(lines: Iterator[str], end: str, what: str) -> bytes:
    for line in lines:
        if not line.strip():
            break
        if not _ARMOR_HEADER.fullmatch(line.rstrip()):
            raise OpenPGPError(f"{line[:40]!r} is no armor header, and the empty line after those is missing")
    encoded: List[str] = []
    checksum = ""
    for line in lines:
        stripped = line.rstrip()
        if stripped == end:
            break
        if checksum:
            raise OpenPGPError(f"{line[:40]!r} follows the checksum of {what}")
        if _ARMOR_CHECKSUM.fullmatch(stripped):
            checksum = stripped[1:]
        elif _ARMOR_LINE.fullmatch(stripped):
            encoded.append(stripped)
        else:
            raise OpenPGPError(f"{line[:40]!r} is no line of {what}")
    else:
        raise OpenPGPError(f"the line {end} is missing: it is cut off")
    data = _base64("".join(encoded), what)
    if checksum and int.from_bytes(_base64(checksum, what), "big") != crc24(data):
        raise OpenPGPError(f"the checksum (CRC-24) of {what} does not fit: it was altered, copy it again")
    if not data:
        raise OpenPGPError(f"{what} is empty")
    return data


def _base64(text: str, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise OpenPGPError(f"{what} is not base64: {error}") from error
    # Python takes bits after the last octet, in which two texts of one meaning could differ.
    if base64.b64encode(data).decode() != text:
        raise OpenPGPError(f"{what} is not base64: stray bits at its end")
    return data


def packets(data: bytes) -> Iterator[Packet]:
    """Yield the packets of *data* (RFC 9580 section 4.2). Raises OpenPGPError at what is none.

    Lengths that are partial or open, which only messages may have, are refused.
    """
    if len(data) > MAX_BYTES:
        raise OpenPGPError(f"it has {len(data)} bytes, and no keyring has more than {MAX_BYTES}")
    offset = 0
    for _ in range(MAX_PACKETS):
        if offset == len(data):
            return
        tag, start, length = _header(data, offset)
        if start + length > len(data):
            raise OpenPGPError(f"the packet at byte {offset} is cut off")
        yield Packet(tag, data[start : start + length], data[offset : start + length])
        offset = start + length
    if offset != len(data):
        raise OpenPGPError(f"it has more than {MAX_PACKETS} packets")


def _header(data: bytes, offset: int) -> Tuple[int, int, int]:
    """Return type, start of the body and length of the body of the packet at *offset*."""
    first = data[offset]
    if not first & 0x80:
        raise OpenPGPError(f"byte {offset} begins no OpenPGP packet")
    if first & 0x40:
        lengths = data[offset + 1 : offset + 6]
        tag = first & 0x3F
        size = lengths[0] if lengths else 0
        octets = 1 if size < 192 else 2 if size < 224 else 5  # noqa: PLR2004 - section 4.2.1
        if 224 <= size < 255:  # noqa: PLR2004
            raise OpenPGPError(f"the packet at byte {offset} has a partial length, which a key never has")
        if len(lengths) < octets:
            raise OpenPGPError(f"the packet at byte {offset} is cut off")
        length = {
            1: lambda: size,
            2: lambda: ((size - 192) << 8) + lengths[1] + 192,
            5: lambda: int.from_bytes(lengths[1:5], "big"),
        }[octets]()
        return tag, offset + 1 + octets, length
    tag = (first & 0x3C) >> 2
    kind = first & 3
    if kind == 3:  # noqa: PLR2004 - section 4.2.2
        raise OpenPGPError(f"the packet at byte {offset} has no length, which a key always has")
    octets = 1 << kind
    encoded = data[offset + 1 : offset + 1 + octets]
    if len(encoded) < octets:
        raise OpenPGPError(f"the packet at byte {offset} is cut off")
    return tag, offset + 1 + octets, int.from_bytes(encoded, "big")


def public_keys(content: bytes) -> Tuple[PublicKey, ...]:
    """Return the keys of *content*, ASCII-armored or binary, in its order.

    Raises OpenPGPError for everything that is not a sequence of transferable public keys of version 4
    (RFC 9580 section 10.1.1): secret keys, other versions, unknown algorithms, other packets, garbage.
    """
    if content.lstrip()[:5] == b"-----":
        try:
            content = dearmor(content.decode("ascii"))
        except UnicodeDecodeError as error:
            raise OpenPGPError("an armored key has a character that is not ASCII") from error
    if not content:
        raise OpenPGPError("it is empty")
    groups: List[List[Packet]] = []
    for packet in packets(content):
        _check_place(packet, groups)
        if packet.tag == PUBLIC_KEY:
            groups.append([])
        groups[-1].append(packet)
    return tuple(_public_key(group) for group in groups)


def _check_place(packet: Packet, groups: List[List[Packet]]) -> None:
    if packet.tag in (SECRET_KEY, SECRET_SUBKEY):
        raise OpenPGPError(_NO_SECRETS)
    if packet.tag not in (SIGNATURE, PUBLIC_KEY, USER_ID, PUBLIC_SUBKEY, USER_ATTRIBUTE):
        what = _TAG_NAMES.get(packet.tag, f"a packet of type {packet.tag}")
        raise OpenPGPError(f"it holds {what}, which is no part of a public key: export it with gpg --export")
    if not groups and packet.tag != PUBLIC_KEY:
        raise OpenPGPError("it does not begin with a public key")


def _public_key(group: List[Packet]) -> PublicKey:
    algorithm = _check_key_packet(group[0].body)
    user_ids = []
    for packet in group[1:]:
        if packet.tag == PUBLIC_SUBKEY:
            _check_key_packet(packet.body)
        elif packet.tag == USER_ID:
            user_ids.append(printable(packet.body))
    return PublicKey(
        fingerprint(group[0].body),
        tuple(user_ids),
        algorithm,
        sum(packet.tag == PUBLIC_SUBKEY for packet in group),
        b"".join(packet.raw for packet in group),
    )


def fingerprint(body: bytes) -> str:
    """Return the fingerprint of the body of a key packet of version 4 (RFC 9580 section 5.5.4.2)."""
    prefix = b"\x99" + len(body).to_bytes(2, "big")
    return hashlib.sha1(prefix + body).hexdigest().upper()  # noqa: S324 - the standard's choice


def _check_key_packet(body: bytes) -> str:
    """Return the name of the algorithm. Raises OpenPGPError unless *body* is a whole key of version 4."""
    if not body:
        raise OpenPGPError("it holds an empty key")
    version = body[0]
    if version != 4:  # noqa: PLR2004
        reason = {
            2: "whose fingerprint is an MD5 digest and no protection",
            3: "whose fingerprint is an MD5 digest and no protection",
            5: "whose fingerprint has 64 digits, where Apptainer knows 40",
            6: "whose fingerprint has 64 digits, where Apptainer knows 40",
        }.get(version, "which there is none of")
        raise OpenPGPError(f"it holds a key of version {version}, {reason}: use a key of version 4")
    if len(body) > 0xFFFF or len(body) < 6:  # noqa: PLR2004 - the fingerprint has two octets for the length
        raise OpenPGPError(f"it holds a key of {len(body)} bytes, which none has")
    try:
        name, parts = _ALGORITHMS[body[5]]
    except KeyError as error:
        raise OpenPGPError(f"it holds a key of the unknown algorithm {body[5]}") from error
    rest = body[6:]
    if parts.isdigit():
        rest = _take(rest, int(parts), name)
    else:
        for part in parts:
            rest = _TAKE[part](rest, name)
    if rest:
        raise OpenPGPError(f"it holds a key ({name}) with {len(rest)} bytes after its end")
    return name


def _take(data: bytes, count: int, name: str) -> bytes:
    if len(data) < count:
        raise OpenPGPError(f"it holds a key ({name}) that is cut off")
    return data[count:]


def _take_mpi(data: bytes, name: str) -> bytes:
    """Take a multiprecision integer (section 3.2), whose length in bits has to be the exact one."""
    bits = int.from_bytes(data[:2], "big")
    rest = _take(_take(data, 2, name), (bits + 7) // 8, name)
    if int.from_bytes(data[2 : len(data) - len(rest)], "big").bit_length() != bits or not bits:
        raise OpenPGPError(f"it holds a key ({name}) with a number of another length than it says")
    return rest


def _take_counted(data: bytes, name: str) -> bytes:
    """Take a curve's name (section 9.2) or key derivation parameters (section 5.5.5.6)."""
    if not data or data[0] in (0, 0xFF):
        raise OpenPGPError(f"it holds a key ({name}) with a reserved length")
    return _take(data, 1 + data[0], name)


_TAKE = {"m": _take_mpi, "c": _take_counted, "k": _take_counted}


def printable(octets: bytes) -> str:
    """Return a user ID as one line of text: whatever could move a cursor or a column is escaped."""
    text = octets.decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def select(content: bytes, wanted: str) -> PublicKey:
    """Return the key of *content* that has the fingerprint *wanted*.

    Raises OpenPGPError if there is none, naming those that are there, or if it is there twice.
    """
    digits = check_fingerprint(wanted)
    keys = public_keys(content)
    found = [key for key in keys if key.fingerprint == digits]
    if not found:
        there = ", ".join(sorted({key.fingerprint for key in keys}))
        raise OpenPGPError(f"the key of fingerprint {digits} was promised, but it holds {there}")
    if len(found) > 1:
        raise OpenPGPError(f"it holds the key {digits} twice: export it anew")
    return found[0]


def keyring(keys: Iterable[PublicKey]) -> bytes:
    """Return the binary keyring of *keys*, by fingerprint, so that the order of a list means nothing.

    Raises OpenPGPError if one is there twice.
    """
    by_fingerprint = {}
    for key in keys:
        if key.fingerprint in by_fingerprint:
            raise OpenPGPError(f"the key {key.fingerprint} is listed twice")
        by_fingerprint[key.fingerprint] = key.raw
    return b"".join(by_fingerprint[name] for name in sorted(by_fingerprint))


@dataclass(frozen=True)
class ClearSigned:
    """A clear-signed message that can be read in one way only.

    *text* is what is signed: lines of printable ASCII, line feeds between them and none at the end.
    *signature* is its one signature packet.
    """

    text: str
    signature: SignatureBody


@dataclass(frozen=True)
class SignatureBody:
    """What a signature packet of version 4 says of itself (RFC 4880 section 5.2.3).

    *issuer* is the fingerprint of the key that made it, or its last 16 digits where there is nothing longer,
    upper case; empty if it does not say. Before it is verified it proves nothing.
    """

    kind: int
    public_key_algorithm: int
    hash_algorithm: int
    issuer: str


def clear_signed(octets: bytes) -> ClearSigned:
    """Return what a clear-signed message consists of (RFC 4880 section 7), without checking its signature.

    Programs differ in what they make of text around the message, of blanks at the end of lines, of escaped
    dashes and of further signatures, so there may be none. Raises OpenPGPError.
    """
    try:
        text = octets.decode("ascii")
    except UnicodeDecodeError as error:
        raise OpenPGPError(f"byte {error.start} of a clear-signed message is not ASCII") from error
    lines = iter((text[:-1] if text.endswith("\n") else text).split("\n"))
    if next(lines) != "-----BEGIN PGP SIGNED MESSAGE-----":
        raise OpenPGPError("it does not begin with -----BEGIN PGP SIGNED MESSAGE-----")
    for line in lines:
        if not line:
            break
        if not _HASH_HEADER.fullmatch(line):
            raise OpenPGPError(f"{line[:40]!r} is no header of a clear-signed message")
    signed: List[str] = []
    for line in lines:
        if line == "-----BEGIN PGP SIGNATURE-----":
            break
        if not _PLAIN_LINE.fullmatch(line):
            raise OpenPGPError(f"{line[:40]!r} can be read in more than one way in a clear-signed message")
        signed.append(line)
    else:
        raise OpenPGPError("the line -----BEGIN PGP SIGNATURE----- is missing")
    data = _armored_block(lines, "-----END PGP SIGNATURE-----", "the signature")
    rest = list(lines)
    if rest:
        raise OpenPGPError(f"{rest[0][:40]!r} follows the signature")
    return ClearSigned("\n".join(signed), _signature_body(data))


def _signature_body(data: bytes) -> SignatureBody:
    found = list(packets(data))
    if len(found) != 1 or found[0].tag != SIGNATURE:
        raise OpenPGPError(f"{len(found)} packets, where one signature is expected")
    body = found[0].body
    if len(body) < 10 or body[0] != 4:  # noqa: PLR2004 - its fixed part has ten octets
        raise OpenPGPError("the signature is none of version 4")
    return SignatureBody(body[1], body[2], body[3], _issuer(body))


def _issuer(body: bytes) -> str:
    """Return who a signature says made it, by its hashed subpackets before the others."""
    hashed = int.from_bytes(body[4:6], "big")
    unhashed = int.from_bytes(body[6 + hashed : 8 + hashed], "big")
    if len(body) < 8 + hashed + unhashed:
        raise OpenPGPError("the signature is cut off")
    fingerprint = key_id = ""
    for area in (body[6 : 6 + hashed], body[8 + hashed : 8 + hashed + unhashed]):
        for kind, content in _subpackets(area):
            # RFC 9580 section 5.2.3.35: version and fingerprint; RFC 4880 section 5.2.3.5: eight octets.
            if kind == _ISSUER_FINGERPRINT and content[:1] == b"\x04":
                fingerprint = fingerprint or content[1:].hex().upper()
            elif kind == _ISSUER:
                key_id = key_id or content.hex().upper()
    return fingerprint or key_id


_ISSUER, _ISSUER_FINGERPRINT = 16, 33


def _subpackets(area: bytes) -> Iterator[Tuple[int, bytes]]:
    """Yield type and content of subpackets (RFC 4880 section 5.2.3.1)."""
    offset = 0
    while offset < len(area):
        first = area[offset]
        octets = 1 if first < 192 else 2 if first < 255 else 5  # noqa: PLR2004 - that section
        header = area[offset : offset + octets]
        length = {
            1: first,
            2: (first - 192 << 8) + int.from_bytes(header[1:2], "big") + 192,
            5: int.from_bytes(header[1:], "big"),
        }[octets]
        content = area[offset + octets : offset + octets + length]
        if not content or len(content) < length:
            raise OpenPGPError("a part of the signature is cut off")
        yield content[0] & 0x7F, content[1:]
        offset += octets + length
