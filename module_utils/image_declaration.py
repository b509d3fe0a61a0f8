# SPDX-License-Identifier: Apache-2.0
"""The images that a site declares: what each is made from, and which commands users get of it.

`read` takes a list as YAML gave it. An image is a name, a version, and one of

* *source*, a reference with a digest: a container (``docker://``) or a SIF (``oras://``) in a registry;
* *definition*, a file of `definition_file`;
* *file*, a SIF, and its *sha256*.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import definition_file, image_lock, image_policy, oci_reference, typed
from .definition_file import DefinitionError, Recipe
from .image_lock import Lock
from .oci_reference import Reference
from .typed import Field

_COMMAND = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")


class DeclarationError(ValueError):
    """Images that can't be made as they are declared; *problems* are sentences that begin with the place."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class Command(NamedTuple):
    """A command that users get: *program* of the image, or its runscript if that is empty."""

    name: str
    program: str


@dataclass(frozen=True)
class Declared:
    """An image as a site declares it.

    *options* are those of ``apptainer exec`` for its commands. *sign* says whether it gets the site's
    signature. *withdrawn* is why it is taken away from users, or empty; it needs no origin then.
    """

    name: str
    version: str
    source: Optional[Reference] = None
    definition: str = ""
    file: str = ""
    sha256: str = ""
    commands: Tuple[Command, ...] = ()
    options: Tuple[str, ...] = ()
    description: str = ""
    sign: bool = True
    withdrawn: str = ""

    @property
    def title(self) -> str:
        """Name and version, for people."""
        return f"{self.name} {self.version}"

    @property
    def file_name(self) -> str:
        """Its name in a store."""
        return image_lock.Locked(self.name, self.version, "", 0).file_name


def read(value: object) -> Tuple[Declared, ...]:
    """Read the images that are declared. Raises DeclarationError, with everything that is wrong."""
    if not isinstance(value, (list, tuple)):
        raise DeclarationError([f"must be a list of images, not {typed.shown(value)}"])
    problems: List[str] = []
    images: List[Declared] = []
    for number, one in enumerate(value, 1):
        wrong: List[str] = []
        good = typed.mapping(one, _FIELDS, _place(number, one), wrong)
        if not wrong:
            image = Declared(**good)
            wrong.extend(f"{_place(number, one)}: {problem}" for problem in _contradictions(image))
            images.append(image)
        problems.extend(wrong)
    titles = [image.title for image in images]
    problems.extend(
        f"{title} is there twice; a name and version stands for one image"
        for title in sorted({title for title in titles if titles.count(title) > 1})
    )
    if problems:
        raise DeclarationError(problems)
    return tuple(images)


def _place(number: int, value: object) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return f"[{number}] ({value['name']})"
    return f"[{number}]"


def _contradictions(image: Declared) -> List[str]:
    origins = [name for name in ("source", "definition", "file") if getattr(image, name)]
    problems = []
    if len(origins) > 1:
        problems.append(f"is made from one thing, not from {' and '.join(origins)}")
    if not origins and not image.withdrawn:
        problems.append("needs a source, a definition, or a file with its sha256")
    if image.file and not image.sha256:
        problems.append("needs the sha256 of its file, as `sha256sum` prints it")
    if image.sha256 and not image.file:
        problems.append("has a sha256, which is for a file; what is made here is pinned in images.lock")
    names = [command.name for command in image.commands]
    problems.extend(
        f"has the command {name} twice" for name in sorted({name for name in names if names.count(name) > 1})
    )
    return problems


def _command(value: object) -> Command:
    if isinstance(value, str):
        name = str(_command_name(value))
        return Command(name, name)
    good: Dict[str, Any] = dict(typed.nested(_COMMAND_FIELDS)(value))
    runscript, program = good.get("runscript", False), good.get("program", "")
    if runscript and program:
        raise ValueError("is a program or the runscript, not both")
    return Command(good["name"], "" if runscript else program or good["name"])


_command_name = typed.text(_COMMAND, "a command such as python3")
_COMMAND_FIELDS: Mapping[str, Field] = {
    "name": Field(_command_name, required=True),
    "program": Field(typed.text()),
    "runscript": Field(typed.boolean),
}

#: What a declaration can say.
_FIELDS: Mapping[str, Field] = {
    "name": image_lock.FIELDS["name"],
    "version": image_lock.FIELDS["version"],
    "source": Field(lambda value: oci_reference.parse(str(typed.text()(value)))),
    "definition": Field(typed.text()),
    "file": Field(typed.text()),
    "sha256": Field(image_policy.sha256),
    "commands": Field(typed.items(_command)),
    "options": Field(typed.texts),
    "description": Field(typed.text()),
    "sign": Field(typed.boolean),
    "withdrawn": Field(typed.text()),
}


# --- what there is to do ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """An image, and what it is made from: *source* on one line, as the lock has it.

    *locked* is the digest that it has to have, None for one that is to be made. *recipe* is what its
    definition takes, *path* where definition or file are on this machine.
    """

    image: Declared
    source: str
    locked: Optional[str] = None
    recipe: Optional[Recipe] = None
    path: Optional[Path] = None


def plan(
    images: Sequence[Declared],
    lock: Lock,
    folder: Path,
    agents: Sequence[str] = definition_file.AGENTS,
) -> Tuple[Planned, ...]:
    """Return what is to be made of *images*; relative paths begin at *folder*.

    Of what *lock* has nothing is read but definitions. Raises DeclarationError, with all that is wrong.
    """
    problems: List[str] = []
    result: List[Planned] = []
    known = {image.file_name for image in lock.images}
    for image in images:
        try:
            planned = _planned(image, lock, folder, agents)
        except DefinitionError as error:
            problems.extend(f"{image.title}: {image.definition}: {problem}" for problem in error.problems)
        except (OSError, ValueError) as error:
            what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
            problems.append(f"{image.title}: {what}")
        else:
            problems.extend(
                f"{image.title}: its definition begins from {base}, which is no image declared before it"
                for base in (planned.recipe.definition.locals if planned.recipe else ())
                if base not in known
            )
            result.append(planned)
        if not image.withdrawn:
            known.add(image.file_name)
    if problems:
        raise DeclarationError(problems)
    return tuple(result)


def _planned(image: Declared, lock: Lock, folder: Path, agents: Sequence[str]) -> Planned:
    entry = lock.find(image.name, image.version)
    locked = entry.sha256 if entry else None
    if image.withdrawn:
        return Planned(image, "", locked)
    recipe: Optional[Recipe] = None
    path: Optional[Path] = None
    if image.source is not None:
        source = image.source.text
    elif image.definition:
        path = folder / os.path.expanduser(image.definition)  # noqa: PTH111
        recipe = definition_file.collect(path, agents)
        source = f"definition sha256:{recipe.digest}"
    else:
        path = folder / os.path.expanduser(image.file)  # noqa: PTH111
        source = f"file sha256:{image.sha256}"
        if locked is None:
            # Now, and not when the first image has been built.
            path.stat()
    if entry is not None and _kind(entry.source) == _kind(source) and entry.source != source:
        raise ValueError(
            f"images.lock has this name and version, made from {entry.source}, and it is made from {source} "
            "now: give it another version"
        )
    return Planned(image, source, locked, recipe, path)


def _kind(source: str) -> str:
    return re.split(r"://| sha256:", source, maxsplit=1)[0]
