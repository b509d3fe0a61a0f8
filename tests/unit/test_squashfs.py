"""Root file systems, listed by unsquashfs without unpacking; names that want to fool whoever reads the list.

What is real here: file systems of mksquashfs (tests/squashfs_images.py), lines that unsquashfs 4.5.1 and
4.6.1 printed, and unsquashfs itself where this machine has it. A script stands in for it where it has to
misbehave.
"""

import os
import shutil

import pytest
import squashfs_images as images

from module_utils import squashfs
from module_utils.squashfs import Content, Entry, Paths, SquashfsError, Tool

needs_unsquashfs = pytest.mark.skipif(
    not shutil.which("unsquashfs"), reason="squashfs-tools is not installed"
)

ROOT = b"drwxr-xr-x 0/0                      82 2023-11-14 22:13 squashfs-root"
SETUID = ("/usr/bin/noexec", "/usr/bin/su", "/usr/bin/su2", "/usr/bin/wall")
DEVICES = ("/dev/null", "/dev/sda")


def listed(*lines):
    return list(squashfs.entries([ROOT, *lines]))[1:]


def line(mode, path, size=b"2"):
    return mode + b" 0/0 " + size.rjust(23) + b" 2023-11-14 22:13 squashfs-root" + path


@pytest.mark.parametrize(
    ("letters", "mode"),
    [
        (b"rwxr-xr-x", 0o755),
        (b"rwsr-xr-x", 0o4755),
        (b"rwSr--r--", 0o4644),
        (b"rwxr-sr-x", 0o2755),
        (b"rwxr-Sr-x", 0o2745),
        (b"rwxrwxrwt", 0o1777),
        (b"rwxrwxrwT", 0o1776),
        (b"---------", 0),
    ],
)
def test_modes(letters, mode):
    assert listed(line(b"-" + letters, b"/a")) == [Entry("-", mode, 0, 0, "/a")]


def test_a_line_has_owner_and_path():
    assert listed(b"brw-r--r-- 5/6                   8,  0 2023-11-14 22:13 squashfs-root/dev/sd a") == [
        Entry("b", 0o644, 5, 6, "/dev/sd a")
    ]
    assert next(iter(squashfs.entries([ROOT]))) == Entry("d", 0o755, 0, 0, "/")


def test_what_comes_before_the_root_folder_is_passed_by():
    assert listed() == []
    before = [b"Parallel unsquashfs: Using 2 processors", b"", line(b"-rwsr-xr-x", b"/not/yet")]
    assert len(list(squashfs.entries([*before, ROOT]))) == 1


@pytest.mark.parametrize(
    "strange",
    [
        b"",
        b"fake",
        b"#",
        b"-rwsr-xr-x 0,0 1 2020-01-01 00:00 squashfs-root\\fake",
        line(b"-rwsr-xr-x", b"/a").replace(b"squashfs-root", b"elsewhere"),
        line(b"?rwsr-xr-x", b"/a"),
        line(b"-rwsr-xr-q", b"/a"),
        line(b"-rwsr-xr-x", b"x"),
    ],
)
def test_a_line_that_is_none_is_no_file_and_is_noticed(strange):
    assert listed(strange) == [None]


def test_a_name_with_a_line_feed_hides_no_setuid_file():
    name = b"/a\n" + line(b"-rw-r--r--", b"/harmless") + b"\nz"
    seen = listed(*line(b"-rwsr-xr-x", name).split(b"\n"), line(b"-rwsr-xr-x", b"/b"))
    assert [entry.path for entry in seen if entry and entry.mode & 0o4000] == ["/a", "/b"]
    assert seen.count(None) == 1


def test_a_summary_counts_what_matters():
    content = squashfs.summary(
        [
            Entry("d", 0o755, 0, 0, "/"),
            Entry("d", 0o2755, 0, 0, "/srv"),
            Entry("d", 0o1777, 0, 0, "/tmp"),
            Entry("d", 0o777, 0, 0, "/home/a"),
            Entry("d", 0o1777, 0, 0, "/var/tmp"),
            Entry("d", 0o777, 0, 0, "/var/lib/x"),
            Entry("d", 0o1777, 0, 0, "/usr/lib"),
            Entry("l", 0o777, 0, 0, "/usr/link -> x"),
            Entry("-", 0o6755, 0, 0, "/bin/su"),
            None,
            Entry("c", 0o644, 0, 0, "/dev/null"),
        ]
    )
    writable = Paths(2, ("/var/lib/x", "/usr/lib"))
    assert content == Content(10, Paths(1, ("/bin/su",)), Paths(1, ("/dev/null",)), writable, None, 1)


@pytest.mark.parametrize(("mode", "path"), [(0o777, "/"), (0o777, "/etc"), (0o703, "/opt/a/b")])
def test_a_system_folder_that_everybody_may_write_to(mode, path):
    entries = [Entry("d", 0o755, 0, 0, "/"), Entry("d", mode, 0, 0, path)]
    assert squashfs.summary(entries).writable == Paths(1, (path,))


def test_thousands_of_findings_are_counted_and_not_kept():
    setuid = squashfs.summary(Entry("-", 0o4755, 0, 0, f"/{n}") for n in range(5000)).setuid
    assert (setuid.number, len(setuid.first)) == (5000, squashfs.MAX_PATHS)


def test_no_root_folder_is_an_error():
    with pytest.raises(SquashfsError, match="lists no root folder"):
        squashfs.summary(squashfs.entries([b"nothing"]))


# --- capabilities -------------------------------------------------------------------------------------------

END = [b"#", b"# START OF DATA - DO NOT MODIFY", b"#"]
CAPABILITY = b" x security.capability=0t\\001\\000\\000\\002\\000 \\000"


def pseudo(*lines):
    return list(squashfs.capabilities([b"/ D 1700000000 755 0 0", *lines]))


def test_capabilities_are_those_before_the_data():
    assert pseudo(
        b'usr/bin/a\\ b\\"c\\\\d R 1700000000 644 0 0 1 0 0',
        b"usr/link S 1700000000 777 0 0 ../bin/su",
        b"usr/ping" + CAPABILITY,
        b"usr/a\\ b" + CAPABILITY,
        b"su2 L usr/bin/su",
        *END,
        b"evil" + CAPABILITY,
    ) == ["/usr/ping", "/usr/a b"]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [b"#"],
        [b"#", b"x", b"#"],
        END[:2],
        [b"a b c", *END],
        [b"a", *END],
        [b"", *END],
        [b" R 1", *END],
    ],
)
def test_a_listing_that_is_none_or_is_cut_off_is_an_error(lines):
    with pytest.raises(SquashfsError, match="can't be read"):
        pseudo(*lines)


# --- the superblock -----------------------------------------------------------------------------------------


def test_the_superblock_tells_size_and_extended_attributes():
    assert squashfs.superblock(images.PLAIN, 10**6) == (244, False)
    assert squashfs.superblock(images.FULL, 716) == (716, True)


@pytest.mark.parametrize(
    ("octets", "room", "message"),
    [
        (b"", 10**6, "too small"),
        (images.PLAIN[:95], 10**6, "too small"),
        (b"sqsh" + images.PLAIN[4:], 10**6, "does not begin as a SquashFS"),
        (images.PLAIN[:28] + b"\3" + images.PLAIN[29:], 10**6, "SquashFS 3, and only version 4"),
        (images.FULL, 715, "has 716 bytes, and its partition 715"),
    ],
)
def test_a_superblock_that_is_none(octets, room, message):
    with pytest.raises(SquashfsError, match=message):
        squashfs.superblock(octets, room)


# --- real unsquashfs ----------------------------------------------------------------------------------------


@pytest.fixture
def content(tmp_path):
    """List a file system that stands at *offset* in a file."""

    def run(octets, tool=None, offset=4096, after=b"", **limits):
        path = tmp_path / "image"
        path.write_bytes(bytes(offset) + octets + after)
        fd = os.open(path, os.O_RDONLY)
        try:
            tool = tool or squashfs.find_tool()
            return squashfs.content(tool, fd, offset, len(octets), **limits)
        finally:
            os.close(fd)

    return run


@needs_unsquashfs
@pytest.mark.parametrize("everybody", [True, False])
def test_a_file_system_is_listed_from_its_offset(content, everybody):
    result = content(images.FULL, everybody=everybody, after=b"another object")
    assert (result.entries, result.strange) == (20, 0)
    assert result.setuid == Paths(4, SETUID) and result.devices == Paths(2, DEVICES)
    assert result.writable == Paths(1, ("/etc",))
    if squashfs.find_tool().shows_capabilities:
        assert result.capabilities == Paths(1, ("/usr/bin/ping",))
    else:
        assert result.capabilities is None


@needs_unsquashfs
def test_without_extended_attributes_there_are_no_capabilities(content):
    empty = Paths(0, ())
    assert content(images.PLAIN) == Content(3, empty, empty, empty, empty, 0)


@needs_unsquashfs
def test_hostile_names_hide_nothing(content):
    result = content(images.HOSTILE)
    assert result.setuid == Paths(4, SETUID) and result.devices == Paths(2, DEVICES)
    assert result.strange > 0 and result.capabilities is None


@needs_unsquashfs
def test_a_hostile_attribute_hides_no_capability(content):
    result = content(images.HOSTILE_XATTR)
    shown = squashfs.find_tool().shows_capabilities
    assert result.capabilities == (Paths(1, ("/z",)) if shown else None)


@needs_unsquashfs
@pytest.mark.parametrize("cut", [97, 150, 240])
def test_a_damaged_file_system_is_an_error(content, cut):
    with pytest.raises(SquashfsError, match=r"unsquashfs can't read it|lists no root"):
        content(images.FULL[:cut] + bytes(len(images.FULL) - cut))


# --- an unsquashfs that misbehaves, a script in its place ---------------------------------------------------


@pytest.fixture
def script(tmp_path):
    """Make a program that prints what unsquashfs 4.6 would, or does anything else."""

    def make(body, version="4.6.1"):
        path = tmp_path / "unsquashfs"
        path.write_text(
            "#!/bin/sh\n"
            f'if [ "$1" = -version ]; then echo "unsquashfs version {version} (x)"; exit 1; fi\n'
            f"{body}\n"
        )
        path.chmod(0o755)
        return Tool(str(path), tuple(map(int, version.split(".")[:2])))

    return make


def test_what_it_lists_counts_only_if_it_succeeds(content, script):
    good = f"echo '{ROOT.decode()}'"
    assert content(images.PLAIN, script(good)).entries == 1
    with pytest.raises(SquashfsError, match=r"can't read it \(exit status 1\)"):
        content(images.PLAIN, script(f"{good}; exit 1"))
    with pytest.raises(SquashfsError, match=r"can't read it \(exit status -9\)"):
        content(images.PLAIN, script(f"{good}; kill -9 $$"))


def test_a_listing_without_end_is_stopped(content, script):
    endless = script("while :; do echo 123456789; done")
    with pytest.raises(SquashfsError, match="more than 100000 bytes"):
        content(images.PLAIN, endless, output_bytes=100_000)


def test_a_line_without_end_is_stopped(content, script):
    with pytest.raises(SquashfsError, match="too long"):
        content(images.PLAIN, script("tr '\\0' x </dev/zero"))


@pytest.mark.parametrize("end", ["", "exec >&-;"])
def test_one_that_hangs_is_ended(content, script, end):
    body = f"echo '{ROOT.decode()}'; {end} exec sleep 100"
    with pytest.raises(SquashfsError, match="took too long"):
        content(images.PLAIN, script(body), seconds=0.3)


def test_a_program_that_is_gone_is_an_error(content, tmp_path):
    with pytest.raises(SquashfsError, match=r"can't be run|exit status"):
        content(images.PLAIN, Tool(str(tmp_path / "nothing"), (4, 6)))


def test_capabilities_are_asked_of_those_who_know(content, script):
    full = f'case "$*" in *-lln*) echo "{ROOT.decode()}";; *) {{}};; esac'
    listing = "printf '%s\\n' 'a x security.capability=0t' '#' '# START OF DATA - DO NOT MODIFY' '#'"
    old = script(full.format("exit 1"), "4.5.1")
    assert content(images.FULL, old).capabilities is None
    new = script(full.format(f"{listing}; exec yes"))
    assert content(images.FULL, new).capabilities == Paths(1, ("/a",))


def test_the_newest_is_found(script, tmp_path, monkeypatch):
    monkeypatch.setattr(squashfs, "_PATH", str(tmp_path))
    monkeypatch.setattr(squashfs, "PLACES", (str(tmp_path / "bundled"),))
    with pytest.raises(SquashfsError, match="install squashfs-tools"):
        squashfs.find_tool()
    old = script("", "4.5.1")
    assert squashfs.find_tool() == old and not squashfs.find_tool().shows_capabilities
    (tmp_path / "bundled").mkdir()
    shutil.copy(script("", "4.7.5").path, tmp_path / "bundled")
    script("", "4.6.1")
    assert squashfs.find_tool() == Tool(str(tmp_path / "bundled/unsquashfs"), (4, 7))
