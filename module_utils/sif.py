# SPDX-License-Identifier: Apache-2.0
"""Singularity Image Format (SIF): a strict reader of the header and of the object descriptors.

It reads the first 32 KiB or so of an image and nothing else, whatever the file is, so that the time and the
memory it takes have a bound. What Apptainer's own reader lets pass, such as objects that overlap or point out
of the file, is refused here with a reason and an offset; what is odd, and harmless by itself, is a remark.
Nothing here says who made an image: `sif_integrity` compares it with its signatures.

Source: apptainer/sif v2, pkg/sif/{sif,descriptor,arch,create,load}.go. All numbers are little-endian.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import uuid
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from typing import (
    Any,
    BinaryIO,
    Callable,
    Container,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
    Type,
    Union,
)

_HEADER = struct.Struct("<32s10s3s3s16s8q")
_DESCRIPTOR = struct.Struct("<i?III3q4q128s384s")
HEADER_SIZE = _HEADER.size
DESCRIPTOR_SIZE = _DESCRIPTOR.size
TABLE_OFFSET = 4096
# What every writer so far reserves: the table of 48 descriptors ends at 32176, older data begins at 32768.
_FIRST_READ = 32768

_MAGIC = b"SIF_MAGIC\0"
_VERSION = b"01\0"
_GROUP_MASK = 0xF0000000
_ZEROS = bytes(DESCRIPTOR_SIZE)
# What writers align partitions to; less than that may lie between two objects.
_ALIGNMENT = 4096
_CUT = "the file ends here: it is cut off, or became shorter while it was read"
# Go's zero time, which reproducible images have, and the last second that a date can be written for.
_TIMES = range(-62135596800, 253402300800)

#: Architectures by their code in the file; the names are those of Go (pkg/sif/arch.go).
ARCHITECTURES: Mapping[str, str] = {
    "00": "unknown",
    "01": "386",
    "02": "amd64",
    "03": "arm",
    "04": "arm64",
    "05": "ppc64",
    "06": "ppc64le",
    "07": "mips",
    "08": "mipsle",
    "09": "mips64",
    "10": "mips64le",
    "11": "s390x",
    "12": "riscv64",
    "13": "loong64",
}


class SifError(ValueError):
    """What is no image, or none that can be trusted to mean one thing only.

    *reason* is a sentence for people, *offset* the byte of the file that it is about, or None if it is about
    the file as such.
    """

    def __init__(self, reason: str, offset: Optional[int] = None) -> None:
        super().__init__(reason if offset is None else f"byte {offset}: {reason}")
        self.reason = reason
        self.offset = offset


class DataType(IntEnum):
    """What an object is; `label` is what ``apptainer sif list`` and ``apptainer verify`` call it."""

    DEFFILE = 0x4001
    ENV_VAR = 0x4002
    LABELS = 0x4003
    PARTITION = 0x4004
    SIGNATURE = 0x4005
    GENERIC_JSON = 0x4006
    GENERIC = 0x4007
    CRYPTO_MESSAGE = 0x4008
    SBOM = 0x4009
    OCI_ROOT_INDEX = 0x400A
    OCI_BLOB = 0x400B

    @property
    def label(self) -> str:
        """Upstream's name, such as ``Def.FILE``."""
        return _DATA_LABELS[self]


_DATA_LABELS: Mapping[int, str] = {
    DataType.DEFFILE: "Def.FILE",
    DataType.ENV_VAR: "Env.Vars",
    DataType.LABELS: "JSON.Labels",
    DataType.PARTITION: "FS",
    DataType.SIGNATURE: "Signature",
    DataType.GENERIC_JSON: "JSON.Generic",
    DataType.GENERIC: "Generic/Raw",
    DataType.CRYPTO_MESSAGE: "Cryptographic Message",
    DataType.SBOM: "SBOM",
    DataType.OCI_ROOT_INDEX: "OCI.RootIndex",
    DataType.OCI_BLOB: "OCI.Blob",
}


class FsType(IntEnum):
    """File system of a partition."""

    SQUASHFS = 1
    EXT3 = 2
    ARCHIVE = 3
    RAW = 4
    ENCRYPTED_SQUASHFS = 5
    GOCRYPTFS_SQUASHFS = 6

    @property
    def encrypted(self) -> bool:
        """Whether its content can't be read without a key."""
        return self in (FsType.ENCRYPTED_SQUASHFS, FsType.GOCRYPTFS_SQUASHFS)


class PartType(IntEnum):
    """Use of a partition; the primary system is the one that runs."""

    SYSTEM = 1
    PRIMARY_SYSTEM = 2
    DATA = 3
    OVERLAY = 4


class HashType(IntEnum):
    """Digest that a signature says it is made with."""

    SHA256 = 1
    SHA384 = 2
    SHA512 = 3
    BLAKE2S = 4
    BLAKE2B = 5


class MessageFormat(IntEnum):
    """Format of a cryptographic message."""

    OPENPGP = 1
    PEM = 2


class MessageType(IntEnum):
    """Meaning of a cryptographic message; RSA_OAEP wraps the key of an encrypted partition."""

    CLEAR_SIGNATURE = 0x100
    RSA_OAEP = 0x200


class SbomFormat(IntEnum):
    """Format of a bill of materials."""

    CYCLONEDX_JSON = 1
    CYCLONEDX_XML = 2
    GITHUB_JSON = 3
    SPDX_JSON = 4
    SPDX_RDF = 5
    SPDX_TAG_VALUE = 6
    SPDX_YAML = 7
    SYFT_JSON = 8


class Limits(NamedTuple):
    """The most an image may have: bytes of the file, slots of its table, bytes of an object in memory."""

    file_size: int = 64 * 1024**3
    descriptors: int = 4096
    object_size: int = 1024 * 1024


DEFAULT_LIMITS = Limits()


class Link(NamedTuple):
    """What an object belongs to: the group *id* if *is_group*, else the object *id*."""

    is_group: bool
    id: int


class Partition(NamedTuple):
    """Extra fields of a partition; *arch* is a name of `ARCHITECTURES`."""

    fs_type: FsType
    part_type: PartType
    arch: str


class Signature(NamedTuple):
    """Extra fields of a signature. Nothing proves them before the signature is verified.

    *fingerprint* has 40 digits, upper case, and is empty if none is given, as for DSSE envelopes.
    """

    hash_type: HashType
    fingerprint: str


class CryptoMessage(NamedTuple):
    """Extra fields of a cryptographic message."""

    format: MessageFormat
    type: MessageType


class Remark(NamedTuple):
    """What is odd about an image without making it unreadable.

    *code* is ``trailing-data`` (the file goes on after the last object), ``unused-descriptor`` (a free slot
    is not empty), ``hidden-data`` (bytes between header, table and data that are not zero, or more bytes
    before an object than alignment needs), ``unexpected-extra`` (extra fields where a type has none),
    ``ungrouped-object`` (no signature can cover it, and Apptainer refuses to verify the image),
    ``no-primary-partition`` (Apptainer can't run it).
    """

    code: str
    offset: int
    message: str


class Descriptor(NamedTuple):
    """An object of an image: a used slot of its table.

    *slot* is its place in the table, from 0; *id* the number people see. *group* is 0 for none. *offset*,
    *size* and *size_with_padding* are bytes; padding stands before the object. Times are seconds since 1970.
    *name* is printable text. One of *partition*, *signature*, *crypto*, *sbom_format* and *oci_digest*
    (``sha256:…``) is set if the type has one. *raw* are the 585 bytes of the slot.
    """

    slot: int
    id: int
    data_type: DataType
    group: int
    link: Optional[Link]
    offset: int
    size: int
    size_with_padding: int
    created: int
    modified: int
    uid: int
    gid: int
    name: str
    partition: Optional[Partition]
    signature: Optional[Signature]
    crypto: Optional[CryptoMessage]
    sbom_format: Optional[SbomFormat]
    oci_digest: str
    raw: bytes

    @property
    def end(self) -> int:
        """Offset of the first byte after the object."""
        return self.offset + self.size

    def as_dict(self) -> Dict[str, Any]:
        """Return what people and JSON want to know of it, enumerations by name, lower case."""
        fields: Dict[str, Any] = {
            "id": self.id,
            "type": self.data_type.label,
            "group": self.group or None,
            "link": None,
            "offset": self.offset,
            "size": self.size,
            "name": self.name,
            "created": self.created,
        }
        if self.link:
            fields["link"] = {"group" if self.link.is_group else "object": self.link.id}
        if self.partition:
            fields["fs_type"] = self.partition.fs_type.name.lower()
            fields["part_type"] = self.partition.part_type.name.lower()
            fields["arch"] = self.partition.arch
        if self.signature:
            fields["hash_type"] = self.signature.hash_type.name.lower()
            fields["fingerprint"] = self.signature.fingerprint or None
        if self.crypto:
            fields["message_format"] = self.crypto.format.name.lower()
            fields["message_type"] = self.crypto.type.name.lower()
        if self.sbom_format:
            fields["sbom_format"] = self.sbom_format.name.lower()
        if self.oci_digest:
            fields["oci_digest"] = self.oci_digest
        return fields


class Header(NamedTuple):
    """The global header.

    *launch* is the script line in front, without the NUL; *arch* a name of `ARCHITECTURES` and *arch_code*
    its two digits; *id* may be the nil UUID. Offsets and sizes are bytes. *raw* are the 128 bytes.
    """

    launch: str
    version: str
    arch: str
    arch_code: str
    id: uuid.UUID
    created: int
    modified: int
    descriptors_free: int
    descriptors_total: int
    table_offset: int
    table_size: int
    data_offset: int
    data_size: int
    raw: bytes


class ImageFile:
    """A regular file, opened once: everything said of it is read through this one descriptor.

    Use it as a context manager. *path* is for messages, *stat* what fstat(2) said when it was opened.
    """

    def __init__(self, fd: int, path: str, limits: Limits = DEFAULT_LIMITS) -> None:
        """Take over the open file *fd*. Raises SifError, and closes it, if it is no regular file."""
        self.fd = fd
        self.path = path
        try:
            self.stat = os.fstat(fd)
            _check_file(self.stat, limits)
        except BaseException:
            os.close(fd)
            raise

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        value: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it; once more does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def size(self) -> int:
        """Bytes, when it was opened."""
        return self.stat.st_size

    def read_at(self, offset: int, size: int) -> bytes:
        """Return *size* bytes from *offset* on. Raises SifError if they are not there or can't be read."""
        return _pread(self.fd, offset, size)

    def chunks(self, begin: int, end: int, size: int) -> Iterator[Tuple[int, memoryview]]:
        """Yield offset and content of pieces of *size* bytes at most, in order; each is valid until the next.

        Raises SifError as `read_at` does. The file is not mapped into memory: a process dies if it reads
        where such a file has been cut off.
        """
        buffer = memoryview(bytearray(min(size, max(end - begin, 0))))
        while begin < end:
            try:
                count = os.preadv(self.fd, [buffer[: end - begin]], begin)
            except OSError as error:
                raise SifError(f"it can't be read: {os.strerror(error.errno or 0)}", begin) from error
            if not count:
                raise SifError(_CUT, begin)
            yield begin, buffer[:count]
            begin += count

    def check_unchanged(self) -> None:
        """Raise SifError if the file was written to, cut or replaced in place since it was opened."""
        now = os.fstat(self.fd)
        if _identity(now) != _identity(self.stat):
            raise SifError("the file changed while it was read: wait until nobody writes to it")


def open_image(
    path: Union[str, os.PathLike[str]],
    *,
    follow_symlinks: bool = False,
    dir_fd: Optional[int] = None,
    limits: Limits = DEFAULT_LIMITS,
) -> ImageFile:
    """Open *path* for reading, without ever waiting for a FIFO or a device.

    A symbolic link at its end is refused unless *follow_symlinks*; *dir_fd* is the folder that a relative
    path begins at. Raises SifError for whatever is no readable regular file within the *limits*.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    if not follow_symlinks:
        flags |= os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow_symlinks:
            raise SifError("it is a symbolic link, or its path has too many: name the file itself") from error
        raise SifError(f"it can't be opened: {os.strerror(error.errno or 0)}") from error
    except ValueError as error:
        raise SifError("its path has a NUL character") from error
    return ImageFile(fd, os.fspath(path), limits)


def _check_file(status: os.stat_result, limits: Limits) -> None:
    mode = status.st_mode
    if not stat.S_ISREG(mode):
        kinds = {
            stat.S_IFIFO: "a FIFO",
            stat.S_IFCHR: "a character device",
            stat.S_IFBLK: "a block device",
            stat.S_IFDIR: "a directory",
            stat.S_IFSOCK: "a socket",
        }
        raise SifError(f"it is {kinds.get(stat.S_IFMT(mode), 'no file')}, and an image is a regular file")
    if status.st_size > limits.file_size:
        raise SifError(f"it has {status.st_size} bytes, and the limit is {limits.file_size}")


def _identity(status: os.stat_result) -> Tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _pread(fd: int, offset: int, size: int) -> bytes:
    try:
        data = os.pread(fd, size, offset)
        while len(data) < size:
            more = os.pread(fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
    except OSError as error:
        raise SifError(f"it can't be read: {os.strerror(error.errno or 0)}", offset) from error
    if len(data) < size:
        raise SifError(_CUT, offset + len(data))
    return data


class _Stream:
    """A seekable binary stream as a source."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.size = stream.seek(0, os.SEEK_END)

    def read_at(self, offset: int, size: int) -> bytes:
        self.stream.seek(offset)
        data = self.stream.read(size)
        if len(data) < size:
            raise SifError(_CUT, offset + len(data))
        return data

    def chunks(self, begin: int, end: int, size: int) -> Iterator[Tuple[int, memoryview]]:
        while begin < end:
            data = self.read_at(begin, min(size, end - begin))
            yield begin, memoryview(data)
            begin += len(data)


Source = Union[ImageFile, _Stream]


@dataclass(frozen=True)
class Sif:
    """An image that was read: *descriptors* in the order of the table, *remarks* by offset.

    *file_size* is that of the whole file in bytes, *source* what it was read from, which has to stay open for
    `read_object` and for digests of objects.
    """

    header: Header
    descriptors: Tuple[Descriptor, ...]
    remarks: Tuple[Remark, ...]
    file_size: int
    source: Source

    def groups(self) -> Tuple[int, ...]:
        """Return the numbers of its groups, ascending."""
        return tuple(sorted({d.group for d in self.descriptors if d.group}))

    def objects(self, group: int) -> Tuple[Descriptor, ...]:
        """Return the objects of a group by ID, signatures left out; those of no group for 0."""
        found = [d for d in self.descriptors if d.group == group and d.data_type is not DataType.SIGNATURE]
        return tuple(sorted(found, key=lambda d: d.id))

    def object(self, id: int) -> Descriptor:  # noqa: A002 - the field's word
        """Return the object of that ID. Raises KeyError if there is none."""
        for descriptor in self.descriptors:
            if descriptor.id == id:
                return descriptor
        raise KeyError(id)

    def of_type(self, *types: DataType) -> Tuple[Descriptor, ...]:
        """Return the objects of these types in the order of the table."""
        return tuple(d for d in self.descriptors if d.data_type in types)

    def primary_partition(self) -> Optional[Descriptor]:
        """Return the partition that runs, of which there is one at most."""
        for descriptor in self.descriptors:
            if descriptor.partition and descriptor.partition.part_type is PartType.PRIMARY_SYSTEM:
                return descriptor
        return None

    def signatures(self, group: Optional[int] = None) -> Tuple[Descriptor, ...]:
        """Return the signatures by ID: all, or those that are linked to a group."""
        found = [
            d
            for d in self.descriptors
            if d.data_type is DataType.SIGNATURE and (group is None or d.link == Link(True, group))
        ]
        return tuple(sorted(found, key=lambda d: d.id))

    def read_object(self, descriptor: Descriptor, max_size: int = DEFAULT_LIMITS.object_size) -> bytes:
        """Return the content of an object. Raises SifError if it is larger than *max_size* bytes."""
        if descriptor.size > max_size:
            raise SifError(
                f"object {descriptor.id} ({descriptor.data_type.label}) has {descriptor.size} bytes, "
                f"and the limit is {max_size}",
                descriptor.offset,
            )
        return self.source.read_at(descriptor.offset, descriptor.size)


def read(source: Union[ImageFile, int, BinaryIO], limits: Limits = DEFAULT_LIMITS) -> Sif:
    """Read the header and the descriptors of an image.

    *source* is an `ImageFile`, the descriptor of an open regular file, which stays the caller's, or a binary
    stream that can seek. Costs one read of 32 KiB, a second one only for larger tables.
    Raises SifError, and no other error, for everything that is no image by the rules named in its messages.
    """
    if isinstance(source, int):
        return _read(_Borrowed(source, limits), limits)
    if isinstance(source, ImageFile):
        return _read(source, limits)
    stream = _Stream(source)
    if stream.size > limits.file_size:
        raise SifError(f"it has {stream.size} bytes, and the limit is {limits.file_size}")
    return _read(stream, limits)


class _Borrowed(ImageFile):
    """A file descriptor that belongs to somebody else."""

    def __init__(self, fd: int, limits: Limits) -> None:
        self.fd = fd
        self.path = f"/proc/self/fd/{fd}"
        try:
            self.stat = os.fstat(fd)
        except OSError as error:
            raise SifError(f"it can't be read: {os.strerror(error.errno or 0)}") from error
        _check_file(self.stat, limits)

    def close(self) -> None:
        """Leave it open."""


def _read(source: Source, limits: Limits) -> Sif:
    size = source.size
    if size < HEADER_SIZE:
        raise SifError(f"the file has {size} bytes, and the header of an image alone has {HEADER_SIZE}")
    start = source.read_at(0, min(size, _FIRST_READ))
    header = _header(start, size, limits)
    table_end = TABLE_OFFSET + header.table_size
    if table_end > len(start):
        start += source.read_at(len(start), table_end - len(start))
    remarks: List[Remark] = []
    descriptors = _table(start, header, remarks)
    _check_relations(header, descriptors, remarks)
    _check_layout(header, descriptors, size, remarks)
    _check_hidden(start, table_end, min(header.data_offset, len(start)), remarks)
    remarks.sort(key=lambda remark: remark.offset)
    return Sif(header, descriptors, tuple(remarks), size, source)


def _header(start: bytes, file_size: int, limits: Limits) -> Header:
    """Return the header. Raises SifError unless its numbers fit each other and the file."""
    raw = start[:HEADER_SIZE]
    fields = _HEADER.unpack(raw)
    launch, magic, version, arch, identifier = fields[:5]
    created, modified, free, total, table_offset, table_size, data_offset, data_size = fields[5:]
    if magic != _MAGIC:
        raise SifError("there is no SIF_MAGIC: it is no SIF image, or a damaged one", 32)
    if version != _VERSION:
        raise SifError(f"version {_quoted(version)} of the format, and only 01 is known", 42)
    text = _text(launch, 0, "the launch script")
    for offset, value, name in ((64, created, "creation"), (72, modified, "modification")):
        if value not in _TIMES:
            raise SifError(f"the time of {name}, {value}, is no date", offset)
    if not 0 <= total <= limits.descriptors:
        raise SifError(f"a table of {total} descriptors, and the limit is {limits.descriptors}", 88)
    if not 0 <= free <= total:
        raise SifError(f"{free} free descriptors in a table of {total}", 80)
    if table_offset != TABLE_OFFSET:
        raise SifError(f"the table begins at {table_offset}, where every SIF has it at {TABLE_OFFSET}", 96)
    if table_size != total * DESCRIPTOR_SIZE:
        raise SifError(
            f"the table has {table_size} bytes, and {total} descriptors take {total * DESCRIPTOR_SIZE}", 104
        )
    if table_offset + table_size > file_size:
        raise SifError(f"the table ends after the file, which has {file_size} bytes: it is cut off", 96)
    if not table_offset + table_size <= data_offset:
        raise SifError(f"the data begins at {data_offset}, before the end of the table", 112)
    if data_size < 0 or data_offset + data_size > file_size:
        raise SifError(
            f"the data goes from {data_offset} over {data_size} bytes, and the file has {file_size}: "
            "it is cut off",
            120,
        )
    return Header(
        launch=text,
        version="01",
        arch=_architecture(arch, 45),
        arch_code=arch[:2].decode(),
        id=uuid.UUID(bytes=identifier),
        created=created,
        modified=modified,
        descriptors_free=free,
        descriptors_total=total,
        table_offset=table_offset,
        table_size=table_size,
        data_offset=data_offset,
        data_size=data_size,
        raw=raw,
    )


def _architecture(code: bytes, offset: int) -> str:
    if code[2:] == b"\0":
        name = ARCHITECTURES.get(code[:2].decode("latin-1"))
        if name is not None:
            return name
    raise SifError(f"unknown architecture {_quoted(code)}", offset)


def _text(field: bytes, offset: int, what: str, *, line: bool = True) -> str:
    """Return a NUL-terminated field of printable text, which may end with a line feed if *line*."""
    octets, nul, rest = field.partition(b"\0")
    if not nul:
        raise SifError(f"{what} does not end with a NUL", offset)
    if rest.strip(b"\0"):
        raise SifError(f"{what} has bytes after its NUL", offset + len(octets))
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SifError(f"{what} is no UTF-8", offset + error.start) from error
    shown = text[:-1] if line and text.endswith("\n") else text
    if not shown.isprintable():
        raise SifError(f"{what} {_quoted(octets)} has characters that can't be printed", offset)
    return text


def _quoted(octets: bytes) -> str:
    return repr(octets.rstrip(b"\0"))[1:]


def _table(start: bytes, header: Header, remarks: List[Remark]) -> Tuple[Descriptor, ...]:
    found: List[Descriptor] = []
    end = TABLE_OFFSET + header.table_size
    empty = TABLE_OFFSET
    for index, used in enumerate(start[TABLE_OFFSET + 4 : end : DESCRIPTOR_SIZE]):
        if not used:
            continue
        offset = TABLE_OFFSET + index * DESCRIPTOR_SIZE
        if used != 1:
            raise SifError(f"slot {index}: the byte that says whether it is used is {used}", offset + 4)
        _check_empty(start, empty, offset, remarks)
        empty = offset + DESCRIPTOR_SIZE
        found.append(_descriptor(start[offset:empty], index, offset, remarks))
    _check_empty(start, empty, end, remarks)
    expected = header.descriptors_total - header.descriptors_free
    if len(found) != expected:
        raise SifError(f"{len(found)} slots are used, and the header says {expected}", 80)
    return tuple(found)


def _check_empty(start: bytes, begin: int, end: int, remarks: List[Remark]) -> None:
    """Remark free slots that are not empty."""
    if begin == end or start[begin:end] == bytes(end - begin):
        return
    for offset in range(begin, end, DESCRIPTOR_SIZE):
        if start[offset : offset + DESCRIPTOR_SIZE] != _ZEROS:
            index = (offset - TABLE_OFFSET) // DESCRIPTOR_SIZE
            remarks.append(Remark("unused-descriptor", offset, f"slot {index} is free and not empty"))


def _descriptor(raw: bytes, index: int, at: int, remarks: List[Remark]) -> Descriptor:
    """Return the object of a used slot, which is at offset *at*. Raises SifError."""
    kind, _, identifier, group, link, offset, size, padded, created, modified, uid, gid, name, extra = (
        _DESCRIPTOR.unpack(raw)
    )
    data_type = _DATA_TYPES.get(kind)
    if data_type is None:
        raise SifError(f"slot {index}: unknown type of data {kind:#x}", at)
    if not 0 < identifier < _GROUP_MASK:
        raise SifError(f"slot {index}: {identifier} can't be the ID of an object", at + 5)
    if group & _GROUP_MASK != _GROUP_MASK:
        raise SifError(f"object {identifier}: {group:#x} is no group", at + 9)
    if link & _GROUP_MASK not in (0, _GROUP_MASK) or link == _GROUP_MASK:
        raise SifError(f"object {identifier}: {link:#x} is no link to an object or group", at + 13)
    if offset < 0 or size < 0:
        raise SifError(f"object {identifier}: offset {offset} and size {size}, one of them negative", at + 17)
    if padded < size:
        raise SifError(f"object {identifier}: {size} bytes, and {padded} with padding", at + 33)
    for place, value in ((41, created), (49, modified)):
        if value not in _TIMES:
            raise SifError(f"object {identifier}: the time {value} is no date", at + place)
    extras = _EXTRAS[data_type](extra, identifier, at + 201)
    if extra[extras.length :] != _ZEROS[: len(extra) - extras.length]:
        if extras.length:
            raise SifError(f"object {identifier}: bytes after its extra fields", at + 201 + extras.length)
        remarks.append(
            Remark(
                "unexpected-extra", at + 201, f"object {identifier} has extra fields that its type has not"
            )
        )
    return Descriptor(
        index,
        identifier,
        data_type,
        group & ~_GROUP_MASK,
        Link(link >= _GROUP_MASK, link & ~_GROUP_MASK) if link else None,
        offset,
        size,
        padded,
        created,
        modified,
        uid,
        gid,
        _text(name, at + 73, f"object {identifier}: its name", line=False),
        extras.partition,
        extras.signature,
        extras.crypto,
        extras.sbom_format,
        extras.oci_digest,
        raw,
    )


_DATA_TYPES: Mapping[int, DataType] = {int(member): member for member in DataType}
_OCI_DIGEST = re.compile(rb"sha256:[0-9a-f]{64}")


class _Extras(NamedTuple):
    """What the extra fields of one type say, and how many bytes they take."""

    length: int = 0
    partition: Optional[Partition] = None
    signature: Optional[Signature] = None
    crypto: Optional[CryptoMessage] = None
    sbom_format: Optional[SbomFormat] = None
    oci_digest: str = ""


_NO_EXTRAS = _Extras()


def _no_extras(extra: bytes, identifier: int, at: int) -> _Extras:
    return _NO_EXTRAS


def _partition(extra: bytes, identifier: int, at: int) -> _Extras:
    fs_type: FsType = _member(FsType, extra, 0, identifier, at)
    part_type: PartType = _member(PartType, extra, 4, identifier, at)
    return _Extras(11, partition=Partition(fs_type, part_type, _architecture(extra[8:11], at + 8)))


def _signature(extra: bytes, identifier: int, at: int) -> _Extras:
    # The field for the entity has 256 bytes, of which a fingerprint of version 4 takes 20.
    hash_type: HashType = _member(HashType, extra, 0, identifier, at)
    fingerprint = extra[4:24]
    text = fingerprint.hex().upper() if any(fingerprint) else ""
    return _Extras(24, signature=Signature(hash_type, text))


def _crypto_message(extra: bytes, identifier: int, at: int) -> _Extras:
    message_format: MessageFormat = _member(MessageFormat, extra, 0, identifier, at)
    message_type: MessageType = _member(MessageType, extra, 4, identifier, at)
    return _Extras(8, crypto=CryptoMessage(message_format, message_type))


def _sbom(extra: bytes, identifier: int, at: int) -> _Extras:
    return _Extras(4, sbom_format=_member(SbomFormat, extra, 0, identifier, at))


def _oci_digest(extra: bytes, identifier: int, at: int) -> _Extras:
    octets = extra[:71]
    if not _OCI_DIGEST.fullmatch(octets):
        raise SifError(f"object {identifier}: {_quoted(octets)} is no digest", at)
    return _Extras(71, oci_digest=octets.decode("ascii"))


def _member(enum: Any, extra: bytes, place: int, identifier: int, at: int) -> Any:
    value = int.from_bytes(extra[place : place + 4], "little", signed=True)
    try:
        return enum(value)
    except ValueError as error:
        raise SifError(f"object {identifier}: {value} is no {enum.__name__}", at + place) from error


_EXTRAS: Mapping[DataType, Callable[[bytes, int, int], _Extras]] = {
    **dict.fromkeys(DataType, _no_extras),
    DataType.PARTITION: _partition,
    DataType.SIGNATURE: _signature,
    DataType.CRYPTO_MESSAGE: _crypto_message,
    DataType.SBOM: _sbom,
    DataType.OCI_ROOT_INDEX: _oci_digest,
    DataType.OCI_BLOB: _oci_digest,
}


def _check_layout(
    header: Header, descriptors: Tuple[Descriptor, ...], file_size: int, remarks: List[Remark]
) -> None:
    """Raise SifError unless every object has bytes of its own within the data of the image."""
    data_end = header.data_offset + header.data_size
    last = header.data_offset
    previous: Optional[Descriptor] = None
    for descriptor in sorted(descriptors, key=lambda d: (d.offset, d.end)):
        at = _place(descriptor) + 17
        if descriptor.offset < header.data_offset:
            raise SifError(
                f"object {descriptor.id} begins at {descriptor.offset}, before the data, which begins at "
                f"{header.data_offset}",
                at,
            )
        if descriptor.end > data_end:
            raise SifError(
                f"object {descriptor.id} ends at {descriptor.end}, after the data, which ends at {data_end}",
                at,
            )
        if not descriptor.size:
            continue
        if previous and descriptor.offset < last:
            raise SifError(f"objects {previous.id} and {descriptor.id} overlap", descriptor.offset)
        if descriptor.offset - last >= _ALIGNMENT:
            message = f"{descriptor.offset - last} bytes before object {descriptor.id} belong to none"
            remarks.append(Remark("hidden-data", last, message))
        previous, last = descriptor, descriptor.end
    if last < file_size:
        remarks.append(
            Remark("trailing-data", last, f"{file_size - last} bytes after the last object belong to none")
        )


def _check_relations(header: Header, descriptors: Tuple[Descriptor, ...], remarks: List[Remark]) -> None:
    """Raise SifError unless IDs are unique, links lead somewhere, and one system at most is primary."""
    identifiers: Dict[int, Descriptor] = {}
    for descriptor in descriptors:
        if identifiers.setdefault(descriptor.id, descriptor) is not descriptor:
            raise SifError(f"two objects have the ID {descriptor.id}", _place(descriptor) + 5)
    primary = [d for d in descriptors if d.partition and d.partition.part_type is PartType.PRIMARY_SYSTEM]
    for descriptor in primary:
        if descriptor is not primary[0]:
            raise SifError(
                f"objects {primary[0].id} and {descriptor.id} both are the primary system partition",
                _place(descriptor),
            )
        if descriptor.partition and descriptor.partition.arch != header.arch:
            raise SifError(
                f"object {descriptor.id}, the primary system, is for {descriptor.partition.arch}, and "
                f"the header says {header.arch}",
                _place(descriptor) + 209,
            )
    if not primary:
        remarks.append(Remark("no-primary-partition", 45, "no partition is the one to run"))
    groups = {d.group for d in descriptors if d.group}
    for descriptor in descriptors:
        _check_link(descriptor, groups if descriptor.link and descriptor.link.is_group else identifiers)
        if not descriptor.group and descriptor.data_type is not DataType.SIGNATURE:
            message = f"object {descriptor.id} is in no group, so nobody can sign it"
            remarks.append(Remark("ungrouped-object", _place(descriptor) + 9, message))


def _check_link(descriptor: Descriptor, targets: Container[int]) -> None:
    link, at = descriptor.link, _place(descriptor) + 13
    if link is None:
        if descriptor.data_type is DataType.SIGNATURE:
            raise SifError(f"object {descriptor.id} is a signature of nothing", at)
        return
    if link.id not in targets:
        what = f"{'group' if link.is_group else 'object'} {link.id}"
        raise SifError(f"object {descriptor.id} is linked to {what}, which is not there", at)
    if not link.is_group and link.id == descriptor.id:
        raise SifError(f"object {descriptor.id} is linked to itself", at)


def _place(descriptor: Descriptor) -> int:
    """Return the offset of the slot of an object."""
    return TABLE_OFFSET + descriptor.slot * DESCRIPTOR_SIZE


def _check_hidden(start: bytes, table_end: int, data_offset: int, remarks: List[Remark]) -> None:
    for begin, end, where in (
        (HEADER_SIZE, TABLE_OFFSET, "the header and the table"),
        (table_end, data_offset, "the table and the data"),
    ):
        gap = start[begin:end]
        if gap != bytes(len(gap)):
            place = begin + len(gap) - len(gap.lstrip(b"\0"))
            remarks.append(Remark("hidden-data", place, f"bytes between {where} belong to nothing"))
