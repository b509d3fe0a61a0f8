"""SIF images made in memory, octet by octet, so that tests can make what no writer makes.

Images of a real writer are in the corpus (molecule/image_corpus); this one is for what is wrong on purpose.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import uuid
from dataclasses import dataclass, field
from typing import Any

HEADER = struct.Struct("<32s10s3s3s16s8q")
DESCRIPTOR = struct.Struct("<i?III3q4q128s384s")
MASK = 0xF0000000
DSSE_TYPE = b"application/vnd.sylabs.sif-metadata+json"
LAUNCH = b"#!/usr/bin/env run-singularity\n"
DEFFILE, LABELS, PARTITION, SIGNATURE, JSON, GENERIC, CRYPTO, SBOM = (
    *(0x4001, 0x4003, 0x4004, 0x4005),
    *(0x4006, 0x4007, 0x4008, 0x4009),
)


@dataclass
class Object:
    """An object to be written; *fields* replaces values of its descriptor by name, such as ``offset``."""

    type: int = GENERIC
    content: bytes = b"content"
    id: int = 0
    group: int = 1
    link: int = 0
    name: bytes = b"object"
    extra: bytes = b""
    used: int = 1
    align: int = 1
    fields: dict[str, int] = field(default_factory=dict)


def partition(
    content: bytes = b"hsqs", *, fs: int = 1, part: int = 2, arch: bytes = b"02\0", **more: Any
) -> Object:
    more = {"align": 4096, **more}
    return Object(PARTITION, content, extra=struct.pack("<ii3s", fs, part, arch), **more)


def signature(
    content: bytes = b"", *, hash_type: int = 1, entity: bytes = b"\xab" * 20, **more: Any
) -> Object:
    more = {"group": 0, "link": MASK | 1, **more}
    return Object(SIGNATURE, content, extra=struct.pack("<i256s", hash_type, entity), **more)


def build(
    *objects: Object, slots: int = 48, data_offset: int | None = None, trailing: bytes = b"", **fields: Any
) -> bytes:
    """Return an image of these objects; *fields* replaces values of the header by name."""
    table_size = slots * DESCRIPTOR.size
    start = 4096 + table_size if data_offset is None else data_offset
    data = bytearray()
    table = bytearray()
    for index, item in enumerate(objects):
        unaligned = start + len(data)
        offset = -(-unaligned // item.align) * item.align
        data += bytes(offset - unaligned) + item.content
        values: dict[str, Any] = {
            "type": item.type,
            "used": True,
            "id": item.id or index + 1,
            "group": item.group | MASK,
            "link": item.link,
            "offset": offset,
            "size": len(item.content),
            "padded": offset - unaligned + len(item.content),
            "created": 1700000000,
            "modified": 1700000000,
            "uid": 0,
            "gid": 0,
            "name": item.name,
            "extra": item.extra,
            **item.fields,
        }
        slot = bytearray(DESCRIPTOR.pack(*values.values()))
        slot[4] = item.used
        table += slot
    used = sum(item.used == 1 for item in objects)
    header: dict[str, Any] = {
        "launch": LAUNCH,
        "magic": b"SIF_MAGIC",
        "version": b"01",
        "arch": b"02" if any(item.type == PARTITION for item in objects) else b"00",
        "id": uuid.UUID("b2659d4e-bd50-4ea5-bd17-eec5e54f918e").bytes,
        "created": 1700000000,
        "modified": 1700000001,
        "free": slots - used,
        "total": slots,
        "table_offset": 4096,
        "table_size": table_size,
        "data_offset": start,
        "data_size": len(data),
        **fields,
    }
    image = bytearray(HEADER.pack(*header.values()).ljust(4096, b"\0"))
    image += table.ljust(table_size, b"\0")
    return bytes(image.ljust(start, b"\0") + data + trailing)


def patch(image: bytes, offset: int, octets: bytes) -> bytes:
    """Return the image with other octets at *offset*."""
    return image[:offset] + octets + image[offset + len(octets) :]


def metadata(image: bytes, ids: list[int], *, algorithm: str = "sha256", first: int | None = None) -> bytes:
    """Return the text that Apptainer would sign for these objects (domain facts: digests of SIF)."""
    first = min(ids) if first is None else first

    def digest(octets: bytes) -> str:
        return f"{algorithm}:{hashlib.new(algorithm, octets).hexdigest()}"

    total = struct.unpack_from("<q", image, 88)[0]
    slots = [DESCRIPTOR.unpack_from(image, 4096 + 585 * index) for index in range(total)]
    objects = []
    for kind, used, number, _, link, offset, size, _, created, _, uid, gid, name, extra in slots:
        if number not in ids or not used:
            continue
        protected = struct.pack("<i?IIqqqq", kind, used, number - first, link, size, created, uid, gid)
        objects.append(
            {
                "relativeId": number - first,
                "descriptorDigest": digest(protected + name + extra),
                "objectDigest": digest(image[offset : offset + size]),
            }
        )
    header = digest(image[:45] + image[48:64])
    whole = {"version": 1, "header": {"digest": header}, "objects": objects}
    return json.dumps(whole, separators=(",", ":")).encode()


def envelope(text: bytes, signature: bytes, **fields: Any) -> bytes:
    """Return a DSSE envelope as Apptainer writes it; *fields* replaces some."""
    encoded = {"payload": base64.b64encode(text).decode(), "sig": base64.b64encode(signature).decode()}
    whole = {
        "payloadType": DSSE_TYPE.decode(),
        "payload": encoded["payload"],
        "signatures": [{"keyid": "SHA256:x", "sig": encoded["sig"]}],
        **fields,
    }
    return json.dumps(whole, separators=(",", ":")).encode()


def to_be_signed(payload: bytes) -> bytes:
    """Return what the signature of a DSSE envelope is made of."""
    return b"DSSEv1 %d %b %d %b" % (len(DSSE_TYPE), DSSE_TYPE, len(payload), payload)
