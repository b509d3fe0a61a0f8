# SPDX-License-Identifier: Apache-2.0
"""Definition files of Apptainer, as far as they can be built twice from the same things.

Apptainer's language lets a definition take whatever is on the build host, or on the network under a name that
means something else tomorrow. `read` takes those only that say exactly what goes in: stages that begin from
pinned sources, and files that lie beside the definition. Everything else is refused with line and mend, so
that the digest of what `collect` finds stands for all that a site has written down about an image.

What a command of ``%post`` fetches from the network is not known to anybody before it runs.

Source: apptainer, pkg/build/types/parser/deffile.go (stages, sections, headers, files) and
internal/pkg/build/files/copy.go (patterns).
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import (
    BinaryIO,
    Container,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from . import oci_reference
from .oci_reference import BadReferenceError, Reference

#: What stages may begin from unless a site says otherwise: all of it is pinned, or is nothing.
AGENTS = ("docker", "localimage", "oras", "scratch")
#: In the archive of a recipe: the definition, and the folder of its files.
DEFINITION, FILES = "definition", "files"
# More than this is no definition that a person wrote.
_MAX_BYTES = 1024 * 1024

# Keys of the header, by agent; those of other agents are theirs.
_KEYS: Mapping[str, Tuple[str, ...]] = {
    "docker": ("bootstrap", "from", "stage", "includecmd"),
    "localimage": ("bootstrap", "from", "stage", "fingerprints"),
    "oras": ("bootstrap", "from", "stage", "fingerprints"),
    "scratch": ("bootstrap", "stage"),
}
_HOST_SECTIONS: Mapping[str, str] = {
    "setup": "it runs on the build host, outside of the image; do its work in %post, with %files",
    "pre": "it runs on the build host, outside of the image; do its work in %post, with %files",
    "arguments": "its values can be changed at every build; write them where they are used",
}
_SECTIONS = frozenset(
    [
        *["appenv", "appfiles", "apphelp", "appinstall", "applabels", "apprun", "appstart", "apptest"],
        *["environment", "files", "help", "labels", "post", "runscript", "startscript", "test"],
    ]
)
_STAGE = re.compile(r"^bootstrap:", re.IGNORECASE)
_SECTION = re.compile(r"%([a-z]+)(?: (.*))?")
_ARGUMENT = re.compile(r"\{\{\s*\w+\s*\}\}")
# Apptainer lets a shell expand names of files; these mean the same to it and to everybody else.
_PATH = re.compile(r"[A-Za-z0-9._+@%,=:/*?\[\]-]+")
_FROM_STAGE = re.compile(r"from ([A-Za-z0-9._-]+)")


class DefinitionError(ValueError):
    """A definition that is not taken; *problems* are sentences that begin with the place."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class Stage(NamedTuple):
    """What a stage begins from: *agent* and *begin* as the header has them.

    *reference* is that of an image in a registry, *local* the name of an image file, one of them at the most.
    """

    agent: str
    begin: str
    reference: Optional[Reference] = None
    local: str = ""


@dataclass(frozen=True)
class Definition:
    """A definition that was read: its stages, and the patterns of the files it takes, beside it."""

    text: str
    stages: Tuple[Stage, ...]
    files: Tuple[str, ...]

    @property
    def references(self) -> Tuple[Reference, ...]:
        """Images in registries that it begins from, each once."""
        return tuple(dict.fromkeys(stage.reference for stage in self.stages if stage.reference))

    @property
    def locals(self) -> Tuple[str, ...]:
        """Names of image files that it begins from, each once."""
        return tuple(dict.fromkeys(stage.local for stage in self.stages if stage.local))


def read(content: bytes, agents: Sequence[str] = AGENTS) -> Definition:
    """Read a definition whose stages begin with one of *agents*.

    Raises DefinitionError, with everything that is wrong.
    """
    text = _text(content)
    problems: List[str] = []
    stages: List[Stage] = []
    files: Dict[str, None] = {}
    for first, lines in _stages(text.split("\n"), problems):
        header, sections = _sections(first, lines, problems)
        stage = _header(header, agents, problems)
        if stage is not None:
            stages.append(stage)
        for section in sections:
            if section.name in ("files", "appfiles"):
                files.update(dict.fromkeys(_files(section, problems)))
    if not stages and not problems:
        problems.append("it has no line that begins with Bootstrap: and says what the image begins from")
    if problems:
        raise DefinitionError(problems)
    return Definition(text, tuple(stages), tuple(files))


def _text(content: bytes) -> str:
    if len(content) > _MAX_BYTES:
        raise DefinitionError([f"it has {len(content)} bytes, and no definition has more than {_MAX_BYTES}"])
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DefinitionError([f"byte {error.start} is no UTF-8"]) from error
    for character, name in (("\0", "a zero byte"), ("\r", "a carriage return; save it with Unix line ends")):
        if character in text:
            raise DefinitionError([f"line {text[: text.index(character)].count(chr(10)) + 1}: has {name}"])
    return text


class _Line(NamedTuple):
    number: int
    text: str


class _Section(NamedTuple):
    name: str
    arguments: str
    lines: Tuple[_Line, ...]


def _stages(lines: List[str], problems: List[str]) -> Iterator[Tuple[int, List[_Line]]]:
    """Yield stages with the number of their first line, as Apptainer cuts them: also within a script."""
    stage: List[_Line] = []
    for number, line in enumerate(lines, 1):
        found = _ARGUMENT.search(line)
        if found:
            problems.append(
                f"line {number}: {found.group()} stands for a value that can change: write the value"
            )
        if _STAGE.match(line):
            if stage:
                yield stage[0].number, stage
            stage = [_Line(number, line)]
        elif stage:
            stage.append(_Line(number, line))
        elif line.strip() and not line.lstrip().startswith("#"):
            problems.append(f"line {number}: stands before the line with Bootstrap:, which has to be first")
            return
    if stage:
        yield stage[0].number, stage


def _sections(first: int, lines: List[_Line], problems: List[str]) -> Tuple[List[_Line], List[_Section]]:
    """Return the header of a stage, and its sections."""
    header: List[_Line] = []
    found: List[Tuple[str, str, List[_Line]]] = []
    for line in lines:
        if line.text.strip().startswith("%"):
            match = _SECTION.fullmatch(line.text.rstrip())
            name = match.group(1) if match else ""
            if not match or (name not in _SECTIONS and name not in _HOST_SECTIONS):
                problems.append(f"line {line.number}: begins with % and no section is called that")
            elif name in _HOST_SECTIONS:
                problems.append(f"line {line.number}: %{name} is not taken: {_HOST_SECTIONS[name]}")
            found.append((name, (match.group(2) or "").strip() if match else "", []))
        elif found:
            found[-1][2].append(line)
        else:
            header.append(line)
    return header, [_Section(name, arguments, tuple(body)) for name, arguments, body in found]


def _header(lines: List[_Line], agents: Sequence[str], problems: List[str]) -> Optional[Stage]:
    values: Dict[str, _Line] = {}
    for number, text in lines:
        line = text.strip()
        if not line or line.startswith("#"):
            continue
        key, colon, value = line.partition(":")
        key, value = key.strip().lower(), value.strip()
        if not colon or not value:
            problems.append(f"line {number}: must be KEY: VALUE, as every line before the first section")
        elif "#" in value or value.endswith("\\"):
            problems.append(f"line {number}: a value stands on one line, without a comment behind it")
        elif key in values:
            problems.append(f"line {number}: {key} is there twice, for one stage")
        else:
            values[key] = _Line(number, value)
    agent = values["bootstrap"].text.lower() if "bootstrap" in values else ""
    if not agent:
        return None
    number = values["bootstrap"].number
    if agent not in agents:
        problems.append(
            f"line {number}: a stage can begin with {', '.join(sorted(agents))}, not with {agent}"
        )
        return None
    for key, entry in values.items():
        if agent in _KEYS and key not in _KEYS[agent]:
            problems.append(
                f"line {entry.number}: {agent} is taken without {key}; all of it stands in From: "
                "registry/repository@sha256:…"
                if agent == "docker"
                else f"line {entry.number}: {agent} has no key {key}"
            )
    origin = values.get("from", _Line(number, ""))
    try:
        return _stage(agent, origin.text)
    except ValueError as error:
        problems.append(f"line {origin.number}: {error}")
        return None


def _stage(agent: str, begin: str) -> Stage:
    """Return a stage. Raises ValueError for a source that is not pinned."""
    if agent in ("docker", "oras"):
        return Stage(agent, begin, reference=oci_reference.parse(f"{agent}://{begin}"))
    if agent == "localimage":
        if not _PATH.fullmatch(begin) or "/" in begin or glob.has_magic(begin):
            raise BadReferenceError(
                f"From: must be the file name of an image of this site, NAME_VERSION.sif, not {begin!r}"
            )
        return Stage(agent, begin, local=begin)
    return Stage(agent, begin)


def _files(section: _Section, problems: List[str]) -> Iterator[str]:
    """Yield the patterns of files that a section takes from the build host."""
    if section.name == "files" and section.arguments:
        if not _FROM_STAGE.fullmatch(section.arguments):
            problems.append(f"%files {section.arguments}: must be %files, or %files from STAGE")
        return
    for number, text in section.lines:
        line = text.strip()
        if not line or line.startswith("#"):
            continue
        words = line.split()
        source = words[0]
        if len(words) > 2 or not all(map(_PATH.fullmatch, words)):  # noqa: PLR2004 - source and destination
            problems.append(
                f"line {number}: must be SOURCE and DESTINATION without blanks, quotes and variables; "
                "put files with other names into a folder, and take that"
            )
        elif source.startswith("/") or ".." in source.split("/"):
            problems.append(
                f"line {number}: {source} lies outside of the folder of the definition: put a copy into it"
            )
        else:
            yield source


# --- what goes in -------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A file, folder or symbolic link beside a definition.

    *path* is relative to its folder. *value* is the SHA-256 of a file, the target of a link, else empty.
    """

    path: str
    kind: str
    executable: bool = False
    value: str = ""


@dataclass(frozen=True)
class Recipe:
    """A definition and the entries that it takes. *digest* is another one if anything of it is."""

    definition: Definition
    entries: Tuple[Entry, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the definition and of path, kind, executable bit and content of its files."""
        words = json.dumps([self.definition.text, self.entries], separators=(",", ":"))
        return hashlib.sha256(words.encode()).hexdigest()


def collect(path: Path, agents: Sequence[str] = AGENTS) -> Recipe:
    """Read the definition at *path* and what it takes from its folder.

    Raises DefinitionError, and OSError if the definition can't be read.
    """
    definition = read(path.read_bytes(), agents)
    problems: List[str] = []
    found: Set[str] = set()
    for pattern in definition.files:
        names = glob.glob(os.path.join(glob.escape(str(path.parent)), pattern))  # noqa: PTH118, PTH207
        if not names:
            problems.append(f"%files: there is no {pattern} in {path.parent}")
        for name in names:
            found.update(_below(os.path.relpath(name, path.parent), path.parent))
    entries = []
    for name in sorted(found):
        try:
            entries.append(_entry(name, path.parent, found))
        except (OSError, ValueError) as error:
            problems.append(f"%files: {name}: {getattr(error, 'strerror', None) or error}")
    if problems:
        raise DefinitionError(problems)
    return Recipe(definition, tuple(entries))


def _below(name: str, folder: Path) -> Iterator[str]:
    """Yield *name*, the folders above it, and all that is below it; links are not followed."""
    above = Path(name)
    yield from (str(one) for one in (above, *above.parents) if str(one) != ".")
    for root, folders, files in os.walk(str(folder / name)):
        yield from (os.path.relpath(os.path.join(root, one), folder) for one in (*folders, *files))  # noqa: PTH118


def _entry(name: str, folder: Path, found: Container[str]) -> Entry:
    """Return an entry. Raises ValueError for what can't be taken along as it is, and OSError."""
    status = (folder / name).lstat()
    if (folder / name).parent.is_symlink():
        raise ValueError("lies behind a symbolic link: name its real folder")
    if stat.S_ISDIR(status.st_mode):
        return Entry(name, "folder")
    if stat.S_ISLNK(status.st_mode):
        target = os.readlink(str(folder / name))  # noqa: PTH115 - the text as it stands there
        inside = os.path.normpath(os.path.join(os.path.dirname(name), target))  # noqa: PTH118, PTH120
        if target.startswith("/") or inside not in found:
            raise ValueError(f"is a link to {target}, which %files does not take along")
        return Entry(name, "link", value=target)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is no file, folder or link")
    digest = hashlib.sha256()
    with (folder / name).open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return Entry(name, "file", bool(status.st_mode & stat.S_IXUSR), digest.hexdigest())


# --- on its way ---------------------------------------------------------------------------------------------


def pack(recipe: Recipe, folder: Path, target: BinaryIO) -> None:
    """Write a recipe, whose files are in *folder*, as a tar archive: the same octets for the same recipe.

    Raises DefinitionError if a file changed since it was collected.
    """
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        text = recipe.definition.text.encode()
        archive.addfile(_member(Entry(DEFINITION, "file"), len(text)), io.BytesIO(text))
        archive.addfile(_member(Entry(FILES, "folder")))
        for entry in recipe.entries:
            inside = entry._replace(path=f"{FILES}/{entry.path}")
            if entry.kind != "file":
                archive.addfile(_member(inside))
                continue
            with (folder / entry.path).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                checked = _Hashing(file)
                archive.addfile(_member(inside, size), checked)  # type: ignore[arg-type]
                if checked.digest.hexdigest() != entry.value:
                    raise DefinitionError([f"%files: {entry.path} changed while it was read"])


def _member(entry: Entry, size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(entry.path)
    member.type = {"file": tarfile.REGTYPE, "folder": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}[entry.kind]
    member.mode = 0o755 if entry.kind == "folder" or entry.executable else 0o644
    member.size = size
    member.linkname = entry.value if entry.kind == "link" else ""
    return member


class _Hashing:
    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def read(self, size: int) -> bytes:
        chunk = self.file.read(size)
        self.digest.update(chunk)
        return chunk


def unpack(source: BinaryIO, folder: Path) -> None:
    """Unpack an archive of `pack` into the empty *folder*, as files of the caller that everybody can read.

    Raises DefinitionError for every other archive; what was unpacked until then stays.
    """
    try:
        with tarfile.open(fileobj=source, mode="r:") as archive:
            for member in archive:
                _unpack(archive, member, folder)
    except (tarfile.TarError, EOFError) as error:
        raise DefinitionError([f"its archive is damaged: {error}"]) from error


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    path = folder / member.name
    first = member.name.split("/")[0]
    if first not in (DEFINITION, FILES) or ".." in path.parts or path.parent.resolve() != path.parent:
        raise DefinitionError([f"its archive holds {member.name}, which belongs to no recipe"])
    if member.isdir():
        path.mkdir()
    elif member.issym():
        path.symlink_to(member.linkname)
        return
    elif member.isreg():
        content = archive.extractfile(member)
        assert content is not None  # noqa: S101 - it is a regular file
        with path.open("xb") as file:
            shutil.copyfileobj(content, file)
    else:
        raise DefinitionError([f"its archive holds {member.name}, which is no file, folder or link"])
    path.chmod(0o755 if member.mode & stat.S_IXUSR else 0o644)
