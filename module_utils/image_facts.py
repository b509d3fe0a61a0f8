# SPDX-License-Identifier: Apache-2.0
"""What an image is: everything that `image_rules` judges, read through one open file.

The file is opened once, never through a symbolic link at the end of its real path and never waiting for a
FIFO or device, and hashed, read and listed through that descriptor. A file that changed meanwhile, or stands
no more at its path, has no verdict but that.

A writer that has the file mapped into memory can change it without a trace in its times. So what strangers
may write has to be refused by its owner and mode, which no reading can replace.
"""

from __future__ import annotations

import functools
import grp
import json
import os
import pwd
import re
import stat
import subprocess
from dataclasses import replace
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from . import sif, sif_signers, squashfs
from .image_policy import INSIDE, Policy
from .image_rules import MIB, Contents, Image, Owned, Partition, Signatures, Stat, too_large
from .sif import DataType, FsType, ImageFile, Sif, SifError
from .sif_integrity import Digests
from .sif_signers import Authenticator
from .squashfs import SquashfsError, Tool

_UNLIMITED = sif.Limits(file_size=2**63 - 1)
#: Where ``apptainer build`` keeps the labels (since Singularity 3.6).
METADATA = "inspect-metadata.json"


class Verifier(NamedTuple):
    """How signatures are verified: by whom they are made and with which keys.

    *authenticate* is an authenticator of `sif_signers`, *keys* a digest of the keys that it knows.
    """

    authenticate: Authenticator
    keys: str


class Needs(NamedTuple):
    """What has to be read of an image beside its structure."""

    sha256: bool = True
    labels: bool = True
    sources: bool = True
    signatures: bool = True
    root: bool = True


def needs(policy: Policy) -> Needs:
    """Return what *policy* can want to know of an image."""
    judged = policy.judged
    return Needs(
        sha256=True,
        labels=policy.reads_labels,
        sources="bootstrap_sources" in judged,
        signatures="signatures" in judged,
        root=bool(judged & INSIDE),
    )


def examine(
    path: str,
    wanted: Needs,
    largest_mib: Callable[[str], Optional[int]],
    *,
    verifier: Optional[Verifier] = None,
    tool: Optional[Callable[[], Tool]] = None,
    known: Callable[[Stat], Optional[Contents]] = lambda _: None,
) -> Image:
    """Look at the image at *path*; never raises for what it is.

    *largest_mib* gives the most MiB that an image in a folder may have, None for any. *tool* finds
    unsquashfs, at the first need. *known* gives what is remembered of a file.
    """
    real = path
    try:
        real = os.path.realpath(path)
        symlink = stat.S_ISLNK(os.lstat(path).st_mode)
        image = Image(path, real, symlink=symlink, folders=folders(os.path.dirname(real)))  # noqa: PTH120
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Image(path, real, failure=("readable", f"it can't be opened: {reason}"))
    try:
        file = sif.open_image(real, limits=_UNLIMITED)
    except SifError as error:
        return replace(image, failure=("readable", str(error)))
    with file:
        status = file.stat
        image = replace(image, size=status.st_size, file=_owned(real, status))
        limit = largest_mib(os.path.dirname(real))  # noqa: PTH120
        if limit is not None and status.st_size > limit * MIB:
            return replace(image, failure=("max_size_mib", too_large(status.st_size, limit)))
        identity = identify(status)
        remembered = known(identity)
        try:
            reader = _Reader(file, wanted, verifier, tool)
            contents = reader.contents(remembered)
        except SifError as error:
            failure = _changed(file, real) or ("structure", str(error))
            return replace(image, failure=failure)
        failed = _changed(file, real)
        if failed:
            return replace(image, failure=failed)
    lasting = identity if reader.lasting else None
    return replace(image, contents=contents, stat=lasting, remembered=contents == remembered)


def identify(status: os.stat_result) -> Stat:
    """Return what tells that a file is the same."""
    return Stat(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _changed(file: ImageFile, real: str) -> Optional[Tuple[str, str]]:
    try:
        file.check_unchanged()
        now = os.lstat(real)
    except SifError as error:
        return ("unchanged", str(error))
    except OSError as error:
        return ("unchanged", f"it was taken away while it was read: {error.strerror}")
    if (now.st_dev, now.st_ino) != (file.stat.st_dev, file.stat.st_ino):
        return ("unchanged", "another file was put in its place while it was read")
    return None


# --- owners and modes ---------------------------------------------------------------------------------------


def folders(folder: str) -> Tuple[Owned, ...]:
    """Return owner and mode of the real path *folder* and of all above it, nearest first. Raises OSError."""
    result = []
    while True:
        result.append(_owned(folder, os.lstat(folder)))
        above = os.path.dirname(folder)  # noqa: PTH120
        if above == folder:
            return tuple(result)
        folder = above


def _owned(path: str, status: os.stat_result) -> Owned:
    mode = stat.S_IMODE(status.st_mode)
    return Owned(
        path, status.st_uid, status.st_gid, user_name(status.st_uid), group_name(status.st_gid), mode
    )


# A directory service may need a while for each.
@functools.lru_cache(maxsize=4096)
def user_name(uid: int) -> str:
    """Return the name of a user, or the number as text."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@functools.lru_cache(maxsize=4096)
def group_name(gid: int) -> str:
    """Return the name of a group, or the number as text."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


# --- the bytes ----------------------------------------------------------------------------------------------


class _Reader:
    """Reads what is wanted of an open image. *lasting* tells whether it would be the same another time."""

    def __init__(
        self,
        file: ImageFile,
        wanted: Needs,
        verifier: Optional[Verifier],
        tool: Optional[Callable[[], Tool]],
    ) -> None:
        self.file, self.wanted, self.verifier, self.tool = file, wanted, verifier, tool
        self.digests: Optional[Digests] = None
        self.lasting = True

    def contents(self, known: Optional[Contents]) -> Contents:
        """Return what is wanted, of which *known* need not be read again. Raises SifError."""
        image: Optional[Sif] = None
        if known is None:
            # First of all: what is no image costs no hashing.
            image = sif.read(self.file, _UNLIMITED)
            known = _structure(image)
        for wanted, there, read in (
            (self.wanted.labels, known.labels is not None, self._labels),
            (self.wanted.sources, known.sources is not None, self._sources),
            (self.wanted.root, self._root_is_known(known), self._root),
            (self.wanted.sha256, known.sha256 is not None, self._sha256),
            (self.wanted.signatures, self._signatures_are_known(known), self._signatures),
        ):
            if wanted and not there:
                image = image or sif.read(self.file, _UNLIMITED)
                known = replace(known, **read(image))
        return known

    def _sha256(self, image: Sif) -> Dict[str, Any]:
        # What signatures speak of is hashed in the same pass.
        self.digests = Digests(image)
        algorithms = ["sha256"] if self.wanted.signatures and image.signatures() else []
        return {"sha256": self.digests.whole(algorithms)}

    def _labels(self, image: Sif) -> Dict[str, Any]:
        try:
            return {"labels": labels(image), "labels_problem": ""}
        except ValueError as error:
            return {"labels": {}, "labels_problem": str(error)}

    def _sources(self, image: Sif) -> Dict[str, Any]:
        try:
            return {"sources": sources(image), "sources_problem": ""}
        except ValueError as error:
            return {"sources": (), "sources_problem": str(error)}

    def _signatures_are_known(self, known: Contents) -> bool:
        return known.signatures is not None and self.verifier is not None and known.keys == self.verifier.keys

    def _signatures(self, image: Sif) -> Dict[str, Any]:
        if self.verifier is None:
            return {"signatures": None, "keys": ""}
        try:
            verified = sif_signers.verify(image, self.verifier.authenticate, self.digests)
        except (OSError, subprocess.SubprocessError) as error:
            self.lasting = False
            return {"signatures": Signatures(problem=f"they could not be verified: {error}"), "keys": ""}
        signatures = Signatures(tuple(sorted(verified.signers)), "; ".join(verified.problems))
        return {"signatures": signatures, "keys": self.verifier.keys}

    def _root_is_known(self, known: Contents) -> bool:
        if known.root is None:
            return False
        if known.root.capabilities is None and not known.root.strange and self.tool is not None:
            # Asked once more, as a newer unsquashfs may be there.
            return not self.tool().shows_capabilities
        return True

    def _root(self, image: Sif) -> Dict[str, Any]:
        primary = image.primary_partition()
        kind = primary.partition.fs_type if primary and primary.partition else None
        if primary is None or kind is None:
            return {"root": None, "root_problem": "it has no root file system"}
        if kind is not FsType.SQUASHFS:
            return {"root": None, "root_problem": f"its root file system is {kind.name.lower()}"}
        try:
            if self.tool is None:
                raise SquashfsError("nobody looked for unsquashfs")
            everybody = bool(self.file.stat.st_mode & stat.S_IROTH)
            listed = squashfs.content(
                self.tool(), self.file.fd, primary.offset, primary.size, everybody=everybody
            )
        except SquashfsError as error:
            # Perhaps a matter of this machine or this minute.
            self.lasting = False
            return {"root": None, "root_problem": str(error)}
        return {"root": listed, "root_problem": ""}


def _structure(image: Sif) -> Contents:
    primary = image.primary_partition()
    return Contents(
        architecture=image.header.arch,
        # That of the object, which is signed; the header's is not. Reproducible images have none.
        created=primary.created if primary is not None and primary.created > 0 else None,
        partitions=tuple(
            Partition(
                one.id,
                one.partition.fs_type.name.lower(),
                one.partition.part_type.name.lower(),
                one.partition.arch,
            )
            for one in image.descriptors
            if one.partition is not None
        ),
        # Of the root file system there is a rule of its own.
        remarks=tuple(r.message for r in image.remarks if r.code != "no-primary-partition"),
    )


def labels(image: Sif) -> Dict[str, str]:
    """Return the labels of an image. Raises ValueError if they are none, or two objects contradict."""
    result: Dict[str, str] = {}
    for one in image.of_type(DataType.LABELS, DataType.GENERIC_JSON):
        metadata = one.data_type is DataType.GENERIC_JSON
        if metadata and one.name != METADATA:
            continue
        try:
            data = json.loads(image.read_object(one))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"object {one.id} is no JSON: {error}") from error
        if metadata:
            data = _within(data, "data", "attributes", "labels")
        if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
            raise ValueError(f"object {one.id} holds no labels")
        for key, value in data.items():
            if result.setdefault(key, value) != value:
                raise ValueError(f"object {one.id} says {key} is {value!r}, another one {result[key]!r}")
    return result


def _within(data: object, *keys: str) -> object:
    for key in keys:
        data = data.get(key, {}) if isinstance(data, dict) else None
    return {} if data == {} else data


def sources(image: Sif) -> Tuple[str, ...]:
    """Return what an image was built from, one for each stage: ``docker://debian:13``, ``scratch``.

    What its definition says is all that is known; of a ``localimage`` that is not what that one was built
    from. Raises ValueError if there is no definition.
    """
    result: List[str] = []
    definitions = image.of_type(DataType.DEFFILE)
    for one in definitions:
        try:
            result.extend(definition_sources(image.read_object(one).decode("utf-8")))
        except UnicodeDecodeError as error:
            raise ValueError(f"its definition, object {one.id}, is no UTF-8") from error
    if not result:
        raise ValueError("it has no definition that says what it was built from")
    return tuple(result)


def definition_sources(text: str) -> List[str]:
    """Return what the stages of a definition begin from, as Apptainer takes it.

    A stage has several if its header names several places, whichever of them its agent asks.
    Source: apptainer, pkg/build/types/parser/deffile.go, functions All and doHeader; the agents in
    internal/pkg/build/sources.
    """
    result = []
    for stage in _STAGE.split(text):
        header = _header(stage)
        if header:
            agent = header.get("bootstrap", "").lower()
            # `From: library/python` with `Registry: elsewhere` is elsewhere/library/python.
            begin = "/".join(header[key] for key in ("registry", "namespace", "from") if header.get(key))
            others = [header[key] for key in sorted(header) if key == "library" or key.endswith("url")]
            places = [place for place in (begin, *others) if place]
            result.extend([f"{agent}://{place}" for place in places] or [agent])
    return result


# A stage begins at each such line, wherever it stands.
_STAGE = re.compile(r"^(?=bootstrap:)", re.IGNORECASE | re.MULTILINE)


def _header(stage: str) -> Dict[str, str]:
    """Return the lines before the first section, by lower-case key; the last one of a key counts."""
    header: Dict[str, str] = {}
    continued = ""
    for line in map(str.strip, stage.split("\n")):
        if line.startswith("%"):
            break
        words = line.partition("#")[0].strip()
        if continued:
            header[continued] += words
        elif words:
            key, _, value = words.partition(":")
            continued = key.strip().lower()
            header[continued] = value.strip()
        if continued:
            value = header[continued]
            header[continued] = value[:-1] if value.endswith("\\") else value
            continued = continued if value.endswith("\\") else ""
    return header
