# SPDX-License-Identifier: Apache-2.0
"""Apptainer as a tree that can lie anywhere, such as a file system that many nodes share.

The tree is ``PREFIX/VERSION``, made of package files or archives, without a setuid starter: Apptainer finds
its libraries and its configuration from where its program lies, if no such starter is there (``RelocatePath``
in ``internal/pkg/buildcfg`` of https://github.com/apptainer/apptainer; its ``tools/install-unprivileged.sh``
unpacks packages in the same way). It comes into place whole, by one rename, and is never changed afterwards
but for its configuration. So nodes that share it may all install it at the same time, and a node decides by a
link of its own which version its users get.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

from . import apptainer_packages, apptainer_version

#: Where users of a node find it; and in the tree, of which files it was made.
LINK, MARK = apptainer_packages.TREE_LINK, apptainer_packages.TREE_MARK
PROGRAM = "bin/apptainer"

_CPIO_MAGIC, _CPIO_HEADER, _CPIO_END = (b"070701", b"070702"), 110, "TRAILER!!!"


class TreeError(Exception):
    """There can be no such tree, or another one is in its place; the message names the mend."""


class Entry(NamedTuple):
    """A file of a package, by its path in the tree. link: where a symbolic link leads, empty for files."""

    mode: int
    content: bytes
    link: str


class Tree(NamedTuple):
    """A tree as it is wanted. prefix: an existing directory. digests: SHA-256 of what it is made of."""

    prefix: str
    version: apptainer_version.Version
    digests: Sequence[str]

    @property
    def path(self) -> Path:
        """Return where it lies."""
        return Path(self.prefix, str(self.version))

    @property
    def mark(self) -> Dict[str, object]:
        """Return what its `MARK` says."""
        return {"version": str(self.version), "sha256": sorted(self.digests)}


def problem(prefix: object) -> Optional[str]:
    """Return why *prefix* can hold no trees by its name, None if it can."""
    if not isinstance(prefix, str) or not prefix.startswith("/") or os.path.normpath(prefix) != prefix:
        return f"path {prefix!r} must be absolute, without '..' and without a slash at the end"
    if prefix.count("/") < 2:  # noqa: PLR2004 - directories of the system are one below /
        return f"path {prefix} must be a directory of its own, like /sw/apptainer"
    return None


def is_there(tree: Tree) -> bool:
    """Whether the tree is in its place. Raises TreeError if something else is, or if there is no prefix."""
    if not Path(tree.prefix).is_dir():
        raise TreeError(
            f"apptainer_tree: there is no directory {tree.prefix} on this node: mount its file system, or"
            " make it"
        )
    if not os.path.lexists(str(tree.path)):
        return False
    try:
        mark = json.loads((tree.path / MARK).read_text())
    except (OSError, ValueError):
        mark = None
    if mark != tree.mark:
        made = f"made of {', '.join(mark['sha256'])}" if mark else "not made by this project"
        raise TreeError(
            f"apptainer_tree: {tree.path} is there and {made}; containers may be running from it, so it"
            " is not replaced: move it away, or install as another apptainer_version"
        )
    return True


def linked(tree: Tree, link: str = LINK) -> bool:
    """Whether users of this node get the tree. Raises TreeError if *link* is a file that is not ours."""
    if not os.path.lexists(link):
        return False
    target = os.readlink(link) if Path(link).is_symlink() else ""  # noqa: PTH115 - Path can since 3.9
    if target == str(tree.path / PROGRAM):
        return True
    if not apptainer_packages.leads_to_tree(link):
        raise TreeError(
            f"apptainer_tree: {link} is there and leads to no tree of this project: move it away, users would"
            " get it instead"
        )
    return False


def put_link(tree: Tree, link: str = LINK) -> None:
    """Let users of this node get the tree from now on. Raises OSError."""
    temporary = Path(f"{link}.{os.getpid()}")
    if os.path.lexists(str(temporary)):
        temporary.unlink()
    temporary.symlink_to(tree.path / PROGRAM)
    temporary.rename(link)


def install(tree: Tree, entries: Dict[str, Entry], node: str) -> bool:
    """Put the tree in its place, unless another node is faster; return whether this one was.

    entries: of `read`. node: the name of this node. Raises TreeError and OSError.
    """
    begin = f".{tree.version}.{node}."
    for old in Path(tree.prefix).glob(f"{begin}*"):
        # Of a run on this node that was killed.
        if not Path("/proc", old.name[len(begin) :]).exists():
            shutil.rmtree(str(old))
    part = Path(tree.prefix, f"{begin}{os.getpid()}")
    try:
        part.mkdir(mode=0o755)
        _fill(part, entries)
        _prove(part, tree.version.release)
        _write(part / MARK, (json.dumps(tree.mark, indent=2) + "\n").encode(), 0o644)
        try:
            part.rename(tree.path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not is_there(tree):
                raise
            return False
    finally:
        if part.exists():
            shutil.rmtree(str(part))
    return True


def read(paths: Sequence[Path]) -> Dict[str, Entry]:
    """Return path in the tree → entry, of packages and archives. Raises TreeError and OSError."""
    result: Dict[str, Entry] = {}
    for path in paths:
        for name, entry in _entries(path):
            parts = [part for part in name.split("/") if part not in ("", ".")]
            if parts[:1] == ["usr"]:
                parts = parts[1:]
            if ".." in parts:
                raise TreeError(
                    f"apptainer_package_files: {path.name} has the path {name}, which leaves the tree"
                )
            if parts[-1:] == ["starter-suid"]:
                raise TreeError(
                    f"apptainer_package_files: {path.name} has a setuid starter, and a tree can't have one:"
                    " give the files without apptainer-suid"
                )
            # A link with an absolute target would lead out of the tree.
            if parts and not entry.link.startswith("/"):
                result["/".join(parts)] = entry
    if PROGRAM not in result:
        names = ", ".join(path.name for path in paths)
        raise TreeError(f"apptainer_package_files: none of {names} has {PROGRAM}, or usr/{PROGRAM}")
    return result


def _entries(path: Path) -> Iterator["tuple[str, Entry]"]:
    with path.open("rb") as file:
        magic = file.read(8)
    if magic == b"!<arch>\n":
        yield from _tar(path, ["dpkg-deb", "--fsys-tarfile", str(path)])
    elif magic[:4] == b"\xed\xab\xee\xdb":
        yield from cpio(_output(path, ["rpm2cpio", str(path)]), path.name)
    else:
        yield from _tar(path, [])


def _output(path: Path, argv: Sequence[str]) -> bytes:
    try:
        return subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout
    except FileNotFoundError as error:
        raise TreeError(
            f"apptainer_package_files: {path.name} can't be unpacked without {argv[0]}"
        ) from error
    except subprocess.CalledProcessError as error:
        raise TreeError(f"apptainer_package_files: {argv[0]} can't unpack {path.name}") from error


def _tar(path: Path, argv: Sequence[str]) -> Iterator["tuple[str, Entry]"]:
    source = path
    if argv:
        source = path.with_suffix(".tar")
        source.write_bytes(_output(path, argv))
    try:
        with tarfile.open(str(source)) as archive:
            for member in archive:
                if member.isfile():
                    file = archive.extractfile(member)
                    yield member.name, Entry(member.mode, file.read() if file else b"", "")
                elif member.issym():
                    yield member.name, Entry(0o777, b"", member.linkname)
                elif not member.isdir():
                    raise TreeError(
                        f"apptainer_package_files: {path.name} has {member.name}, which is neither a file"
                        " nor a symbolic link"
                    )
    except (tarfile.TarError, EOFError) as error:
        raise TreeError(f"apptainer_package_files: {path.name} is no archive: {error}") from error


def cpio(data: bytes, name: str) -> Iterator["tuple[str, Entry]"]:
    """Yield the files and links of an archive as rpm2cpio writes it (cpio(5), new ASCII format).

    name: of the package, for messages. Raises TreeError.
    """
    position = 0
    while True:
        header = data[position : position + _CPIO_HEADER]
        if len(header) < _CPIO_HEADER or header[:6] not in _CPIO_MAGIC:
            raise TreeError(f"apptainer_package_files: {name} is no package: its content ends too early")
        try:
            fields = [int(header[start : start + 8], 16) for start in range(6, _CPIO_HEADER, 8)]
        except ValueError as error:
            raise TreeError(f"apptainer_package_files: {name} is no package: a header is damaged") from error
        mode, size, name_size = fields[1], fields[6], fields[11]
        start = position + _CPIO_HEADER
        path = data[start : start + name_size].rstrip(b"\0").decode(errors="surrogateescape")
        begin = (start + name_size + 3) & ~3
        content = data[begin : begin + size]
        position = (begin + size + 3) & ~3
        if path == _CPIO_END:
            return
        if stat.S_ISLNK(mode):
            yield path, Entry(0o777, b"", content.decode(errors="surrogateescape"))
        elif stat.S_ISREG(mode):
            yield path, Entry(stat.S_IMODE(mode), content, "")


def _fill(folder: Path, entries: Dict[str, Entry]) -> None:
    """Write *entries* below the empty *folder*: links last, so that nothing is written through one."""
    for name, entry in sorted(entries.items(), key=lambda item: (bool(item[1].link), item[0])):
        path = folder / name
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if entry.link:
            path.symlink_to(entry.link)
        else:
            # Of the modes of packages, only whether it is a program counts: never a setuid bit.
            _write(path, entry.content, 0o755 if entry.mode & 0o111 else 0o644)
    _link_for_starter(folder, entries)
    for parent, _, _ in os.walk(str(folder)):
        Path(parent).chmod(0o755)


def _link_for_starter(folder: Path, entries: Dict[str, Entry]) -> None:
    """Let the starter find the tree where Debian's package has it, a directory deeper than upstream.

    It takes what lies four steps above itself for the prefix, which upstream is the tree, but
    ``lib`` of ``lib/x86_64-linux-gnu/apptainer/bin/starter``.
    """
    for name in entries:
        parts = name.split("/")
        if parts[-3:] == ["apptainer", "bin", "starter"] and len(parts) > 4:  # noqa: PLR2004 - libexec, and these
            prefix = folder.joinpath(*parts[:-4])
            for top in sorted({entry.split("/")[0] for entry in entries} | {"var"}):
                if not os.path.lexists(str(prefix / top)):
                    (prefix / top).symlink_to("../" * (len(parts) - 4) + top)


def _write(path: Path, content: bytes, mode: int) -> None:
    with path.open("xb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _prove(folder: Path, release: str) -> None:
    """Raise TreeError unless the program in *folder* runs, is *release*, and finds itself there."""
    said: List[str] = []
    for words in (["--version"], ["--config", os.devnull, "buildcfg", "SESSIONDIR"]):
        ended = subprocess.run(
            [str(folder / PROGRAM), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=apptainer_packages.ENVIRONMENT,
            universal_newlines=True,
            check=False,
        )
        said.append(ended.stdout.strip())
    version = (apptainer_version.printed(said[0]) or "").split("-")[0]
    if version != release:
        raise TreeError(
            f"apptainer_tree: the program in apptainer_package_files says {said[0] or 'nothing'!r} on this"
            f" node, and apptainer_version is {release}"
        )
    if not said[1].startswith(f"{folder}/"):
        raise TreeError(
            f"apptainer_tree: this Apptainer can't be moved, it looks for its files in {said[1] or 'nothing'}"
        )
    # Where it mounts containers; packages make it, or have a script that does.
    Path(said[1]).mkdir(mode=0o755, parents=True, exist_ok=True)
