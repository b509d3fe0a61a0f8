"""The reader of SIF images: what it understands, and what it refuses with which words."""

import io
import os
import socket
import struct
import uuid

import pytest
import sif_builder as make
from sif_builder import MASK, Object, build, partition, patch, signature

from module_utils import sif
from module_utils.sif import DataType, FsType, HashType, Limits, Link, PartType, SifError

SLOT = 4096
DATA = 4096 + 48 * 585


def read(image, **limits):
    return sif.read(io.BytesIO(image), Limits(**limits))


def codes(image):
    return [remark.code for remark in read(image).remarks]


@pytest.fixture
def image():
    """A definition file, a root file system, labels and the signature of their group."""
    return build(
        Object(make.DEFFILE, b"bootstrap: docker\n", name=b"hello.def"),
        partition(b"hsqs" * 100, name=b"squash-1.img"),
        Object(make.JSON, b"{}", name=b"oci-config.json"),
        signature(b"-----BEGIN", name=b""),
    )


def test_an_image_is_read(image):
    read_image = read(image)
    header = read_image.header
    assert (header.launch, header.version) == ("#!/usr/bin/env run-singularity\n", "01")
    assert (header.arch, header.arch_code) == ("amd64", "02")
    assert header.id == uuid.UUID("b2659d4e-bd50-4ea5-bd17-eec5e54f918e")
    assert (header.created, header.modified) == (1700000000, 1700000001)
    assert (header.descriptors_free, header.descriptors_total) == (44, 48)
    assert (header.table_offset, header.table_size, header.data_offset) == (4096, 48 * 585, DATA)
    assert header.data_offset + header.data_size == read_image.file_size == len(image)
    assert [d.id for d in read_image.descriptors] == [1, 2, 3, 4]
    definition, system, _, signed = read_image.descriptors
    assert (definition.data_type, definition.name, definition.group) == (DataType.DEFFILE, "hello.def", 1)
    assert (definition.offset, definition.size, definition.link) == (DATA, 18, None)
    assert system.partition == (FsType.SQUASHFS, PartType.PRIMARY_SYSTEM, "amd64")
    assert (system.offset % 4096, system.size, system.end) == (0, 400, system.offset + 400)
    assert system.size_with_padding == system.end - definition.end
    assert signed.signature == (HashType.SHA256, "AB" * 20)
    assert (signed.group, signed.link) == (0, Link(True, 1))
    assert read_image.remarks == ()


def test_what_is_asked_of_an_image(image):
    read_image = read(image)
    assert read_image.groups() == (1,)
    assert [d.id for d in read_image.objects(1)] == [1, 2, 3]
    assert read_image.objects(2) == ()
    assert read_image.primary_partition().id == 2
    assert [d.id for d in read_image.signatures()] == [d.id for d in read_image.signatures(1)] == [4]
    assert read_image.signatures(2) == ()
    assert read_image.object(3).name == "oci-config.json"
    assert read_image.of_type(DataType.DEFFILE, DataType.GENERIC_JSON) == (
        read_image.object(1),
        read_image.object(3),
    )
    with pytest.raises(KeyError):
        read_image.object(9)
    assert read_image.object(2).as_dict() == {
        "id": 2,
        "type": "FS",
        "group": 1,
        "link": None,
        "offset": 32768,
        "size": 400,
        "name": "squash-1.img",
        "created": 1700000000,
        "fs_type": "squashfs",
        "part_type": "primary_system",
        "arch": "amd64",
    }
    assert read_image.object(4).as_dict()["fingerprint"] == "AB" * 20
    assert read_image.object(4).as_dict()["link"] == {"group": 1}


def test_content_is_read_up_to_a_limit(image):
    read_image = read(image)
    assert read_image.read_object(read_image.object(1)) == b"bootstrap: docker\n"
    assert read_image.read_object(read_image.object(1), max_size=18)
    with pytest.raises(SifError, match="has 18 bytes, and the limit is 17"):
        read_image.read_object(read_image.object(1), max_size=17)


def test_every_type_has_its_extra_fields():
    crypto = Object(make.CRYPTO, b"-----BEGIN", extra=struct.pack("<ii", 2, 0x200), link=1)
    sbom = Object(make.SBOM, b"{}", extra=struct.pack("<i", 4))
    blob = Object(0x400B, b"x", extra=b"sha256:" + b"0f" * 32)
    image = read(build(partition(fs=5), crypto, sbom, blob, Object(make.LABELS)))
    assert image.object(1).partition.fs_type.encrypted
    assert image.object(2).crypto == (sif.MessageFormat.PEM, sif.MessageType.RSA_OAEP)
    assert image.object(2).link == Link(False, 1)
    assert image.object(3).sbom_format is sif.SbomFormat.SPDX_JSON
    assert image.object(4).oci_digest == "sha256:" + "0f" * 32
    assert [d.data_type.label for d in image.descriptors] == [
        *("FS", "Cryptographic Message", "SBOM", "OCI.Blob", "JSON.Labels")
    ]


# What writers do: older releases of Apptainer, reproducible builds, deletions.
@pytest.mark.parametrize(
    "image",
    [
        build(partition(), id=bytes(16)),
        build(partition(), created=-62135596800, modified=-62135596800),
        build(partition(), data_offset=32768),
        build(partition(), launch=b""),
        build(partition(), launch=b"#!/bin/sh\n"),
        build(Object(used=0, fields=dict.fromkeys(("type", "id", "group"), 0)), partition(id=2)),
        build(partition(id=7), Object(id=3)),
        build(partition(), Object(content=b"")),
        build(partition(), signature(b"x", entity=b"")),
        build(partition(), signature(b"x", group=1, link=1)),
        build(partition(), slots=1),
        build(partition(content=b"x" * 4097), partition(part=3)),
        build(partition(), slots=100),
        build(partition(arch=b"13\0"), arch=b"13"),
    ],
)
def test_it_is_no_reason_to_refuse(image):
    assert read(image).primary_partition()


def test_an_empty_container_is_an_image():
    assert read(build()).descriptors == ()
    assert read(build(slots=0)).header.descriptors_total == 0


A, B = Object(content=b"a" * 10), Object(content=b"b" * 10)
REFUSED = {
    "empty": (b"", "the file has 0 bytes, and the header of an image alone has 128"),
    "header-cut": (build(A)[:127], "the file has 127 bytes"),
    "script": (b"#!/bin/sh\n" + bytes(200), "byte 32: there is no SIF_MAGIC"),
    "magic": (build(A, magic=b"SIF_MAGIX"), "byte 32: there is no SIF_MAGIC"),
    "version": (build(A, version=b"02"), "byte 42: version '02' of the format"),
    "arch": (build(A, arch=b"99"), "byte 45: unknown architecture '99'"),
    "arch-nul": (build(A, arch=b"02x"), "byte 45: unknown architecture"),
    "launch-nul": (build(A, launch=b"x" * 32), "byte 0: the launch script does not end with a NUL"),
    "launch-rest": (build(A, launch=b"a\0b"), "byte 1: the launch script has bytes after its NUL"),
    "launch-escape": (build(A, launch=b"\x1b[2J"), "byte 0: the launch script .* can't be printed"),
    "launch-utf8": (build(A, launch=b"a\xff"), "byte 1: the launch script is no UTF-8"),
    "created": (build(A, created=2**62), "byte 64: the time of creation"),
    "modified": (build(A, modified=-(2**63)), "byte 72: the time of modification"),
    "total-negative": (build(A, total=-1), "byte 88: a table of -1 descriptors"),
    "total-huge": (build(A, total=2**40), "byte 88: a table of 1099511627776 descriptors, and the limit is"),
    "free-negative": (build(A, free=-1), "byte 80: -1 free descriptors in a table of 48"),
    "free-more": (build(A, free=49), "byte 80: 49 free descriptors"),
    "free-wrong": (build(A, free=46), "byte 80: 1 slots are used, and the header says 2"),
    "table-offset": (build(A, table_offset=4097), "byte 96: the table begins at 4097"),
    "table-size": (
        build(A, table_size=585),
        "byte 104: the table has 585 bytes, and 48 descriptors take 28080",
    ),
    "table-cut": (build(A)[:20000], "byte 96: the table ends after the file"),
    "data-in-table": (build(A, data_offset=32000), "byte 112: the data begins at 32000, before"),
    "data-negative": (build(A, data_size=-1), "byte 120: the data goes from"),
    "data-overflow": (build(A, data_size=2**63 - 1), "byte 120: .* it is cut off"),
    "truncated": (build(A, B)[:-1], "byte 120: .* it is cut off"),
    "used": (build(Object(used=2), free=47), "byte 4100: slot 0: the byte that says whether it is used is 2"),
    "type": (build(Object(0x4000)), "byte 4096: slot 0: unknown type of data 0x4000"),
    "id-zero": (patch(build(A), SLOT + 5, bytes(4)), "byte 4101: slot 0: 0 can't be the ID"),
    "id-mask": (build(Object(id=MASK | 1)), "byte 4101: .* can't be the ID"),
    "id-twice": (build(A, Object(id=1)), "byte 4686: two objects have the ID 1"),
    "group": (build(Object(fields={"group": 1})), "byte 4105: object 1: 0x1 is no group"),
    "link-partial": (build(A, Object(link=0x80000001)), "byte 4694: object 2: 0x80000001 is no link"),
    "link-group-0": (build(A, Object(link=MASK)), "byte 4694: object 2: 0xf0000000 is no link"),
    "link-nowhere": (
        build(A, Object(link=9)),
        "byte 4694: object 2 is linked to object 9, which is not there",
    ),
    "link-no-group": (
        build(A, signature(link=MASK | 2)),
        "object 2 is linked to group 2, which is not there",
    ),
    "link-self": (build(A, signature(link=2)), "object 2 is linked to itself"),
    "link-none": (build(A, signature(link=0)), "object 2 is a signature of nothing"),
    "offset-negative": (build(Object(fields={"offset": -1})), "byte 4113: object 1: offset -1 and size 7"),
    "size-negative": (build(Object(fields={"size": -1})), "byte 4113: object 1: offset .* negative"),
    "end-overflow": (build(Object(fields={"size": 2**63 - 1, "padded": 2**63 - 1})), "object 1 ends at"),
    "padding": (build(Object(fields={"padded": 6})), "byte 4129: object 1: 7 bytes, and 6 with padding"),
    "in-header": (build(Object(fields={"offset": 0})), "byte 4113: object 1 begins at 0, before the data"),
    "in-table": (build(Object(fields={"offset": DATA - 1})), "object 1 begins at 32175, before the data"),
    "past-data": (build(Object(fields={"offset": DATA + 1})), "object 1 ends at .*, after the data"),
    "past-data-in-file": (build(A, Object(fields={"size": 8, "padded": 8}), trailing=b"xx"), "object 2 ends"),
    "overlap": (build(A, Object(content=b"b" * 10, fields={"offset": DATA + 9})), "objects 1 and 2 overlap"),
    "twin": (build(A, Object(content=b"b" * 10, fields={"offset": DATA})), "objects 1 and 2 overlap"),
    "inside": (build(A, Object(content=b"b", fields={"offset": DATA + 3})), "objects 1 and 2 overlap"),
    "time": (build(Object(fields={"created": 2**60})), "byte 4137: object 1: the time"),
    "mtime": (build(Object(fields={"modified": 2**60})), "byte 4145: object 1: the time"),
    "name-nul": (build(Object(name=b"n" * 128)), "byte 4169: object 1: its name does not end with a NUL"),
    "name-rest": (build(Object(name=b"a\0b")), "byte 4170: object 1: its name has bytes after"),
    "name-utf8": (build(Object(name=b"\xc3")), "byte 4169: object 1: its name is no UTF-8"),
    "name-line": (build(Object(name=b"a\n")), "byte 4169: object 1: its name .* can't be printed"),
    "fs-type": (build(partition(fs=7)), "byte 4297: object 1: 7 is no FsType"),
    "part-type": (build(partition(part=0)), "byte 4301: object 1: 0 is no PartType"),
    "part-arch": (build(partition(arch=b"xx\0")), "byte 4305: unknown architecture 'xx'"),
    "other-arch": (build(partition(arch=b"04\0")), "byte 4305: object 1, the primary system, is for arm64"),
    "two-primary": (build(partition(), partition()), "byte 4681: objects 1 and 2 both are the primary"),
    "hash-type": (build(A, signature(hash_type=6)), "object 2: 6 is no HashType"),
    "entity": (build(A, signature(entity=b"x" * 21)), "object 2: bytes after its extra fields"),
    "format": (
        build(Object(make.CRYPTO, extra=struct.pack("<ii", 3, 0x200))),
        "object 1: 3 is no MessageFormat",
    ),
    "message": (build(Object(make.CRYPTO, extra=struct.pack("<ii", 1, 1))), "object 1: 1 is no MessageType"),
    "sbom": (build(Object(make.SBOM)), "object 1: 0 is no SbomFormat"),
    "oci": (build(Object(0x400A, extra=b"sha256:" + b"XY" * 32)), "byte 4297: object 1: .* is no digest"),
    "part-rest": (
        build(Object(make.PARTITION, extra=struct.pack("<ii3sx", 1, 3, b"02") + b"x")),
        "bytes after",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_reason_and_offset(name):
    image, message = REFUSED[name]
    with pytest.raises(SifError, match=message) as caught:
        read(image)
    assert str(caught.value).endswith(caught.value.reason)


@pytest.mark.parametrize(
    ("image", "code", "offset"),
    [
        (build(partition(), trailing=b"x"), "trailing-data", 32772),
        (build(partition(), data_size=32800 - DATA, trailing=bytes(28)), "trailing-data", 32772),
        (build(partition(), Object(content=b"", used=0)), "unused-descriptor", SLOT + 585),
        (patch(build(partition()), 200, b"x"), "hidden-data", 200),
        (patch(build(partition(), data_offset=32768), 32767, b"x"), "hidden-data", 32767),
        (build(partition(), Object(align=65536)), "hidden-data", 32772),
        (build(partition(align=65536)), "hidden-data", DATA),
        (build(partition(), Object(extra=b"x")), "unexpected-extra", SLOT + 585 + 201),
        (build(partition(), Object(group=0)), "ungrouped-object", SLOT + 585 + 9),
        (build(partition(part=1)), "no-primary-partition", 45),
    ],
)
def test_it_is_remarked(image, code, offset):
    assert [(remark.code, remark.offset) for remark in read(image).remarks] == [(code, offset)]


def test_limits_are_the_callers():
    with pytest.raises(SifError, match="a table of 48 descriptors, and the limit is 47"):
        read(build(partition()), descriptors=47)
    with pytest.raises(SifError, match="and the limit is 100"):
        read(build(partition()), file_size=100)


def test_a_file_is_opened_read_and_closed(tmp_path, image):
    path = tmp_path / "i.sif"
    path.write_bytes(image)
    with sif.open_image(path) as opened:
        assert opened.size == len(image)
        read_image = sif.read(opened)
        assert read_image.read_object(read_image.object(3)) == b"{}"
        opened.check_unchanged()
        fd = opened.fd
    opened.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_borrowed_descriptor_stays_open(tmp_path, image):
    path = tmp_path / "i.sif"
    path.write_bytes(image)
    with path.open("rb") as file:
        assert sif.read(file.fileno()).object(2)
        assert file.read(2) == b"#!"


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path, message in {
            tmp_path / "fifo": "it is a FIFO",
            "/dev/zero": "it is a character device",
            tmp_path: "it is a directory",
            tmp_path / "socket": "can't be opened: No such device or address",
            tmp_path / "none": "can't be opened: No such file or directory",
            "a\0b": "its path has a NUL character",
        }.items():
            with pytest.raises(SifError, match=message):
                sif.open_image(path)
    for link in ("dangling", "loop"):
        with pytest.raises(SifError, match="it is a symbolic link"):
            sif.open_image(tmp_path / link)
    with pytest.raises(SifError, match="No such file"):
        sif.open_image(tmp_path / "dangling", follow_symlinks=True)
    read_end, write_end = os.pipe()
    with pytest.raises(SifError, match="it is a FIFO"):
        sif.read(read_end)
    os.close(read_end)
    with pytest.raises(SifError, match="Bad file descriptor"):
        sif.read(read_end)
    os.close(write_end)


def test_a_symlink_is_followed_if_the_caller_says_so(tmp_path, image):
    (tmp_path / "i.sif").write_bytes(image)
    (tmp_path / "link").symlink_to("i.sif")
    with sif.open_image(tmp_path / "link", follow_symlinks=True) as opened:
        assert sif.read(opened).object(1)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with sif.open_image("i.sif", dir_fd=folder) as opened:
            assert sif.read(opened).object(1)
    finally:
        os.close(folder)


def test_a_huge_sparse_file_costs_nothing(tmp_path, image):
    path = tmp_path / "huge.sif"
    path.write_bytes(image)
    os.truncate(path, 100 * 10**9)
    with pytest.raises(SifError, match="it has 100000000000 bytes, and the limit is"):
        sif.open_image(path)
    with sif.open_image(path, limits=Limits(file_size=10**12)) as opened:
        assert [r.code for r in sif.read(opened, Limits(file_size=10**12)).remarks] == ["trailing-data"]


def test_a_file_that_shrinks_or_grows_meanwhile_is_refused(tmp_path, image):
    path = tmp_path / "i.sif"
    path.write_bytes(image)
    with sif.open_image(path) as opened:
        read_image = sif.read(opened)
        os.truncate(path, len(image) - 5)
        with pytest.raises(SifError, match=f"byte {len(image) - 5}: the file ends here"):
            read_image.read_object(read_image.object(4))
        with pytest.raises(SifError, match="the file changed while it was read"):
            opened.check_unchanged()
    path.write_bytes(image)
    with sif.open_image(path) as opened:
        os.truncate(path, 30000)
        with pytest.raises(SifError, match="byte 30000: the file ends here"):
            sif.read(opened)
