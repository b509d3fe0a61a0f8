"""Apptainer as a tree: made of packages and archives, whole or not at all, once for all who share it."""

import io
import multiprocessing
import os
import stat
import tarfile
from pathlib import Path

import pytest

from module_utils import apptainer_tree, apptainer_version
from module_utils.apptainer_tree import Entry, Tree, TreeError

PROGRAM = b"""#!/bin/sh
[ "$1" = --version ] && echo apptainer version 1.4.5 && exit
echo "$(dirname "$(dirname "$0")")/var/lib/apptainer/mnt/session"
"""
FILES = {
    "usr/bin/apptainer": (0o755, PROGRAM),
    "usr/libexec/apptainer/bin/starter": (0o4755, b"starter"),
    "etc/apptainer/apptainer.conf": (0o640, b"# nothing\n"),
}


def tar(path, files=FILES, links=()):
    with tarfile.open(path, "w:gz") as archive:
        for name, (mode, content) in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size, member.mode = len(content), mode
            archive.addfile(member, io.BytesIO(content))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return path


def cpio(*entries):
    """An archive as rpm2cpio writes it, of (name, mode, content)."""
    result = b""
    for name, mode, content in (*entries, ("TRAILER!!!", 0, b"")):
        fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        result += header + b"\0" * (-len(header) % 4) + content + b"\0" * (-len(content) % 4)
    return result


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "sw").mkdir()
    return Tree(str(tmp_path / "sw"), apptainer_version.parse("1.4.5"), ["b" * 64, "a" * 64])


def entries(tmp_path, **options):
    return apptainer_tree.read([tar(tmp_path / "apptainer.tar.gz", **options)])


def listed(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if not path.is_dir())


def test_it_comes_whole_without_a_setuid_bit_and_stays(tree, tmp_path):
    assert not apptainer_tree.is_there(tree)
    made = entries(tmp_path, links=[("usr/bin/singularity", "apptainer")])
    assert apptainer_tree.install(tree, made, "n1") and apptainer_tree.is_there(tree)
    assert listed(tree.path) == [
        ".apptainer-fleet.json",
        "bin/apptainer",
        "bin/singularity",
        "etc/apptainer/apptainer.conf",
        "libexec/apptainer/bin/starter",
    ]
    assert os.listdir(tree.prefix) == ["1.4.5"]  # noqa: PTH208
    assert (tree.path / "var/lib/apptainer/mnt/session").is_dir()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tree.path.rglob("*")}
    assert modes == {0o755, 0o644}


def test_what_is_there_is_never_replaced(tree, tmp_path):
    apptainer_tree.install(tree, entries(tmp_path), "n1")
    with pytest.raises(TreeError, match=f"is there and made of {'a' * 64}, {'b' * 64}"):
        apptainer_tree.is_there(tree._replace(digests=["c" * 64]))
    (tree.path / apptainer_tree.MARK).unlink()
    with pytest.raises(TreeError, match="not made by this project"):
        apptainer_tree.is_there(tree)


def test_a_prefix_that_is_not_there_is_no_place_to_make_one(tree):
    with pytest.raises(TreeError, match="mount its file system"):
        apptainer_tree.is_there(tree._replace(prefix="/nowhere/apptainer"))


@pytest.mark.parametrize("prefix", ["sw", "/sw", "/", "/sw/../x", "/sw/apptainer/", None, 3])
def test_a_prefix_has_to_be_a_directory_of_its_own(prefix):
    assert apptainer_tree.problem(prefix)
    assert apptainer_tree.problem("/sw/apptainer") is None


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (PROGRAM.replace(b"1.4.5", b"1.4.6"), "says 'apptainer version 1.4.6' on this node"),
        (b"#!/bin/sh\nexit 1\n", "says 'nothing' on this node"),
        (
            PROGRAM.replace(b'"$(dirname "$(dirname "$0")")', b'"'),
            "can't be moved, it looks for its files in /var",
        ),
    ],
)
def test_a_program_that_does_not_run_as_wanted_is_no_tree(tree, tmp_path, program, message):
    made = entries(tmp_path, files={**FILES, "usr/bin/apptainer": (0o755, program)})
    with pytest.raises(TreeError, match=message):
        apptainer_tree.install(tree, made, "n1")
    assert os.listdir(tree.prefix) == []  # noqa: PTH208


def test_what_a_killed_run_left_is_removed_and_that_of_another_node_is_not(tree, tmp_path):
    for name in (".1.4.5.n1.999999999", ".1.4.5.n2.999999999", f".1.4.5.n1.{os.getppid()}"):
        (Path(tree.prefix) / name).mkdir()
    apptainer_tree.install(tree, entries(tmp_path), "n1")
    left = sorted(os.listdir(tree.prefix))  # noqa: PTH208
    assert left == [f".1.4.5.n1.{os.getppid()}", ".1.4.5.n2.999999999", "1.4.5"]


def _install(tree, made, start, results):
    start.wait()
    results.put(apptainer_tree.install(tree, made, f"n{os.getpid()}"))


def test_of_many_nodes_at_the_same_time_one_makes_it(tree, tmp_path):
    made, start, results = entries(tmp_path), multiprocessing.Barrier(8), multiprocessing.Queue()
    nodes = [multiprocessing.Process(target=_install, args=(tree, made, start, results)) for _ in range(8)]
    for node in nodes:
        node.start()
    assert sorted(results.get(timeout=60) for _ in nodes) == [False] * 7 + [True]
    for node in nodes:
        node.join()
    assert os.listdir(tree.prefix) == ["1.4.5"] and apptainer_tree.is_there(tree)  # noqa: PTH208


def test_a_link_decides_what_users_of_a_node_get(tree, tmp_path):
    link = str(tmp_path / "apptainer")
    assert not apptainer_tree.linked(tree, link)
    apptainer_tree.install(tree, entries(tmp_path), "n1")
    apptainer_tree.put_link(tree, link)
    assert apptainer_tree.linked(tree, link) and os.path.realpath(link) == str(tree.path / "bin/apptainer")
    newer = tree._replace(version=apptainer_version.parse("1.4.6"))
    assert not apptainer_tree.linked(newer, link)
    apptainer_tree.put_link(newer, link)
    assert apptainer_tree.linked(newer, link)


def test_a_program_of_somebody_else_in_the_place_of_the_link_is_refused(tree, tmp_path):
    (tmp_path / "apptainer").write_text("")
    with pytest.raises(TreeError, match="leads to no tree of this project"):
        apptainer_tree.linked(tree, str(tmp_path / "apptainer"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"usr/bin/other": (0o755, b"")}, "none of apptainer.tar.gz has bin/apptainer"),
        ({**FILES, "usr/../../etc/passwd": (0o644, b"")}, "which leaves the tree"),
        ({**FILES, "usr/libexec/apptainer/bin/starter-suid": (0o4755, b"")}, "a tree can't have one"),
    ],
)
def test_hostile_and_wrong_archives_are_refused(tmp_path, files, message):
    with pytest.raises(TreeError, match=message):
        entries(tmp_path, files=files)


def test_links_out_of_the_tree_are_left_out_and_nothing_is_written_through_one(tree, tmp_path):
    links = [("usr/bin/absolute", "/etc/passwd"), ("usr/share", "../../outside")]
    made = entries(tmp_path, links=links)
    assert "bin/absolute" not in made
    made["share/file"] = Entry(0o644, b"x", "")
    with pytest.raises(OSError):
        apptainer_tree.install(tree, made, "n1")
    assert not (tmp_path / "outside").exists()


def test_what_rpm2cpio_writes_is_read():
    data = cpio(
        ("./usr/bin", 0o40755, b""),
        ("./usr/bin/apptainer", 0o100755, b"program"),
        ("./usr/bin/singularity", 0o120777, b"apptainer"),
    )
    read = dict(apptainer_tree.cpio(data, "x.rpm"))
    assert read == {
        "./usr/bin/apptainer": Entry(0o755, b"program", ""),
        "./usr/bin/singularity": Entry(0o777, b"", "apptainer"),
    }


@pytest.mark.parametrize("cut", [0, 5, 109, 120, 200])
def test_half_an_archive_of_rpm2cpio_is_refused(cut):
    data = cpio(("./usr/bin/apptainer", 0o100755, b"program" * 20))
    with pytest.raises(TreeError, match="ends too early"):
        dict(apptainer_tree.cpio(data[:cut], "x.rpm"))


def test_a_starter_that_lies_deeper_finds_the_tree_as_upstream_s_does(tree, tmp_path):
    """As Debian has it; the starter believes that its prefix is lib."""
    files = {name: value for name, value in FILES.items() if "libexec" not in name}
    files["usr/lib/x86_64-linux-gnu/apptainer/bin/starter"] = (0o755, b"starter")
    apptainer_tree.install(tree, entries(tmp_path, files=files), "n1")
    for path in (
        "etc/apptainer/apptainer.conf",
        "lib/x86_64-linux-gnu/apptainer/bin/starter",
        "bin/apptainer",
    ):
        assert (tree.path / "lib" / path).resolve() == tree.path / path
    assert (tree.path / "lib/var/lib/apptainer/mnt/session").is_dir()


def test_upstream_s_layout_gets_no_links(tree, tmp_path):
    apptainer_tree.install(tree, entries(tmp_path), "n1")
    assert not [path for path in tree.path.rglob("*") if path.is_symlink()]
