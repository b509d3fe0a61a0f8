"""What is read of an image through one open file, and files that are none or do not keep still."""

import dataclasses
import grp
import hashlib
import io
import os
import pwd
import stat
import subprocess

import image_store
import pytest
import sif_builder as make
import squashfs_images

from module_utils import image_facts, image_policy, sif, squashfs
from module_utils.image_facts import Needs, Verifier, definition_sources
from module_utils.image_rules import Contents, Partition, Signatures
from module_utils.sif_signers import Authenticity
from module_utils.squashfs import Content, Paths, SquashfsError, Tool

NOTHING = Needs(sha256=False, labels=False, sources=False, signatures=False, root=False)


def no_tool():
    raise SquashfsError("there is no unsquashfs: install squashfs-tools")


def examine(path, wanted=NOTHING, **options):
    options = {"tool": no_tool, **options}
    return image_facts.examine(str(path), wanted, lambda _: None, **options)


@pytest.fixture
def path(tmp_path):
    return image_store.put(tmp_path / "a_1.sif", image_store.image(labels={"tier": "gold"}))


def test_an_image_is_described(path):
    wanted = Needs(root=False, signatures=False)
    image = examine(path, wanted)
    status = path.stat()
    assert (image.path, image.real, image.symlink, image.failure) == (str(path), str(path), False, None)
    assert image.size == status.st_size and image.stat == image_facts.identify(status)
    assert image.contents == Contents(
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        architecture="amd64",
        created=1700000000,
        partitions=(Partition(3, "squashfs", "primary_system", "amd64"),),
        labels={"tier": "gold"},
        sources=("docker://registry.example/base@sha256:1234",),
    )


def test_only_what_is_wanted_is_read(path, monkeypatch):
    hashed = image_store.counting_hashes(monkeypatch)
    contents = examine(path).contents
    assert contents.architecture == "amd64"
    assert (contents.sha256, contents.labels, contents.sources, contents.root) == (None,) * 4
    assert hashed == []


def test_owner_and_mode_of_file_and_folders(path):
    path.chmod(0o640)
    path.parent.chmod(0o1777)
    image = examine(path)
    me, mine = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    assert image.file == (str(path), os.geteuid(), os.getegid(), me, mine, 0o640)
    assert image.folders[0][0] == str(path.parent) and image.folders[0].mode == 0o1777
    assert [folder.path for folder in image.folders][-2:] == ["/" + str(path).split("/")[1], "/"]


def test_an_owner_without_name_is_a_number(path, monkeypatch):
    monkeypatch.setattr(image_facts.pwd, "getpwuid", lambda _: {}["x"])
    image_facts.user_name.cache_clear()
    assert examine(path).file.owner == str(os.geteuid())
    image_facts.user_name.cache_clear()


def test_a_link_is_followed_and_said(path, tmp_path):
    (tmp_path / "folder").symlink_to(tmp_path)
    (tmp_path / "link.sif").symlink_to("folder/a_1.sif")
    image = examine(tmp_path / "link.sif")
    assert (image.symlink, image.real, image.failure) == (True, str(path), None)
    # A link in a folder above is no link itself.
    assert examine(tmp_path / "folder/a_1.sif").symlink is False


# --- files that are none ------------------------------------------------------------------------------------


def fifo(path):
    os.mkfifo(path)


def loop(path):
    path.symlink_to(path.with_name("b"))
    path.with_name("b").symlink_to(path)


def dangling(path):
    path.symlink_to("nothing")


def device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("what", "evidence"),
    [
        (lambda path: None, "it can't be opened: No such file or directory"),
        (fifo, "it is a FIFO, and an image is a regular file"),
        (loop, "it is a symbolic link, or its path has too many"),
        (dangling, "it can't be opened: No such file or directory"),
        (device, "it is a character device, and an image is a regular file"),
        (lambda path: path.mkdir(), "it is a directory, and an image is a regular file"),
    ],
)
def test_what_is_no_regular_file_is_said_and_never_waited_for(tmp_path, what, evidence):
    path = tmp_path / "a.sif"
    what(path)
    image = examine(path)
    assert image.failure[0] == "readable" and image.failure[1].startswith(evidence)
    assert image.stat is None and image.contents == Contents()


def test_a_path_that_is_none_is_said():
    assert examine("a\0b").failure == ("readable", "it can't be opened: embedded null byte")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_may_not_be_read_is_said(path):
    path.chmod(0o600)
    os.seteuid(65534)
    try:
        image = examine(path, Needs())
    finally:
        os.seteuid(0)
    assert image.failure == ("readable", "it can't be opened: Permission denied")


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", bytes(200_000), b"x" * 127])
def test_what_is_no_image_is_not_hashed(tmp_path, content, monkeypatch):
    hashed = image_store.counting_hashes(monkeypatch)
    image = examine(image_store.put(tmp_path / "a.sif", content), Needs())
    assert image.failure[0] == "structure" and image.contents == Contents() and hashed == []


def test_what_is_too_large_is_not_even_read(path, monkeypatch):
    monkeypatch.setattr(sif, "read", None)
    os.truncate(path, 100 * 1024**3)
    policy = image_policy.read({}, None)
    image = image_facts.examine(str(path), Needs(), policy.largest)
    assert image.failure == ("max_size_mib", "it has 107374182400 bytes, and may have 65536 MiB")
    limit = image_facts.examine(str(path), Needs(), lambda folder: {str(path.parent): 7}[folder])
    assert limit.failure == ("max_size_mib", "it has 107374182400 bytes, and may have 7 MiB")


# --- files that change --------------------------------------------------------------------------------------


@pytest.fixture
def meanwhile(monkeypatch):
    """Have something done while the image is read, after its structure was."""

    def do(what):
        real = sif.Sif.of_type

        def of_type(self, *types):
            monkeypatch.setattr(sif.Sif, "of_type", real)
            what()
            return real(self, *types)

        monkeypatch.setattr(sif.Sif, "of_type", of_type)

    return do


WANTED = Needs(root=False, signatures=False)


@pytest.mark.parametrize("size", [0, 100, 40_000])
def test_a_file_that_shrinks_is_said(path, meanwhile, size):
    meanwhile(lambda: os.truncate(path, size))
    image = examine(path, WANTED)
    assert image.failure[0] == "unchanged" and "changed while it was read" in image.failure[1]
    assert image.stat is None and image.contents == Contents()


def test_a_file_that_grows_is_said(path, meanwhile):
    def grow():
        with path.open("ab") as file:
            file.write(b"x")

    meanwhile(grow)
    assert examine(path, WANTED).failure[0] == "unchanged"


def test_a_file_that_is_written_to_is_said(path, meanwhile):
    def write():
        os.utime(path, ns=(1, 1))

    meanwhile(write)
    assert examine(path, WANTED).failure[0] == "unchanged"


def test_a_file_that_is_replaced_is_said(path, meanwhile):
    def replace():
        other = image_store.put(path.with_name("other"), path.read_bytes())
        # The first one keeps its times: only the path tells.
        os.link(path, path.with_name("kept"))
        other.rename(path)

    meanwhile(replace)
    image = examine(path, WANTED)
    assert image.failure[0] == "unchanged"


def test_a_file_that_is_swapped_without_a_change_of_its_own_is_said(path, monkeypatch):
    other = image_store.put(path.with_name("other"), path.read_bytes())
    monkeypatch.setattr(sif.ImageFile, "check_unchanged", lambda self: other.replace(path))
    image = examine(path, WANTED)
    assert image.failure == ("unchanged", "another file was put in its place while it was read")


def test_a_file_that_is_taken_away_is_said(path, monkeypatch):
    monkeypatch.setattr(sif.ImageFile, "check_unchanged", lambda self: path.unlink())
    assert examine(path, WANTED).failure[1].startswith("it was taken away while it was read")


# --- what is remembered -------------------------------------------------------------------------------------


def test_what_is_known_is_not_read_again(path, monkeypatch):
    first = examine(path, WANTED)
    monkeypatch.setattr(sif, "read", None)
    asked = []

    def known(status):
        asked.append(status)
        return first.contents

    assert examine(path, WANTED, known=known) == dataclasses.replace(first, remembered=True)
    assert asked == [image_facts.identify(path.stat())]


def test_what_is_not_known_yet_is_read(path, monkeypatch):
    hashed = image_store.counting_hashes(monkeypatch)
    first = examine(path, NOTHING._replace(sha256=True))
    both = examine(path, WANTED, known=lambda _: first.contents)
    assert both.contents.labels == {"tier": "gold"} and both.contents.sha256 == first.contents.sha256
    assert len(hashed) == 1


# --- labels and sources -------------------------------------------------------------------------------------


def labels(*objects):
    return image_facts.labels(sif.read(io.BytesIO(make.build(make.partition(), *objects))))


def metadata(text, name=b"inspect-metadata.json"):
    return make.Object(make.JSON, text, name=name)


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ((), {}),
        ((metadata(b'{"data":{"attributes":{"labels":{"a":"b"}}}}'),), {"a": "b"}),
        ((metadata(b'{"data":{"attributes":{}}}'),), {}),
        ((metadata(b'{"data":{"attributes":{"labels":{"a":"b"}}}}', b"other.json"),), {}),
        ((make.Object(make.LABELS, b'{"a":"b"}'),), {"a": "b"}),
        (
            (
                make.Object(make.LABELS, b'{"a":"b"}'),
                metadata(b'{"data":{"attributes":{"labels":{"a":"b","c":"d"}}}}'),
            ),
            {"a": "b", "c": "d"},
        ),
    ],
)
def test_labels(objects, expected):
    assert labels(*objects) == expected


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ((make.Object(make.LABELS, b"{"),), "object 2 is no JSON"),
        ((make.Object(make.LABELS, b"\xff\xfe"),), "object 2 is no JSON"),
        ((make.Object(make.LABELS, b"[" * 100_000),), "object 2 is no JSON"),
        ((make.Object(make.LABELS, b"[]"),), "object 2 holds no labels"),
        ((make.Object(make.LABELS, b'{"a":1}'),), "object 2 holds no labels"),
        ((metadata(b'{"data":3}'),), "object 2 holds no labels"),
        ((metadata(b'{"data":{"attributes":{"labels":[]}}}'),), "object 2 holds no labels"),
        (
            (make.Object(make.LABELS, b'{"a":"b"}'), make.Object(make.LABELS, b'{"a":"c"}')),
            "object 3 says a is 'c', another one 'b'",
        ),
        ((make.Object(make.LABELS, b" " * 2**20 + b"{}"),), "and the limit is"),
    ],
)
def test_labels_that_are_none(objects, message):
    with pytest.raises(ValueError, match=message):
        labels(*objects)


def test_labels_that_cannot_be_read_are_a_problem_of_theirs_alone(tmp_path):
    broken = image_store.image(extra=(make.Object(make.LABELS, b"{"),))
    contents = examine(image_store.put(tmp_path / "a.sif", broken), WANTED).contents
    assert contents.labels == {} and "no JSON" in contents.labels_problem and contents.sha256


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Bootstrap: docker\nFrom: debian:13\n", ["docker://debian:13"]),
        ("bootstrap:docker\nfrom:debian:13", ["docker://debian:13"]),
        ("FROM: x # why\nBOOTSTRAP: Docker # y\n", ["://x", "docker"]),
        ("Bootstrap: scratch\n%post\nFrom: nowhere\n", ["scratch"]),
        (
            "Bootstrap: debootstrap\nMirrorURL: http://a/debian\nOSVersion: x\n",
            ["debootstrap://http://a/debian"],
        ),
        ("Bootstrap: docker\nFrom: a\nFrom: b\n", ["docker://b"]),
        ("Bootstrap: docker\nFrom: a\\\n/b\n", ["docker://a/b"]),
        ("Bootstrap: docker\nFrom: a\nStage: one\n%post\n x\nBootstrap: localimage\nFrom: /b\n", None),
        ("# a comment\n\nBootstrap: docker\nFrom: a\n", ["docker://a"]),
        ("Bootstrap: docker\n  %post\nFrom: good\n", ["docker"]),
        ("From: evil\n Bootstrap: docker\n%post\nFrom: good\n", ["docker://evil"]),
        (
            "Bootstrap: docker\nRegistry: evil.example\nNamespace: x\nFrom: library/python\n",
            ["docker://evil.example/x/library/python"],
        ),
        ("Bootstrap: docker\nNamespace: evil\nFrom: python\n", ["docker://evil/python"]),
        (
            "Bootstrap: yum\nFrom: good\nMirrorURL: http://evil/\nUpdateURL: http://worse/\n",
            ["yum://good", "yum://http://evil/", "yum://http://worse/"],
        ),
        (
            "Bootstrap: library\nFrom: debian\nLibrary: https://evil\n",
            ["library://debian", "library://https://evil"],
        ),
        ("%post\n  true\n", []),
        ("", []),
    ],
)
def test_what_a_definition_begins_from(text, expected):
    expected = ["docker://a", "localimage:///b"] if expected is None else expected
    assert definition_sources(text) == expected


@pytest.mark.parametrize(
    ("definition", "problem"),
    [
        (None, "it has no definition that says what it was built from"),
        (b"%post\n", "it has no definition that says what it was built from"),
        (b"\xff", "its definition, object 1, is no UTF-8"),
    ],
)
def test_an_image_that_does_not_say_what_it_was_built_from(tmp_path, definition, problem):
    path = image_store.put(tmp_path / "a.sif", image_store.image(definition=definition))
    contents = examine(path, WANTED).contents
    assert (contents.sources, contents.sources_problem) == ((), problem)


def test_an_image_without_a_date_has_none(tmp_path):
    root = make.partition(squashfs_images.PLAIN, fields={"created": -62135596800})
    path = image_store.put(tmp_path / "a.sif", make.build(root))
    assert examine(path).contents.created is None


def test_remarks_are_told_and_that_of_the_root_file_system_is_a_rule(tmp_path):
    path = image_store.put(tmp_path / "a.sif", image_store.image(trailing=b"more"))
    assert examine(path).contents.remarks == ("4 bytes after the last object belong to none",)
    path = image_store.put(tmp_path / "b.sif", make.build())
    assert examine(path).contents.remarks == ()


# --- root file systems --------------------------------------------------------------------------------------

ROOT = NOTHING._replace(root=True)
LISTED = Content(1, *[Paths(0, ())] * 4, 0)


def test_the_root_file_system_is_listed_where_it_stands(path, monkeypatch):
    asked = {}

    def content(tool, fd, offset, size, everybody):
        asked.update(tool=tool, inode=os.fstat(fd).st_ino, offset=offset, size=size, everybody=everybody)
        return LISTED

    monkeypatch.setattr(squashfs, "content", content)
    tool = Tool("/x", (4, 6))
    path.chmod(0o640)
    image = examine(path, ROOT, tool=lambda: tool)
    primary = sif.read(io.BytesIO(path.read_bytes())).primary_partition()
    assert image.contents.root == LISTED and image.stat
    assert asked == {
        "tool": tool,
        "inode": path.stat().st_ino,
        "offset": primary.offset,
        "size": len(squashfs_images.PLAIN),
        "everybody": False,
    }
    path.chmod(0o644)
    examine(path, ROOT, tool=lambda: tool)
    assert asked["everybody"] is True


def test_what_this_machine_could_not_list_is_not_remembered(path):
    image = examine(path, ROOT)
    assert image.contents.root_problem == "there is no unsquashfs: install squashfs-tools"
    assert image.contents.root is None and image.stat is None


@pytest.mark.parametrize(
    ("objects", "problem"),
    [
        ((make.partition(fs=2),), "its root file system is ext3"),
        ((make.partition(fs=5),), "its root file system is encrypted_squashfs"),
        ((), "it has no root file system"),
        ((make.partition(part=3),), "it has no root file system"),
    ],
)
def test_another_root_file_system_is_never_listed(tmp_path, objects, problem):
    image = examine(image_store.put(tmp_path / "a.sif", make.build(*objects)), ROOT)
    assert (image.contents.root, image.contents.root_problem) == (None, problem)
    assert image.stat is not None


def test_capabilities_are_looked_for_again_by_a_newer_unsquashfs(path, monkeypatch):
    old = LISTED._replace(capabilities=None)
    monkeypatch.setattr(squashfs, "content", lambda *_, **__: LISTED)
    known = Contents(architecture="amd64", root=old)
    image = examine(path, ROOT, tool=lambda: Tool("/x", (4, 5)), known=lambda _: known)
    assert image.contents.root == old
    image = examine(path, ROOT, tool=lambda: Tool("/x", (4, 6)), known=lambda _: known)
    assert image.contents.root == LISTED
    # Strange names stay so.
    known = Contents(architecture="amd64", root=old._replace(strange=1))
    image = examine(path, ROOT, tool=lambda: Tool("/x", (4, 6)), known=lambda _: known)
    assert image.contents.root.strange == 1


# --- signatures ---------------------------------------------------------------------------------------------

SIGNED = NOTHING._replace(signatures=True, sha256=True)


def test_signatures_are_verified_and_what_is_wrong_is_said(path):
    verifier = Verifier(lambda *_: {}, "keys 1")
    contents = examine(path, SIGNED, verifier=verifier).contents
    assert contents.signatures == Signatures((), "it has no signature") and contents.keys == "keys 1"


def test_without_keys_nothing_is_verified(path):
    assert examine(path, SIGNED).contents.signatures is None


def test_other_keys_are_another_verification(path):
    known = Contents(architecture="amd64", sha256="x", signatures=Signatures(("A" * 40,)), keys="keys 1")
    same = examine(path, SIGNED, verifier=Verifier(lambda *_: {}, "keys 1"), known=lambda _: known)
    assert same.contents == known
    other = examine(path, SIGNED, verifier=Verifier(lambda *_: {}, "keys 2"), known=lambda _: known)
    assert other.contents.signatures.problem == "it has no signature"


def test_a_program_that_could_not_verify_is_a_problem_and_not_remembered(path, monkeypatch):
    def verify(*_):
        raise subprocess.TimeoutExpired("apptainer", 1)

    monkeypatch.setattr(image_facts.sif_signers, "verify", verify)
    image = examine(path, SIGNED, verifier=Verifier(lambda *_: {}, "k"))
    assert image.contents.signatures.problem.startswith("they could not be verified") and image.stat is None


def test_signatures_and_digest_are_one_reading(tmp_path, monkeypatch):
    path = image_store.put(tmp_path / "a.sif", image_store.image(extra=(make.signature(b"x"),)))
    algorithms = []
    real = image_facts.Digests.whole
    monkeypatch.setattr(
        image_facts.Digests,
        "whole",
        lambda self, names: (algorithms.append(list(names)), real(self, names))[1],
    )
    verifier = Verifier(lambda *_: {1: Authenticity()}, "k")
    contents = examine(path, SIGNED, verifier=verifier).contents
    assert algorithms == [["sha256"]]
    assert contents.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


# --- what a policy needs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "needed"),
    [
        ({}, set()),
        ({"rules": {"locked": True}}, set()),
        ({"rules": {"labels": {"a": "*"}}}, {"labels"}),
        ({"rules": {"bootstrap_sources": ["x"]}}, {"sources"}),
        ({"rules": {"signatures": {"signers": ["A" * 40]}}}, {"signatures"}),
        ({"rules": {"setuid_files": []}}, {"root"}),
        (
            {"scopes": [{"name": "a", "directories": ["/a"], "rules": {"device_nodes": None}}]},
            set(),
        ),
        ({"scopes": [{"name": "a", "labels": {"x": "*"}}]}, {"labels"}),
        ({"scopes": [{"name": "a", "directories": ["/a"], "rules": {"writable_folders": []}}]}, {"root"}),
    ],
)
def test_only_what_a_policy_asks_for_is_needed(policy, needed):
    wanted = image_facts.needs(image_policy.read(policy, None))
    assert {name for name, value in wanted._asdict().items() if value} == needed | {"sha256"}


def test_the_mode_of_a_folder_has_its_sticky_bit(tmp_path):
    tmp_path.chmod(0o1777)
    assert image_facts.folders(str(tmp_path))[0].mode & stat.S_ISVTX
