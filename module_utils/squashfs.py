# SPDX-License-Identifier: Apache-2.0
"""What is in a SquashFS file system, read from the listings of unsquashfs(1); nothing is unpacked.

Two listings are read. ``unsquashfs -lln`` prints a line for each file, mode and owner first and its name as
it is. A name can hold a line feed, so that one file has several lines; but its true line is among them,
whatever its name is, so nothing can be hidden, and a line that is none says that somebody tried. Capabilities
of files are extended attributes, which only the pseudo-file listing (``-pf -``, squashfs-tools 4.6 and later)
shows; it is asked for if the file system has any extended attributes at all.

Sources: squashfs-tools, unsquashfs.c (print_filename, pseudo_print); Linux, fs/squashfs/squashfs_fs.h (the
superblock) and fs/squashfs/super.c (SQUASHFS_INVALID_BLK for "no extended attributes").
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import selectors
import shutil
import struct
import subprocess
import time
from typing import IO, Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

_SUPERBLOCK = struct.Struct("<4sIIIIHHHHHHQQQQQQQQ")
SUPERBLOCK_SIZE = _SUPERBLOCK.size
_NO_TABLE = 0xFFFFFFFFFFFFFFFF
# -pf prints extended attributes since then (squashfs-tools, CHANGES).
_XATTR_VERSION = (4, 6)

#: What a listing may cost: seconds, bytes of output, bytes of one line, bytes of memory of unsquashfs.
SECONDS = 300.0
OUTPUT_BYTES = 1024**3
_LINE_BYTES = 256 * 1024
_MEMORY_BYTES = 4 * 1024**3
#: How many paths of one kind are kept; their number is told anyway.
MAX_PATHS = 1000

_ROOT = b"squashfs-root"
_LINE = re.compile(
    rb"([-dlcbps])([-r][-w][-xsS][-r][-w][-xsS][-r][-w][-xtT]) ([0-9]+)/([0-9]+) +(?:[0-9]+|[0-9]+, *[0-9]+) "
    rb"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2} squashfs-root(/.*)?"
)
# In a name, blanks, quotes, backslashes and line feeds have a backslash before them.
_PSEUDO_LINE = re.compile(rb"((?:[^\\\s]|\\.)+) ([BCDFILRSx])( .*)?", re.DOTALL)
# Names of other attributes are printed as they are and could pretend the end of the listing.
_PSEUDO_OPTIONS = ("-xattrs-include", r"^security\.capability$", "-pf", "-")
_PSEUDO_END = [b"#", b"# START OF DATA - DO NOT MODIFY", b"#"]
_CAPABILITY = b" security.capability="


class SquashfsError(ValueError):
    """Why the content can't be listed, a sentence that may go into a report."""


class Superblock(NamedTuple):
    """Of the superblock: *size* is that of the file system in bytes, *xattrs* whether there may be any."""

    size: int
    xattrs: bool


class Entry(NamedTuple):
    """A file: *kind* is the first letter of its mode as ls(1) has it, *path* absolute within the image."""

    kind: str
    mode: int
    uid: int
    gid: int
    path: str


class Paths(NamedTuple):
    """Files of one kind: how many there are, and the first `MAX_PATHS` of them."""

    number: int
    first: Tuple[str, ...]


class Content(NamedTuple):
    """What a policy may want to know of a root file system.

    *setuid* are files with the setuid or setgid bit, *devices* block and character devices, *writable* system
    folders that everybody may write to. *capabilities* are files with capabilities, None if the installed
    squashfs-tools can't tell. *strange* is how many lines of the listing are no file: names with line feeds.
    """

    entries: int
    setuid: Paths
    devices: Paths
    writable: Paths
    capabilities: Optional[Paths]
    strange: int


class Tool(NamedTuple):
    """An unsquashfs: where it is, and its version."""

    path: str
    version: Tuple[int, int]

    @property
    def shows_capabilities(self) -> bool:
        """Whether it lists extended attributes."""
        return self.version >= _XATTR_VERSION


#: Where Apptainer's own packages keep a newer one than the distribution has (since 1.5).
PLACES = ("/usr/libexec/apptainer/bin", "/usr/lib/x86_64-linux-gnu/apptainer/bin")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"PATH": _PATH, "LC_ALL": "C", "TZ": "UTC"}


def find_tool() -> Tool:
    """Return the newest unsquashfs of this machine. Raises SquashfsError if there is none."""
    found = [shutil.which("unsquashfs", path=place) for place in (*PLACES, *_PATH.split(":"))]
    real = dict.fromkeys(os.path.realpath(path) for path in found if path)
    tools = [tool for tool in map(_tool, real) if tool is not None]
    if not tools:
        raise SquashfsError("there is no unsquashfs: install squashfs-tools")
    return max(tools, key=lambda tool: tool.version)


def _tool(path: str) -> Optional[Tool]:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        ended = subprocess.run(  # noqa: S603 - a fixed argument
            [path, "-version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_ENVIRONMENT,
            timeout=30,
            check=False,
        )
        match = re.match(rb"unsquashfs version ([0-9]+)\.([0-9]+)", ended.stdout)
        if match:
            return Tool(path, (int(match.group(1)), int(match.group(2))))
    return None


def superblock(octets: bytes, room: int) -> Superblock:
    """Read the first `SUPERBLOCK_SIZE` bytes of a file system that has *room* bytes at most.

    Raises SquashfsError if it is no SquashFS 4 or does not fit.
    """
    if len(octets) < SUPERBLOCK_SIZE:
        raise SquashfsError("the partition is too small for a SquashFS")
    fields = _SUPERBLOCK.unpack(octets[:SUPERBLOCK_SIZE])
    if fields[0] != b"hsqs":
        raise SquashfsError("the partition does not begin as a SquashFS does")
    if fields[9] != 4:  # noqa: PLR2004 - the version that Linux mounts
        raise SquashfsError(f"SquashFS {fields[9]}, and only version 4 is known")
    size, xattr_table = fields[12], fields[14]
    if size > room:
        raise SquashfsError(f"the SquashFS has {size} bytes, and its partition {room}")
    return Superblock(size, xattr_table != _NO_TABLE)


def entries(lines: Iterable[bytes]) -> Iterator[Optional[Entry]]:
    """Yield the files of an ``unsquashfs -lln`` listing, and None for each line that is none.

    What older versions say before the root folder is passed by.
    """
    begun = False
    for line in lines:
        match = _LINE.fullmatch(line)
        if not begun:
            begun = bool(match and match.group(1) == b"d" and not match.group(5))
            if not begun:
                continue
        if match is None:
            yield None
        else:
            kind, mode, uid, gid, path = match.groups()
            yield Entry(kind.decode(), _mode(mode), int(uid), int(gid), _text(path or b"/"))


def _mode(letters: bytes) -> int:
    """Return the number of nine letters such as ``rwsr-xr-t``."""
    mode = 0
    for place, letter in enumerate(letters):
        if letter in b"rwxst":
            mode |= 0o400 >> place
        if letter in b"sStT":
            mode |= (0o4000, 0o2000, 0o1000)[place // 3]
    return mode


def _text(path: bytes) -> str:
    return path.decode("utf-8", errors="backslashreplace")


def capabilities(lines: Iterable[bytes]) -> Iterator[str]:
    """Yield the paths of files with capabilities in a pseudo-file listing, up to where its data begins.

    Raises SquashfsError for a line that is none, or if it ends before the data. Targets of links are printed
    as they are: whoever asks has to know from the other listing that none has a line feed, or else it could
    pretend the end.
    """
    end: List[bytes] = []
    for line in lines:
        if end or line == _PSEUDO_END[0]:
            end.append(line)
            if end == _PSEUDO_END:
                return
            if end != _PSEUDO_END[: len(end)]:
                break
            continue
        match = _PSEUDO_LINE.fullmatch(line)
        if match is None:
            break
        name, kind, rest = match.groups()
        if kind == b"x" and (rest or b"").startswith(_CAPABILITY):
            yield _text(b"/" + re.sub(rb"\\(.)", rb"\1", name, flags=re.DOTALL).lstrip(b"/"))
    raise SquashfsError("the listing of extended attributes can't be read")


class _Collected:
    """The first paths of one kind, and their number."""

    def __init__(self) -> None:
        self.count = 0
        self.first: List[str] = []

    def add(self, path: str) -> None:
        self.count += 1
        if len(self.first) < MAX_PATHS:
            self.first.append(path)

    def paths(self) -> Paths:
        return Paths(self.count, tuple(self.first))


# Folders that programs and settings of a system are in; others belong to the application.
_SYSTEM = frozenset(
    ["", "bin", "boot", "etc", "lib", "lib32", "lib64", "libx32", "opt", "root", "sbin", "usr", "var"]
)
_SETUID, _STICKY, _OTHERS_WRITE = 0o6000, 0o1000, 0o002


def summary(listed: Iterable[Optional[Entry]]) -> Content:
    """Return what is in a listing, *capabilities* not yet known.

    In /var, where a sticky folder for everybody is common, only those without the sticky bit count. Raises
    SquashfsError if there is not even a root folder.
    """
    count = strange = 0
    setuid, devices, writable = _Collected(), _Collected(), _Collected()
    for entry in listed:
        if entry is None:
            strange += 1
            continue
        count += 1
        if entry.kind == "-" and entry.mode & _SETUID:
            setuid.add(entry.path)
        elif entry.kind in "bc":
            devices.add(entry.path)
        elif entry.kind == "d" and entry.mode & _OTHERS_WRITE:
            top = entry.path.split("/", 2)[1]
            if top in _SYSTEM and not (top == "var" and entry.mode & _STICKY):
                writable.add(entry.path)
    if not count:
        raise SquashfsError("unsquashfs lists no root folder")
    return Content(count, setuid.paths(), devices.paths(), writable.paths(), None, strange)


def content(
    tool: Tool,
    fd: int,
    offset: int,
    size: int,
    *,
    everybody: bool = False,
    seconds: float = SECONDS,
    output_bytes: int = OUTPUT_BYTES,
) -> Content:
    """List the SquashFS of at most *size* bytes at *offset* of the open file *fd*.

    *everybody* says that the file may be read by all; unsquashfs then runs as nobody if this process is root,
    as it reads what strangers made. Raises SquashfsError for what can't be listed within the limits.
    """
    try:
        block = superblock(os.pread(fd, SUPERBLOCK_SIZE, offset), size)
    except OSError as error:
        raise SquashfsError(f"it can't be read: {error.strerror}") from error
    limits: Dict[str, Any] = {
        "everybody": everybody,
        "deadline": time.monotonic() + seconds,
        "most": output_bytes,
    }
    place = ["-offset", str(offset)]
    with _Listing(tool, ["-lln", *place], fd, **limits) as listing:
        result = summary(entries(listing.lines()))
        listing.must_have_succeeded()
    if not block.xattrs:
        return result._replace(capabilities=Paths(0, ()))
    if result.strange or not tool.shows_capabilities:
        return result
    found = _Collected()
    with _Listing(tool, [*_PSEUDO_OPTIONS, *place], fd, **limits) as listing:
        for path in capabilities(listing.lines()):
            found.add(path)
    return result._replace(capabilities=found.paths())


class _Listing:
    """A running unsquashfs over the open file *fd*, ended when it is left."""

    def __init__(
        self, tool: Tool, options: Sequence[str], fd: int, *, everybody: bool, deadline: float, most: int
    ) -> None:
        # Only one processor and small caches: what it unpacks here is names.
        argv = [tool.path, "-processors", "1", "-data-queue", "8", "-frag-queue", "8", *options]
        argv.append(f"/proc/self/fd/{fd}")
        setpriv = shutil.which("setpriv", path=_PATH)
        if everybody and setpriv and os.geteuid() == 0:
            nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs"]
            argv = [setpriv, *nobody, "--", *argv]
        self.deadline, self.most = deadline, most
        try:
            self.process = subprocess.Popen(  # noqa: S603 - argv, no shell
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[fd],
                cwd="/",
                env=_ENVIRONMENT,
            )
        except OSError as error:
            raise SquashfsError(f"{argv[0]} can't be run: {error.strerror}") from error
        for limit, value in (
            (resource.RLIMIT_AS, _MEMORY_BYTES),
            (resource.RLIMIT_CPU, int(max(1.0, deadline - time.monotonic())) + 1),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_CORE, 0),
        ):
            # It may have ended already.
            with contextlib.suppress(OSError, ValueError):
                resource.prlimit(self.process.pid, limit, (value, value))

    def __enter__(self) -> _Listing:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self._stdout.close()
        self.process.wait()

    @property
    def _stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None  # noqa: S101 - for the type
        return self.process.stdout

    def lines(self) -> Iterator[bytes]:
        """Yield its lines without their ends. Raises SquashfsError at a limit."""
        rest = b""
        for chunk in self._chunks():
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
            if len(rest) > _LINE_BYTES:
                raise SquashfsError("a name or link target in it is too long")
        if rest:
            yield rest

    def _chunks(self) -> Iterator[bytes]:
        total = 0
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while True:
                left = self.deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise SquashfsError("listing it took too long")
                chunk = os.read(self._stdout.fileno(), 1 << 16)
                if not chunk:
                    return
                total += len(chunk)
                if total > self.most:
                    raise SquashfsError(f"its listing has more than {self.most} bytes")
                yield chunk

    def must_have_succeeded(self) -> None:
        """Raise SquashfsError unless it ended by itself with exit status 0."""
        try:
            code = self.process.wait(max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise SquashfsError("listing it took too long") from error
        if code:
            raise SquashfsError(f"unsquashfs can't read it (exit status {code})")
