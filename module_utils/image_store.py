# SPDX-License-Identifier: Apache-2.0
"""A store of images: a folder, often on a shared file system, into which an image comes whole or not at all.

An image is copied under a temporary name into the folder, read back and judged there, and then linked to its
own name, which fails if that is taken: whoever publishes at the same moment, on this node or another, one of
them wins, and no reader ever sees a part or another content under a name. ``NAME_VERSION.sif.sha256`` beside
it is in the form of sha256sum(1), so that anybody can check a copy.

What is taken out of the store goes to ``.quarantine`` with the reason, and its digest does not come back
until somebody removes that record. Jobs that have the file open keep it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import stat
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from . import atomic_file, image_facts, sif
from .image_check import Checker
from .image_lock import Locked, name_and_version
from .image_rules import Image, Owned, Verdict
from .sif import SifError

QUARANTINE = ".quarantine"
_TEMPORARY = ".tmp"
# A publisher that is slower than that is none any more.
_ABANDONED_SECONDS = 86400
_CHUNK = 4 * 1024 * 1024
_UNLIMITED = sif.Limits(file_size=2**63 - 1)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100


class StoreError(Exception):
    """What keeps an image out of the store, or in it; the message says why and what to do."""


class RefusedError(StoreError):
    """An image that the policy refuses; *verdict* says why."""

    def __init__(self, message: str, verdict: Verdict) -> None:
        super().__init__(message)
        self.verdict = verdict


@dataclass(frozen=True)
class Quarantined:
    """What is known of an image in quarantine. *when* is seconds since 1970.

    One that nobody had published has no *version*, and the name of its file for *name*.
    """

    name: str
    version: str
    sha256: str
    reason: str
    when: int


class Store:
    """The store in the folder *path*, whose images *checker* judges and get the permissions *mode*."""

    def __init__(self, path: str, checker: Checker, mode: int = 0o644, severity: str = "error") -> None:
        """Findings of *severity* and above keep an image out. Raises StoreError if *path* is no store."""
        self.path, self.checker, self.mode, self.severity = os.path.realpath(path), checker, mode, severity
        try:
            status = os.lstat(self.path)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}; make the folder of the store first") from error
        if not stat.S_ISDIR(status.st_mode):
            raise StoreError(f"{path} is no folder; give that of the store")
        check_folder(self.path)

    def place(self, image: Locked) -> str:
        """Return where *image* is published."""
        return f"{self.path}/{image.file_name}"

    # --- publication ------------------------------------------------------------------------------------

    def publish(self, image: Locked, source: str, *, dry_run: bool = False) -> bool:
        """Publish the file *source* as *image*, whose SHA-256 it must have.

        Return whether that changed anything. Raises StoreError, and RefusedError with the verdict; the store
        is unchanged then.
        """
        final = self.place(image)
        if os.path.lexists(final):
            return self._already(image, dry_run)
        self._refuse_quarantined(image)
        with _explained("the image can't be read"):
            self._judge_source(image, source)
        if dry_run:
            return True
        self._remove_abandoned(image)
        with _explained(f"{image.file_name} can't be published"):
            return self._copy_and_link(image, source)

    def _already(self, image: Locked, dry_run: bool) -> bool:
        """Whether the digest beside a published image had to be written; raise if it is another image."""
        final = self.place(image)
        checked = self.checker.examine(final)
        found = checked.verdict.sha256
        if found != image.sha256:
            there = f"another image, SHA-256 {found}" if found else str(checked.verdict.findings[0].evidence)
            raise StoreError(
                f"{final} is there, and it is {there}: nothing is replaced under a name. Publish another "
                "version, or take that one out of the store first"
            )
        if checked.verdict.refused(self.severity):
            raise _refused(f"{final} is published, and refused now", checked.verdict, self.severity)
        line = digest_line(image.sha256, image.file_name)
        with _explained(f"{final}.sha256 can't be written"):
            if atomic_file.read(f"{final}.sha256") == line:
                return False
            if not dry_run:
                atomic_file.replace(f"{final}.sha256", line, 0o644)
        return True

    def _refuse_quarantined(self, image: Locked) -> None:
        for record in self.quarantined():
            if record.sha256 == image.sha256:
                raise StoreError(
                    f"{image.file_name}: this content is in quarantine: {record.reason}. "
                    f"If it is good again, remove {self._record(record)} first"
                )

    def _judge_source(self, image: Locked, source: str) -> None:
        """Judge *source* as if it were in the store already, so that nothing is copied in vain."""
        folders = image_facts.folders(self.path)
        found, verdict = judge_elsewhere(self.checker, source, self.place(image), self.mode, folders)
        self._must_be_good(image, found, verdict)

    def _must_be_good(self, image: Locked, found: Image, verdict: Verdict) -> None:
        if found.failure is None and verdict.sha256 != image.sha256:
            raise StoreError(
                f"{image.file_name}: {found.path} has SHA-256 {verdict.sha256}, and {image.sha256} was to be "
                "published: transfer it again, or lock the new one"
            )
        if verdict.refused(self.severity):
            raise _refused(f"{image.file_name} is refused", verdict, self.severity)

    def _copy_and_link(self, image: Locked, source: str) -> bool:
        final = self.place(image)
        with self._temporary(image) as (temporary, file), self._temporary(image) as (beside, line):
            with sif.open_image(os.path.realpath(source), limits=_UNLIMITED) as opened:
                self._copy(opened, file)
                opened.check_unchanged()
            _write(line, digest_line(image.sha256, image.file_name))
            os.fchmod(file, self.mode)
            os.fchmod(line, 0o644)
            os.fsync(file)
            os.fsync(line)
            # What is on the disk now, not what was sent there.
            checked = self.checker.examine(temporary)
            assert checked.image is not None  # noqa: S101 - examine always looks
            self._must_be_good(image, checked.image, checked.verdict)
            if not _link(temporary, final):
                # Somebody else was faster; perhaps with the same content.
                return self._already(image, dry_run=False)
            os.rename(beside, f"{final}.sha256")  # noqa: PTH104
        _sync(self.path)
        return True

    @contextlib.contextmanager
    def _temporary(self, image: Locked) -> Iterator[Tuple[str, int]]:
        """Give a new file in the store, path and descriptor, that is gone afterwards."""
        descriptor, path = tempfile.mkstemp(f"{_TEMPORARY}", f".{image.file_name}.", self.path)
        try:
            yield path, descriptor
        finally:
            os.close(descriptor)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108

    def _copy(self, source: sif.ImageFile, target: int) -> None:
        free = os.fstatvfs(target)
        if free.f_bavail * free.f_frsize < source.size:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: it has {source.size} bytes")
        for _, chunk in source.chunks(0, source.size, _CHUNK):
            _write(target, chunk)

    def _remove_abandoned(self, image: Locked) -> None:
        """Remove what publishers of this image left that were killed."""
        prefix = f".{image.file_name}."
        with contextlib.suppress(OSError), os.scandir(self.path) as entries:
            for entry in entries:
                if entry.name.startswith(prefix) and entry.name.endswith(_TEMPORARY):
                    with contextlib.suppress(OSError):
                        if entry.stat(follow_symlinks=False).st_mtime < time.time() - _ABANDONED_SECONDS:
                            os.unlink(entry.path)  # noqa: PTH108

    # --- quarantine -------------------------------------------------------------------------------------

    def quarantine(
        self, name: str, version: str, reason: str, *, dry_run: bool = False
    ) -> Optional[Quarantined]:
        """Take an image out of the store for *reason*; return what was done, None if it was not there.

        Raises StoreError.
        """
        return self.quarantine_file(Locked(name, version, "", 0).file_name, reason, dry_run=dry_run)

    def quarantine_file(self, file_name: str, reason: str, *, dry_run: bool = False) -> Optional[Quarantined]:
        """As `quarantine`, of the file *file_name*, which need not be named as a store names images."""
        name, version = name_and_version(file_name) or (file_name, "")
        final = f"{self.path}/{file_name}"
        with _explained(f"{final} can't be taken out of the store"):
            if not os.path.lexists(final):
                return None
            found = self.checker.examine(final).verdict.sha256
            # What can't be read to its end is no image any more, and goes all the same.
            record = Quarantined(name, version, found or "unknown", reason, int(time.time()))
            if dry_run:
                return record
            os.makedirs(f"{self.path}/{QUARANTINE}", mode=0o700, exist_ok=True)  # noqa: PTH103
            # The record first: from now on the content can't come back.
            content = json.dumps(record.__dict__, indent=1, sort_keys=True) + "\n"
            atomic_file.replace(self._record(record), content.encode(), 0o600)
            kept = self._record(record)[: -len(".json")]
            try:
                os.rename(final, kept)  # noqa: PTH104
            except FileNotFoundError:
                # Another node has taken it away in the meantime; its record may be this one.
                if not os.path.lexists(kept):
                    os.unlink(self._record(record))  # noqa: PTH108
                return None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{final}.sha256")  # noqa: PTH108
            _sync(f"{self.path}/{QUARANTINE}")
            _sync(self.path)
        return record

    def quarantined(self) -> List[Quarantined]:
        """Return what is in quarantine. Raises StoreError."""
        folder = f"{self.path}/{QUARANTINE}"
        result = []
        with _explained(f"{folder} can't be read"):
            if not os.path.isdir(folder):  # noqa: PTH112
                return []
            for name in sorted(os.listdir(folder)):  # noqa: PTH208
                if name.endswith(".json"):
                    try:
                        values: Dict[str, Any] = json.loads((Path(folder) / name).read_bytes())
                        result.append(Quarantined(**values))
                    except (ValueError, TypeError) as error:
                        raise StoreError(
                            f"{folder}/{name} is no record: {error}; mend or remove it"
                        ) from error
        return result

    def _record(self, record: Quarantined) -> str:
        name = Locked(record.name, record.version, "", 0).file_name if record.version else record.name
        return f"{self.path}/{QUARANTINE}/{name}.{record.sha256[:16]}.{record.when}.json"


def check_folder(path: str) -> None:
    """Raise StoreError if others than its owner and root could put files into the folder *path*.

    Whoever may write to a folder above it could put another one in its place, unless that one is sticky.
    """
    for folder in image_facts.folders(os.path.realpath(path)):
        sticky = folder.mode & stat.S_ISVTX and folder.path != os.path.realpath(path)
        if folder.uid not in (0, os.geteuid()) or (folder.mode & 0o022 and not sticky):
            raise StoreError(
                f"{folder.path} can be written by others (owner {folder.owner}, mode {folder.mode:04o}): "
                "take their permissions away, or they could publish what they want"
            )


def judge_elsewhere(
    checker: Checker, source: str, place: str, mode: int, folders: Tuple[Owned, ...]
) -> Tuple[Image, Verdict]:
    """Judge the file *source* as if it were at *place*, as a file of ours with *mode* below *folders*."""
    found = checker.examine(source).image
    assert found is not None  # noqa: S101 - examine always looks
    file = found.file and Owned(
        *(place, os.geteuid(), os.getegid()),
        *(image_facts.user_name(os.geteuid()), image_facts.group_name(os.getegid()), mode),
    )
    moved = replace(found, real=place, symlink=False, file=file, folders=folders)
    return moved, checker.judge(moved)


def digest_line(sha256: str, name: str) -> bytes:
    """Return what ``sha256sum NAME`` prints for a file of that digest; *name* has nothing that it escapes."""
    return f"{sha256}  {name}\n".encode()


def read_digest(content: bytes, name: str) -> str:
    """Return the digest of a file that ``sha256sum -c`` takes, for the file *name*.

    Raises ValueError if it is none, or for another file.
    """
    try:
        digest, _, named = content.decode("ascii").rstrip("\n").partition(" ")
    except UnicodeDecodeError as error:
        raise ValueError("it is no text") from error
    if not _DIGEST.fullmatch(digest) or named[:1] not in (" ", "*"):
        raise ValueError("it is not what sha256sum writes")
    if named[1:] != name:
        raise ValueError(f"it is for {named[1:]!r}, not {name!r}")
    return digest


def _refused(message: str, verdict: Verdict, severity: str) -> RefusedError:
    return RefusedError("\n".join([f"{message}:", *map(str, verdict.counting(severity))]), verdict)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what the system says into a StoreError that begins with *what*."""
    try:
        yield
    except SifError as error:
        raise StoreError(f"{what}: {error}") from error
    except OSError as error:
        where = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        hint = "; make room, and publish it again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise StoreError(f"{what}: {error.strerror}{where}{hint}") from error


def _write(descriptor: int, octets: Any) -> None:
    rest = memoryview(octets)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _link(temporary: str, final: str) -> bool:
    """Give *temporary* the name *final*; return False if that is taken. Raises OSError."""
    try:
        os.link(temporary, final, follow_symlinks=False)
    except FileExistsError:
        # A server of NFS may have done it, and its answer was lost on the way.
        return _same(temporary, final)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        return _rename_noreplace(temporary, final)
    return True


def _same(temporary: str, final: str) -> bool:
    try:
        return os.path.samestat(os.lstat(temporary), os.lstat(final))
    except FileNotFoundError:
        return False


def _rename_noreplace(temporary: str, final: str) -> bool:
    """As `_link`, on file systems without hard links: renameat2(2)."""
    rename: Callable[..., int] = ctypes.CDLL(None, use_errno=True).renameat2
    names = os.fsencode(temporary), os.fsencode(final)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EEXIST:
        return False
    raise OSError(number, os.strerror(number), final)


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
