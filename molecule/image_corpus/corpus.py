#!/usr/bin/env python3
"""Make the corpus: SIF images by real Apptainer, signed by real keys, then altered in every way we know.

Runs on a node that has Apptainer, gpg and openssl, as a normal user, beside sif_builder.py:
``corpus.py FOLDER``. FOLDER/cases.json says of each image FOLDER/NAME.sif what it is and what is expected.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import sif_builder as make

ACCEPTS, REFUSES = "accepts", "refuses"
# Whose signatures are trusted: Alice and Bob have keys of Apptainer, the others keys of gpg.
TRUSTED = ("alice", "bob", "carol", "expired", "revoked", "subkey")
PASSPHRASE = {"APPTAINER_ENCRYPTION_PASSPHRASE": "corpus"}
# Frozen, or else a key that took a second is none of the past yet when it signs.
PAST = ("--faked-system-time", "20240101T000000!")
HEADER = {
    "launch": (0, "32s"),
    "magic": (32, "10s"),
    "version": (42, "3s"),
    "arch": (45, "3s"),
    "uuid": (48, "16s"),
    "created": (64, "<q"),
    "modified": (72, "<q"),
    "free": (80, "<q"),
    "total": (88, "<q"),
    "table_offset": (96, "<q"),
    "table_size": (104, "<q"),
    "data_offset": (112, "<q"),
    "data_size": (120, "<q"),
}
SLOT = {
    "type": (0, "<i"),
    "used": (4, "<B"),
    "id": (5, "<I"),
    "group": (9, "<I"),
    "link": (13, "<I"),
    "offset": (17, "<q"),
    "size": (25, "<q"),
    "padded": (33, "<q"),
    "created": (41, "<q"),
    "modified": (49, "<q"),
    "uid": (57, "<q"),
    "gid": (65, "<q"),
    "name": (73, "128s"),
    "extra": (201, "384s"),
}


class Image(bytearray):
    """An image whose fields can be read and set, whatever becomes of it."""

    def __getitem__(self, key):
        if isinstance(key, str):
            offset, form = HEADER[key]
            return struct.unpack_from(form, self, offset)[0]
        return super().__getitem__(key)

    def set(self, **fields) -> Image:
        """Set fields of the header."""
        for name, value in fields.items():
            offset, form = HEADER[name]
            struct.pack_into(form, self, offset, value)
        return self

    def at(self, identifier: int) -> int:
        """Offset of the slot of an object."""
        for offset in range(4096, 4096 + 585 * self["total"], 585):
            if self[offset + 4] and struct.unpack_from("<I", self, offset + 5)[0] == identifier:
                return offset
        raise KeyError(identifier)

    def get(self, identifier: int, name: str):
        """A field of an object."""
        offset, form = SLOT[name]
        return struct.unpack_from(form, self, self.at(identifier) + offset)[0]

    def change(self, identifier: int, **fields) -> Image:
        """Set fields of an object."""
        slot = self.at(identifier)
        for name, value in fields.items():
            offset, form = SLOT[name]
            struct.pack_into(form, self, slot + offset, value)
        return self

    def content(self, identifier: int) -> bytes:
        """The content of an object."""
        offset, size = self.get(identifier, "offset"), self.get(identifier, "size")
        return bytes(self[offset : offset + size])

    def flip(self, offset: int) -> Image:
        """Change one bit."""
        super().__setitem__(offset, self[offset] ^ 1)
        return self

    def add(self, content: bytes, *, id: int = 0, **fields) -> Image:
        """Append an object of group 1, in the first free slot."""
        index = next(i for i in range(self["total"]) if not self[4096 + 585 * i + 4])
        identifier = id or index + 1
        slot = make.DESCRIPTOR.pack(
            *(0x4007, True, identifier, 0xF0000001, 0, len(self), len(content), len(content)),
            *(1700000000, 1700000000, 0, 0, b"", b""),
        )
        self[4096 + 585 * index : 4096 + 585 * (index + 1)] = slot
        self.extend(content)
        self.set(free=self["free"] - 1, data_size=len(self) - self["data_offset"])
        # By its slot: there may be another object of that ID on purpose.
        for name, value in fields.items():
            offset, form = SLOT[name]
            struct.pack_into(form, self, 4096 + 585 * index + offset, value)
        return self

    def sign_with(self, text: bytes, fingerprint: str, *, group: int = 1, **fields) -> Image:
        """Append a signature object of this content."""
        extra = struct.pack("<i20s", 1, bytes.fromhex(fingerprint))
        return self.add(
            text,
            **{"type": 0x4005, "group": 0xF0000000, "link": 0xF0000000 | group, "extra": extra, **fields},
        )


class Kit:
    """Apptainer, gpg, openssl, keys, and images to begin with; each is made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        self.fingerprints: dict[str, str] = {}
        self._made: dict[str, bytes] = {}
        self._keys()

    def run(self, *argv: str, given: bytes | None = None, **env: str) -> bytes:
        """What a program prints. Its message is shown if it fails."""
        ended = subprocess.run(
            argv, check=False, input=given, capture_output=True, cwd=self.work, env={**os.environ, **env}
        )
        if ended.returncode:
            raise RuntimeError(
                f"{argv}: {ended.stderr.decode(errors='replace')}{ended.stdout.decode(errors='replace')}"
            )
        return ended.stdout

    def gpg(self, *arguments: str, given: bytes | None = None) -> bytes:
        home = self.work / "gnupg"
        home.mkdir(mode=0o700, exist_ok=True)
        argv = [
            "gpg",
            "--homedir",
            str(home),
            "--batch",
            "--no-tty",
            "--quiet",
            "--passphrase",
            "",
            *arguments,
        ]
        return self.run(*argv, given=given)

    def _keys(self) -> None:
        for name in ("alice", "bob", "mallory"):
            keys = self.work / name
            keys.mkdir(mode=0o700)
            self.run(
                *("apptainer", "key", "newpair", "--name", name, "--email", f"{name}@example.org"),
                *("--password", "", "--push=false", "--comment", "corpus"),
                APPTAINER_KEYSDIR=str(keys),
            )
            (self.folder / f"{name}.pgp").write_bytes((keys / "pgp-public").read_bytes())
        for name, options, expires in (
            ("carol", (), "0"),
            ("expired", PAST, "10d"),
            ("revoked", (), "0"),
            ("subkey", (), "0"),
        ):
            usage = "cert" if name == "subkey" else "cert,sign"
            self.gpg(*options, "--quick-generate-key", f"{name}@example.org", "ed25519", usage, expires)
        shown = self.gpg("--list-keys", "--with-colons", "subkey@example.org").decode()
        primary = next(line.split(":")[9] for line in shown.splitlines() if line.startswith("fpr:"))
        self.gpg("--quick-add-key", primary, "ed25519", "sign")
        for name in ("carol", "expired", "subkey", "revoked"):
            (self.folder / f"{name}.pgp").write_bytes(self.gpg("--export", f"{name}@example.org"))
        for path in self.folder.glob("*.pgp"):
            shown = self.gpg("--show-keys", "--with-colons", str(path)).decode()
            self.fingerprints[path.stem] = next(
                line.split(":")[9] for line in shown.splitlines() if line.startswith("fpr:")
            )
        for name, options in {
            "ed25519": ("-algorithm", "ed25519"),
            "p256": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
            "rsa": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
            "stranger": ("-algorithm", "ed25519"),
        }.items():
            self.run("openssl", "genpkey", *options, "-out", f"{name}.key")
            self.run(
                "openssl", "pkey", "-in", f"{name}.key", "-pubout", "-out", str(self.folder / f"{name}.pem")
            )

    def revoke(self, name: str) -> None:
        """Revoke a key of gpg, with the certificate that gpg made beside it."""
        certificate = self.work / "gnupg/openpgp-revocs.d" / f"{self.fingerprints[name]}.rev"
        self.gpg("--import", given=certificate.read_bytes().replace(b":-----BEGIN", b"-----BEGIN"))
        (self.folder / f"{name}.pgp").write_bytes(self.gpg("--export", f"{name}@example.org"))

    def file(self, image: bytes) -> Path:
        path = self.work / "image.sif"
        path.write_bytes(image)
        return path

    def sif(self, image: bytes, *arguments: str) -> Image:
        """The image after ``apptainer sif COMMAND IMAGE …``."""
        path = self.file(image)
        self.run(
            "apptainer",
            "sif",
            arguments[0],
            *arguments[1:-1],
            *([arguments[-1]] if len(arguments) > 1 else []),
        )
        return Image(path.read_bytes())

    def added(self, image: bytes, content: bytes, *options: str, name: str = "added") -> Image:
        """The image after ``apptainer sif add``."""
        (self.work / name).write_bytes(content)
        path = self.file(image)
        self.run("apptainer", "sif", "add", *options, str(path), name)
        return Image(path.read_bytes())

    def deleted(self, image: bytes, identifier: int) -> Image:
        """The image after ``apptainer sif del``."""
        path = self.file(image)
        self.run("apptainer", "sif", "del", str(identifier), str(path))
        return Image(path.read_bytes())

    def signed(self, image: bytes, signer: str = "alice", *options: str) -> Image:
        """The image after ``apptainer sign`` by one of Apptainer's own keys, or one in PEM."""
        path = self.file(image)
        if (self.work / f"{signer}.key").exists():
            options = ("--key", f"{signer}.key", *options)
        self.run("apptainer", "sign", *options, str(path), APPTAINER_KEYSDIR=str(self.work / signer))
        return Image(path.read_bytes())

    def clear_signed(self, text: bytes, signer: str = "carol", *options: str) -> bytes:
        """A text clear-signed by a key of gpg."""
        return self.gpg(*options, "--local-user", f"{signer}@example.org", "--clear-sign", given=text + b"\n")

    def build(self, name: str, definition: str, *options: str, **env: str) -> Image:
        """What ``apptainer build`` makes of a definition; once."""
        if name not in self._made:
            (self.work / "root").mkdir(exist_ok=True)
            (self.work / "root/file").write_text("content of the only file\n")
            (self.work / f"{name}.def").write_text(definition)
            self.run("apptainer", "build", *options, f"{name}.sif", f"{name}.def", **env)
            self._made[name] = (self.work / f"{name}.sif").read_bytes()
        return Image(self._made[name])

    @property
    def plain(self) -> Image:
        """A definition file (1), metadata (2) and a root file system (3) in one group."""
        return self.build("plain", SCRATCH)

    @property
    def alices(self) -> Image:
        """The plain image, signed by Alice (4)."""
        if "alices" not in self._made:
            self._made["alices"] = bytes(self.signed(self.plain))
        return Image(self._made["alices"])

    @property
    def other(self) -> Image:
        """The plain image with an object more (4) in its group."""
        return self.added(self.plain, b"more", "--datatype", "7", "--groupid", "1")

    @property
    def two_groups(self) -> Image:
        """The plain image, and two objects (4, 5) in a group of their own."""
        if "two" not in self._made:
            image = self.plain
            for name in ("one", "two"):
                image = self.added(
                    image, f"data {name}\n".encode(), "--datatype", "7", "--groupid", "2", name=name
                )
            self._made["two"] = bytes(image)
        return Image(self._made["two"])

    def carols(self, image: Image, text: bytes, *options: str, signer: str = "carol", **fields) -> Image:
        """The image with a signature of this text by a key of gpg."""
        return image.sign_with(self.clear_signed(text, signer, *options), self.fingerprints[signer], **fields)


SCRATCH = "Bootstrap: scratch\n%files\n  root/file /file\n%labels\n  org.example.site corpus\n"


@dataclass(frozen=True)
class Case:
    """An image of the corpus: what is expected of Apptainer and of us, and why these differ if they do."""

    name: str
    made: str
    state: str
    apptainer: str
    keys: str
    difference: str


CASES: list[tuple[Case, Callable[[Kit], bytes]]] = []


def case(state: str, apptainer: str, difference: str = "", keys: str = "pgp"):
    """Register a function that makes an image; its docstring is how.

    *state* is our verdict, or ``unreadable: `` and the beginning of our reader's reason; *keys* what
    Apptainer verifies with: ``pgp``, or the name of a key in PEM.
    """

    def register(function: Callable[[Kit], bytes]) -> Callable[[Kit], bytes]:
        name = function.__name__.replace("_", "-")
        made = " ".join((function.__doc__ or "").split())
        CASES.append((Case(name, made, state, apptainer, keys, difference), function))
        return function

    return register


STRICT_READER = "Apptainer's reader does not look there; such an image can mean two things"
STRICT_TEXT = "Apptainer's parser takes it; it can be read in two ways, and `apptainer sign` never writes it"


# What Apptainer makes


@case("unsigned", REFUSES)
def built(kit):
    """apptainer build, from scratch"""
    return kit.plain


@case("signed", ACCEPTS)
def signed_by_one(kit):
    """apptainer sign"""
    return kit.alices


@case("signed", ACCEPTS)
def signed_by_two(kit):
    """apptainer sign by two keys"""
    return kit.signed(kit.alices, "bob")


@case("signed", ACCEPTS)
def signed_twice_by_one(kit):
    """apptainer sign twice by one key"""
    return kit.signed(kit.alices)


@case("signed", ACCEPTS)
def two_groups_signed(kit):
    """two groups, apptainer sign"""
    return kit.signed(kit.two_groups)


@case("signed", ACCEPTS)
def two_groups_signed_by_two(kit):
    """two groups, each signed by another key"""
    return kit.signed(kit.signed(kit.two_groups, "alice", "--group-id", "1"), "bob", "--group-id", "2")


@case("unsigned", REFUSES)
def two_groups_unsigned(kit):
    """two groups, no signature"""
    return kit.two_groups


@case("partial", REFUSES)
def two_groups_one_signed(kit):
    """two groups, the first one signed"""
    return kit.signed(kit.two_groups, "alice", "--group-id", "1")


@case("partial", REFUSES)
def root_only_signed(kit):
    """apptainer sign --sif-id of the root file system only"""
    return kit.signed(kit.plain, "alice", "--sif-id", "3")


@case("partial", REFUSES)
def root_and_group_signed(kit):
    """a signature of all, and one of the root file system only"""
    return kit.signed(kit.alices, "bob", "--sif-id", "3")


@case("signed", ACCEPTS)
def encrypted(kit):
    """apptainer build --encrypt with a passphrase, signed"""
    return kit.signed(kit.build("encrypted", SCRATCH, "--encrypt", **PASSPHRASE))


@case("signed", ACCEPTS)
def encrypted_by_key(kit):
    """apptainer build --encrypt with a key in PEM, signed"""
    kit.run("openssl", "genrsa", "-out", "disk.pem", "2048")
    kit.run("openssl", "rsa", "-in", "disk.pem", "-RSAPublicKey_out", "-out", "disk.pub")
    return kit.signed(kit.build("encrypted-by-key", SCRATCH, "--pem-path", "disk.pub"))


@case("signed", ACCEPTS)
def overlay(kit):
    """apptainer overlay create, then signed"""
    path = kit.file(kit.plain)
    kit.run("apptainer", "overlay", "create", "--size", "64", str(path))
    return kit.signed(path.read_bytes())


@case("partial", REFUSES)
def overlay_after_signing(kit):
    """an overlay added to a signed image by apptainer sif add"""
    options = ("--datatype", "4", "--parttype", "4", "--partfs", "2", "--partarch", "2", "--groupid", "1")
    return kit.added(kit.alices, bytes(1024), *options)


@case("signed", ACCEPTS)
def from_docker(kit):
    """apptainer build from a Docker archive, signed"""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(kit.work / "root/file", "file")
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/file"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created_by": "corpus"}],
    }
    manifest = [{"Config": "config.json", "RepoTags": ["corpus:1"], "Layers": ["layer.tar"]}]
    with tarfile.open(kit.work / "docker.tar", "w") as tar:
        for name, content in {
            "manifest.json": json.dumps(manifest).encode(),
            "config.json": json.dumps(config).encode(),
            "layer.tar": layer.getvalue(),
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    kit.run("apptainer", "build", "docker.sif", "docker-archive:docker.tar")
    return kit.signed((kit.work / "docker.sif").read_bytes())


@case("signed", ACCEPTS)
def from_sandbox(kit):
    """apptainer build from a folder, signed"""
    kit.run("apptainer", "build", "--sandbox", "sandbox", "plain.def")
    kit.run("apptainer", "build", "sandbox.sif", "sandbox")
    return kit.signed((kit.work / "sandbox.sif").read_bytes())


@case("signed", ACCEPTS)
def bill_of_materials(kit):
    """an SBOM added to the group, then signed"""
    options = ("--datatype", "9", "--sbomformat", "spdx-json", "--groupid", "1")
    return kit.signed(kit.added(kit.plain, b"{}", *options, name="spdx.json"))


@case("signed", ACCEPTS)
def named_object(kit):
    """an object of another name, then signed"""
    return kit.signed(
        kit.added(kit.plain, b"x", "--datatype", "7", "--groupid", "1", name="a name of its own")
    )


@case("signed", ACCEPTS)
def without_root(kit):
    """siftool new and add: data without a system partition, signed"""
    kit.run("siftool", "new", "data.sif")
    (kit.work / "data").write_text("data")
    kit.run("siftool", "add", "--datatype", "7", "--groupid", "1", "data.sif", "data")
    return kit.signed((kit.work / "data.sif").read_bytes())


@case("signed", ACCEPTS)
def deleted_before_signing(kit):
    """apptainer sif del of an object, then signed"""
    return kit.signed(kit.deleted(kit.plain, 2))


@case("invalid", REFUSES)
def deleted_after_signing(kit):
    """apptainer sif del of an object of a signed image"""
    return kit.deleted(kit.alices, 2)


@case("unsigned", REFUSES)
def signature_deleted(kit):
    """apptainer sif del of the only signature"""
    return kit.deleted(kit.alices, 4)


@case("signed", ACCEPTS)
def resigned(kit):
    """Alice's signature deleted, Bob's made"""
    return kit.signed(kit.deleted(kit.alices, 4), "bob")


@case("unknown-key", REFUSES)
def resigned_by_stranger(kit):
    """Alice's signature deleted, a stranger's made"""
    return kit.signed(kit.deleted(kit.alices, 4), "mallory")


@case("unknown-key", REFUSES)
def signed_by_stranger_too(kit):
    """signed by Alice and by a stranger"""
    return kit.signed(kit.alices, "mallory")


@case("partial", REFUSES)
def added_to_group(kit):
    """an object added to the group after signing"""
    return kit.added(kit.alices, b"x", "--datatype", "7", "--groupid", "1")


@case("partial", REFUSES)
def added_to_new_group(kit):
    """an object added in a new group after signing"""
    return kit.added(kit.alices, b"x", "--datatype", "7", "--groupid", "2")


@case("partial", REFUSES)
def added_without_group(kit):
    """an object of no group added after signing"""
    return kit.added(kit.alices, b"x", "--datatype", "7")


@case("partial", REFUSES)
def without_group_before_signing(kit):
    """an object of no group, then signed"""
    return kit.signed(kit.added(kit.plain, b"x", "--datatype", "7"))


@case("signed", ACCEPTS, keys="ed25519")
def dsse_ed25519(kit):
    """apptainer sign --key, Ed25519"""
    return kit.signed(kit.plain, "ed25519")


@case("signed", ACCEPTS, keys="p256")
def dsse_ecdsa(kit):
    """apptainer sign --key, ECDSA of P-256"""
    return kit.signed(kit.plain, "p256")


@case("signed", ACCEPTS, keys="rsa")
def dsse_rsa(kit):
    """apptainer sign --key, RSA of 2048 bits"""
    return kit.signed(kit.plain, "rsa")


@case("signed", ACCEPTS, keys="ed25519")
def dsse_two_groups(kit):
    """two groups, apptainer sign --key"""
    return kit.signed(kit.two_groups, "ed25519")


@case("unknown-key", REFUSES, keys="ed25519")
def dsse_by_stranger(kit):
    """apptainer sign --key by a stranger"""
    return kit.signed(kit.plain, "stranger")


@case("unknown-key", REFUSES, keys="ed25519")
def dsse_by_two(kit):
    """apptainer sign --key by two keys, of which apptainer verify takes one"""
    return kit.signed(kit.signed(kit.plain, "ed25519"), "p256")


@case("invalid", REFUSES)
def pgp_and_dsse(kit):
    """signed by OpenPGP and by DSSE"""
    return kit.signed(kit.alices, "ed25519")


@case("invalid", REFUSES, keys="ed25519")
def dsse_content_altered(kit):
    """a bit of the root file system altered after apptainer sign --key"""
    image = kit.signed(kit.plain, "ed25519")
    return image.flip(image.get(3, "offset") + 100)


@case("invalid", REFUSES, keys="ed25519")
def dsse_payload_altered(kit):
    """the payload of an envelope exchanged for that of another image"""
    mine, other = kit.signed(kit.plain, "ed25519"), kit.signed(kit.other, "ed25519")
    envelope = json.loads(mine.content(4))
    envelope["payload"] = json.loads(other.content(5))["payload"]
    return kit.plain.add(json.dumps(envelope).encode(), **_signature_fields(mine))


@case("unknown-key", REFUSES, keys="ed25519")
def dsse_signature_altered(kit):
    """the signature of an envelope altered"""
    image = kit.signed(kit.plain, "ed25519")
    envelope = json.loads(image.content(4))
    octets = bytearray(base64.b64decode(envelope["signatures"][0]["sig"]))
    octets[5] ^= 1
    envelope["signatures"][0]["sig"] = base64.b64encode(octets).decode()
    return kit.plain.add(json.dumps(envelope).encode(), **_signature_fields(image))


@case("invalid", ACCEPTS, STRICT_TEXT, keys="ed25519")
def dsse_unknown_field(kit):
    """a field put into an envelope"""
    image = kit.signed(kit.plain, "ed25519")
    return kit.plain.add(image.content(4).replace(b"{", b'{"more":1,', 1), **_signature_fields(image))


def _signature_fields(image, identifier=4):
    return {name: image.get(identifier, name) for name in ("type", "group", "link", "extra")}


# Contents and descriptors altered after signing


@case("invalid", REFUSES)
def root_altered(kit):
    """a bit of the root file system altered"""
    image = kit.alices
    return image.flip(image.get(3, "offset") + 100)


@case("invalid", REFUSES)
def definition_altered(kit):
    """a bit of the definition file altered"""
    image = kit.alices
    return image.flip(image.get(1, "offset"))


@case("invalid", REFUSES)
def renamed(kit):
    """an object renamed after signing"""
    return kit.alices.change(2, name=b"renamed.json")


@case("invalid", REFUSES)
def retyped(kit):
    """the definition file declared to be labels"""
    return kit.alices.change(1, type=0x4003)


@case("invalid", REFUSES)
def file_system_retyped(kit):
    """the root file system declared to be ext3"""
    return kit.alices.change(3, extra=struct.pack("<ii3s", 2, 2, b"02"))


@case("invalid", REFUSES)
def root_no_longer_primary(kit):
    """the root file system declared to be an ordinary system partition"""
    return kit.alices.change(3, extra=struct.pack("<ii3s", 1, 1, b"02"))


@case("invalid", REFUSES)
def shortened(kit):
    """an object declared to be one byte shorter"""
    image = kit.alices
    return image.change(2, size=image.get(2, "size") - 1)


@case("invalid", REFUSES)
def relinked(kit):
    """an object linked to another one"""
    return kit.alices.change(2, link=1)


@case("invalid", REFUSES)
def creation_altered(kit):
    """another creation time of an object"""
    return kit.alices.change(3, created=1)


@case("invalid", REFUSES)
def owner_altered(kit):
    """another owner of an object"""
    return kit.alices.change(3, uid=1000)


@case("invalid", REFUSES)
def launch_script_altered(kit):
    """another launch script"""
    return kit.alices.set(launch=b"#!/bin/sh\n")


@case("invalid", REFUSES)
def id_altered(kit):
    """another ID of the image"""
    return kit.alices.set(uuid=bytes(16))


@case("invalid", REFUSES)
def contents_exchanged(kit):
    """two objects of equal size given each other's place"""
    image = kit.plain
    for content in (b"a" * 10, b"b" * 10):
        image = kit.added(image, content, "--datatype", "7", "--groupid", "1")
    image = kit.signed(image)
    first, second = image.get(4, "offset"), image.get(5, "offset")
    return image.change(4, offset=second).change(5, offset=first)


@case("invalid", REFUSES)
def ids_exchanged(kit):
    """two objects given each other's ID"""
    image = kit.alices
    image.change(1, id=99).change(2, id=1)
    return image.change(99, id=2)


@case("invalid", REFUSES)
def moved_to_other_group(kit):
    """an object moved to a new group after signing"""
    return kit.alices.change(2, group=0xF0000002)


@case("invalid", REFUSES)
def groups_exchanged(kit):
    """two signed groups given each other's number, not so their signatures"""
    image = kit.signed(kit.two_groups)
    for identifier in (1, 2, 3):
        image.change(identifier, group=0xF0000002)
    for identifier in (4, 5):
        image.change(identifier, group=0xF0000001)
    return image


@case("signed", ACCEPTS)
def groups_renumbered(kit):
    """two signed groups and their signatures given each other's number: no number of a group is signed"""
    image = groups_exchanged(kit)
    return image.change(6, link=0xF0000002).change(7, link=0xF0000001)


@case("signed", ACCEPTS)
def ids_shifted(kit):
    """all IDs of the group shifted by ten: what is signed is relative to the lowest"""
    image = kit.alices
    for identifier in (1, 2, 3):
        image.change(identifier, id=identifier + 10)
    return image


@case("signed", ACCEPTS)
def descriptors_reordered(kit):
    """two descriptors given each other's slot: the order is not signed"""
    image = kit.alices
    first, second = image.at(1), image.at(3)
    slots = image[first : first + 585], image[second : second + 585]
    image[second : second + 585], image[first : first + 585] = slots
    return image


@case("signed", ACCEPTS)
def object_moved(kit):
    """an object copied to the end and its descriptor moved there: no place is signed"""
    image = kit.alices
    content, offset = image.content(1), len(image)
    image.extend(content)
    return image.change(1, offset=offset).set(data_size=len(image) - image["data_offset"])


@case("signed", ACCEPTS)
def modification_times(kit):
    """other modification times, which are not signed"""
    return kit.alices.change(3, modified=1).set(modified=1)


# Signatures tampered with


@case("invalid", REFUSES)
def fingerprint_of_another(kit):
    """a stranger's fingerprint in the descriptor of Alice's signature"""
    extra = struct.pack("<i20s", 1, bytes.fromhex(kit.fingerprints["mallory"]))
    return kit.alices.change(4, extra=extra)


@case("invalid", REFUSES)
def key_exchanged(kit):
    """Bob's fingerprint in the descriptor of Alice's signature"""
    extra = struct.pack("<i20s", 1, bytes.fromhex(kit.fingerprints["bob"]))
    return kit.alices.change(4, extra=extra)


@case("invalid", REFUSES)
def strangers_as_alice(kit):
    """a stranger's signature with Alice's fingerprint in its descriptor"""
    extra = struct.pack("<i20s", 1, bytes.fromhex(kit.fingerprints["alice"]))
    return kit.signed(kit.plain, "mallory").change(4, extra=extra)


@case("unknown-key", REFUSES)
def fingerprint_removed(kit):
    """no fingerprint in the descriptor of Alice's signature"""
    return kit.alices.change(4, extra=struct.pack("<i", 1))


@case("invalid", REFUSES)
def signed_text_altered(kit):
    """a digit of the signed text altered, and the content it is about"""
    image = kit.alices
    return image.flip(image.get(4, "offset") + image.content(4).index(b'"relativeId":') + 13)


@case("invalid", REFUSES)
def signature_altered(kit):
    """a bit of the armored signature altered"""
    image = kit.alices
    return image.flip(image.get(4, "offset") + image.content(4).index(b"SIGNATURE-----") + 100)


@case("invalid", REFUSES)
def signature_of_other_image(kit):
    """the signature of another image"""
    other = kit.signed(kit.other)
    return kit.plain.add(other.content(5), **_signature_fields(other, 5))


@case("invalid", REFUSES)
def signature_of_other_group(kit):
    """the signature of group 2 linked to group 1"""
    other = kit.signed(kit.two_groups, "alice", "--group-id", "2")
    return kit.plain.add(other.content(6), **{**_signature_fields(other, 6), "link": 0xF0000001})


@case("invalid", REFUSES)
def signature_empty(kit):
    """a signature without content"""
    return kit.alices.change(4, size=0)


@case("invalid", REFUSES)
def signature_garbage(kit):
    """garbage beside Alice's signature"""
    return kit.alices.add(b"garbage", **_signature_fields(kit.alices))


@case("invalid", REFUSES)
def signature_of_an_object(kit):
    """Alice's signature linked to an object, as before Singularity 3.6"""
    return kit.alices.change(4, link=3)


@case("signed", ACCEPTS)
def signed_by_gpg(kit):
    """the same text clear-signed by gpg"""
    return kit.carols(kit.plain, make.metadata(kit.plain, [1, 2, 3]))


@case("signed", ACCEPTS)
def sha512_digests(kit):
    """digests of SHA-512, clear-signed by gpg"""
    return kit.carols(kit.plain, make.metadata(kit.plain, [1, 2, 3], algorithm="sha512"))


@case("invalid", ACCEPTS, STRICT_TEXT)
def field_twice(kit):
    """a field that stands twice in the signed text"""
    text = make.metadata(kit.plain, [1, 2, 3]).replace(b'{"version":1', b'{"version":2,"version":1')
    return kit.carols(kit.plain, text)


@case("invalid", ACCEPTS, STRICT_TEXT)
def field_unknown(kit):
    """an unknown field in the signed text"""
    text = make.metadata(kit.plain, [1, 2, 3]).replace(b'{"version":1', b'{"version":1,"more":1')
    return kit.carols(kit.plain, text)


@case("invalid", ACCEPTS, "Apptainer does not look at the version of the signed text")
def version_of_text(kit):
    """a signed text of version 2"""
    text = make.metadata(kit.plain, [1, 2, 3]).replace(b'{"version":1', b'{"version":2')
    return kit.carols(kit.plain, text)


@case("invalid", REFUSES)
def sha1_digests(kit):
    """digests of SHA-1 in the signed text (CVE-2022-39237)"""
    return kit.carols(kit.plain, make.metadata(kit.plain, [1, 2, 3], algorithm="sha1"))


@case("invalid", ACCEPTS, "SHA-224 is none of the digests of SIF, though Apptainer takes it")
def sha224_digests(kit):
    """digests of SHA-224 in the signed text"""
    return kit.carols(kit.plain, make.metadata(kit.plain, [1, 2, 3], algorithm="sha224"))


@case("invalid", REFUSES)
def sha1_signature(kit):
    """a signature of OpenPGP by SHA-1"""
    text = make.metadata(kit.plain, [1, 2, 3])
    return kit.carols(kit.plain, text, "--digest-algo", "SHA1", "--allow-weak-digest-algos")


@case(
    "invalid",
    ACCEPTS,
    "text around a clear-signed message is no part of it, and `apptainer sign` writes none",
)
def text_before_message(kit):
    """text before the clear-signed message"""
    message = b"text\n" + kit.clear_signed(make.metadata(kit.plain, [1, 2, 3]))
    return kit.plain.sign_with(message, kit.fingerprints["carol"])


@case(
    "invalid",
    ACCEPTS,
    "text around a clear-signed message is no part of it, and `apptainer sign` writes none",
)
def text_after_message(kit):
    """text after the clear-signed message"""
    message = kit.clear_signed(make.metadata(kit.plain, [1, 2, 3])) + b"text\n"
    return kit.plain.sign_with(message, kit.fingerprints["carol"])


@case("invalid", REFUSES)
def two_signatures_in_one(kit):
    """two signatures in one clear-signed message"""
    text = make.metadata(kit.plain, [1, 2, 3])
    message = kit.clear_signed(text, "carol", "--local-user", "subkey@example.org")
    return kit.plain.sign_with(message, kit.fingerprints["carol"])


@case("invalid", REFUSES)
def expired_key(kit):
    """signed by a key that has expired since"""
    return kit.carols(kit.plain, make.metadata(kit.plain, [1, 2, 3]), *PAST, signer="expired")


@case("invalid", REFUSES)
def revoked_key(kit):
    """signed by a key that was revoked since"""
    image = kit.carols(kit.plain, make.metadata(kit.plain, [1, 2, 3]), signer="revoked")
    kit.revoke("revoked")
    return image


@case("invalid", REFUSES)
def expired_signature(kit):
    """a signature of OpenPGP that has expired"""
    options = (
        "--faked-system-time",
        "20240101T000000",
        "--ignore-time-conflict",
        "--default-sig-expire",
        "10d",
    )
    return kit.carols(kit.plain, make.metadata(kit.plain, [1, 2, 3]), *options)


@case("invalid", ACCEPTS, "`apptainer sign` signs with primary keys only, so we refuse subkeys")
def signed_by_subkey(kit):
    """signed by a subkey"""
    return kit.carols(kit.plain, make.metadata(kit.plain, [1, 2, 3]), signer="subkey")


@case("legacy", REFUSES)
def legacy_of_group(kit):
    """a signature of the group as Singularity 3.5 made it"""
    digest = hashlib.sha256(b"".join(kit.plain.content(i) for i in (1, 2, 3))).hexdigest()
    return kit.carols(kit.plain, b"SIFHASH:\n" + digest.encode())


@case("legacy", REFUSES)
def legacy_of_root(kit):
    """a signature of the root file system as Singularity 3.5 made it"""
    digest = hashlib.sha256(kit.plain.content(3)).hexdigest()
    return kit.carols(kit.plain, b"SIFHASH:\n" + digest.encode(), link=3, group=0xF0000000)


@case("signed", ACCEPTS)
def legacy_beside_signature(kit):
    """a signature as Singularity 3.5 made it beside Alice's"""
    digest = hashlib.sha256(kit.plain.content(3)).hexdigest()
    return kit.carols(kit.alices, b"SIFHASH:\n" + digest.encode(), link=3)


# Files damaged, and structure that can't be trusted


@case("unreadable: byte 120: ", REFUSES)
def last_byte_missing(kit):
    """the last byte cut off"""
    return kit.alices[:-1]


@case("unreadable: byte 120: ", REFUSES)
def cut_in_data(kit):
    """cut off in the root file system"""
    image = kit.alices
    return image[: image.get(3, "offset") + 100]


@case("unreadable: byte 96: ", REFUSES)
def cut_in_table(kit):
    """cut off in the table"""
    return kit.alices[:20000]


@case("unreadable: the file has 100 bytes", REFUSES)
def cut_in_header(kit):
    """cut off in the header"""
    return kit.alices[:100]


@case("unreadable: the file has 0 bytes", REFUSES)
def empty_file(kit):
    """an empty file"""
    return b""


@case("signed", ACCEPTS)
def extended(kit):
    """bytes after the last object: not signed, and remarked by us"""
    return kit.alices + b"appended"


@case("signed", ACCEPTS)
def hidden_after_header(kit):
    """bytes between header and table: not signed, and remarked by us"""
    image = kit.alices
    return image.flip(1000)


@case("signed", ACCEPTS)
def unused_slot_filled(kit):
    """bytes in a free slot: not signed, and remarked by us"""
    image = kit.alices
    return image.flip(4096 + 585 * 20 + 100)


@case("unreadable: byte 32: ", REFUSES)
def magic_altered(kit):
    """another magic"""
    return kit.alices.set(magic=b"SIF_MAGIK")


@case("unreadable: byte 42: ", REFUSES)
def version_altered(kit):
    """version 02 of the format"""
    return kit.alices.set(version=b"02")


@case(
    "unreadable: byte 45: ",
    ACCEPTS,
    "the architecture of the header is not signed: Apptainer shows what it says",
)
def architecture_unknown(kit):
    """an unknown architecture in the header"""
    return kit.alices.set(arch=b"77")


@case(
    "unreadable: byte 5475: ",
    ACCEPTS,
    "the architecture of the header is not signed: Apptainer shows what it says",
)
def architecture_altered(kit):
    """the architecture of the header altered to arm64"""
    return kit.alices.set(arch=b"04")


@case("unreadable: byte 88: ", REFUSES)
def table_negative(kit):
    """a negative number of descriptors"""
    return kit.alices.set(total=-1)


@case("unreadable: byte 88: ", REFUSES)
def table_huge(kit):
    """2^40 descriptors"""
    return kit.alices.set(total=2**40)


@case("unreadable: byte 80: ", ACCEPTS, STRICT_READER)
def table_miscounted(kit):
    """a wrong number of free descriptors"""
    return kit.alices.set(free=40)


@case("unreadable: byte 96: ", REFUSES)
def table_elsewhere(kit):
    """the table said to begin after the end of the file"""
    return kit.alices.set(table_offset=10**9)


@case("unreadable: byte 104: ", REFUSES)
def table_size_altered(kit):
    """another size of the table"""
    return kit.alices.set(table_size=5)


@case("unreadable: byte 112: ", ACCEPTS, STRICT_READER)
def data_begins_in_header(kit):
    """the data said to begin in the header"""
    return kit.alices.set(data_offset=0)


@case("unreadable: byte 120: ", ACCEPTS, STRICT_READER)
def data_too_long(kit):
    """more data than the file has"""
    return kit.alices.set(data_size=10**9)


@case("unreadable: byte 5283: ", REFUSES)
def offset_negative(kit):
    """a negative offset of the root file system"""
    return kit.alices.change(3, offset=-4096)


@case("unreadable: byte 5283: ", REFUSES)
def offset_after_end(kit):
    """the root file system said to begin after the end of the file"""
    return kit.alices.change(3, offset=10**9)


@case("unreadable: byte 5283: ", REFUSES)
def size_negative(kit):
    """a negative size of the root file system"""
    return kit.alices.change(3, size=-1)


@case("unreadable: byte 5299: ", ACCEPTS, STRICT_READER)
def padding_less_than_size(kit):
    """a size with padding that is less than the size"""
    return kit.alices.change(3, padded=1)


@case("unreadable: byte 32254: objects 1 and 2 overlap", ACCEPTS, STRICT_READER)
def overlapping(kit):
    """an object that shares its bytes with another one, then signed"""
    image = kit.plain
    return kit.signed(image.change(1, size=100, padded=100))


@case("unreadable: byte 5868: object 4 begins at 0", ACCEPTS, STRICT_READER)
def object_in_header(kit):
    """an object that lies in the header, then signed"""
    image = kit.plain.add(b"x" * 16)
    image.change(4, offset=0, size=16)
    return kit.signed(image)


@case("unreadable: byte 9951: two objects have the ID 3", ACCEPTS, STRICT_READER)
def descriptor_duplicated(kit):
    """the descriptor of the root file system twice, after signing"""
    image = kit.alices
    slot = bytes(image[image.at(3) : image.at(3) + 585])
    image[4096 + 585 * 10 : 4096 + 585 * 11] = slot
    return image.set(free=image["free"] - 1)


@case("unreadable: byte 6436: objects 3 and 9 both", REFUSES)
def root_duplicated(kit):
    """another primary system partition added to the group after signing"""
    image = kit.alices
    return image.add(image.content(3), id=9, type=0x4004, extra=image.get(3, "extra"))


@case("partial", REFUSES)
def content_duplicated(kit):
    """a copy of an object added to the group after signing"""
    return kit.alices.add(kit.alices.content(1), type=0x4001)


@case("unreadable: byte 4101: ", REFUSES)
def id_zero(kit):
    """an object with the ID 0"""
    return kit.alices.change(1, id=0)


@case("unreadable: byte 4096: ", REFUSES)
def type_unknown(kit):
    """an object of an unknown type, after signing"""
    return kit.alices.change(1, type=0x4FFF)


@case("unreadable: byte 4096: ", ACCEPTS, STRICT_READER)
def type_unknown_signed(kit):
    """an object of an unknown type, then signed"""
    return kit.signed(kit.plain.change(1, type=0x4FFF))


@case("unreadable: byte 5467: ", ACCEPTS, STRICT_READER)
def file_system_unknown_signed(kit):
    """a root file system of an unknown type, then signed"""
    return kit.signed(kit.plain.change(3, extra=struct.pack("<ii3s", 9, 2, b"02")))


@case("unreadable: byte 4169: ", ACCEPTS, STRICT_READER)
def name_without_end(kit):
    """a name of 128 characters, then signed"""
    return kit.signed(kit.plain.change(1, name=b"n" * 128))


@case("unreadable: byte 4169: ", ACCEPTS, "names go to terminals and logs")
def name_with_escape(kit):
    """a name with an escape sequence, then signed"""
    return kit.signed(kit.plain.change(1, name=b"\x1b[2Jname"))


@case("unreadable: byte 4100: ", ACCEPTS, STRICT_READER)
def used_is_two(kit):
    """2 where 1 says that a slot is used"""
    return kit.alices.change(1, used=2)


@case("unreadable: byte 5864: ", REFUSES)
def link_to_nowhere(kit):
    """Alice's signature linked to a group that is not there"""
    return kit.alices.change(4, link=0xF0000009)


@case("signed", ACCEPTS)
def nil_id(kit):
    """a nil ID and Go's zero times, as in reproducible images, then signed"""
    return kit.signed(kit.plain.set(uuid=bytes(16), created=-62135596800, modified=-62135596800))


@case("signed", ACCEPTS)
def own_launch_script(kit):
    """another launch script, then signed"""
    return kit.signed(kit.plain.set(launch=b"#!/usr/bin/env apptainer\n"))


@case("signed", ACCEPTS)
def old_layout(kit):
    """data from 32768 on, as old releases wrote it, then signed"""
    image = kit.plain
    shift = 4096
    moved = Image(image[:32176] + bytes(shift) + image[32176:])
    for identifier in (1, 2, 3):
        moved.change(identifier, offset=moved.get(identifier, "offset") + shift)
    return kit.signed(moved.set(data_offset=32768, data_size=len(moved) - 32768))


@case("signed", ACCEPTS)
def hundred_slots(kit):
    """a table of 100 descriptors, then signed"""
    image = kit.plain
    shift = 52 * 585 + 340
    wide = Image(image[:32176] + bytes(shift) + image[32176:])
    for identifier in (1, 2, 3):
        wide.change(identifier, offset=wide.get(identifier, "offset") + shift)
    total = 100
    return kit.signed(
        wide.set(
            total=total,
            free=total - 3,
            table_size=total * 585,
            data_offset=32176 + shift,
            data_size=len(wide) - 32176 - shift,
        )
    )


@case("invalid", REFUSES)
def signature_of_original(kit):
    """the content of an object altered, and the digest of it in Alice's signed text to fit"""
    image = kit.alices
    old = make.metadata(kit.plain, [1, 2, 3])
    image.flip(image.get(1, "offset"))
    new = make.metadata(bytes(image), [1, 2, 3])
    offset = image.get(4, "offset") + image.content(4).index(old)
    image[offset : offset + len(new)] = new
    return image


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
    folder.mkdir()
    kit = Kit(folder)
    try:
        for item, function in CASES:
            (folder / f"{item.name}.sif").write_bytes(function(kit))
    finally:
        subprocess.run(["gpgconf", "--homedir", str(kit.work / "gnupg"), "--kill", "gpg-agent"], check=False)
    (folder / "trusted.pgp").write_bytes(b"".join((folder / f"{name}.pgp").read_bytes() for name in TRUSTED))
    (folder / "cases.json").write_text(json.dumps([asdict(item) for item, _ in CASES], indent=1))
    shutil.rmtree(kit.work)


if __name__ == "__main__":
    main()
