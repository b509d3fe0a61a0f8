# SPDX-License-Identifier: Apache-2.0
"""images.lock: which images a site has, each by name, version and SHA-256.

`read` takes what YAML made of the file, `entry` makes what is written into it. A name and version stands for
one digest for ever: another content is another version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Tuple

from . import image_policy, typed
from .sif import ARCHITECTURES
from .typed import Field

#: Neither has an underscore, so that NAME_VERSION.sif is read in one way only.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,99}")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,99}")
SUFFIX = ".sif"


class LockError(ValueError):
    """A lock that is none; *problems* are sentences that begin with the place."""

    def __init__(self, problems: List[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Locked:
    """An image of a site. *size* is in bytes, *source* what it was made from, as people know it.

    *signers* are those who had signed all of it when it was locked, as `sif_signers` names them.
    """

    name: str
    version: str
    sha256: str
    size: int
    architecture: Optional[str] = None
    signers: Tuple[str, ...] = ()
    source: str = ""

    @property
    def file_name(self) -> str:
        """Its name in a store, ``NAME_VERSION.sif``."""
        return f"{self.name}_{self.version}{SUFFIX}"

    def as_dict(self) -> Dict[str, Any]:
        """Return it as it stands in the lock, without what is not known."""
        values: Dict[str, Any] = {**self.__dict__, "signers": list(self.signers)}
        return {key: value for key, value in values.items() if value not in (None, "", [])}


@dataclass(frozen=True)
class Lock:
    """All images of a site, by name and version."""

    images: Tuple[Locked, ...] = ()

    def of_digest(self, sha256: str) -> Tuple[Locked, ...]:
        """Return the images of that content."""
        return tuple(image for image in self.images if image.sha256 == sha256)

    def find(self, name: str, version: str) -> Optional[Locked]:
        """Return the image of that name and version."""
        return next((one for one in self.images if (one.name, one.version) == (name, version)), None)

    def with_image(self, image: Locked) -> Lock:
        """Return the lock with *image* in it, in place of the one with its name and version."""
        others = [one for one in self.images if (one.name, one.version) != (image.name, image.version)]
        return Lock(tuple(sorted([*others, image], key=lambda one: (one.name, one.version))))

    def as_dict(self) -> Dict[str, Any]:
        """Return what the file holds."""
        return {"images": [image.as_dict() for image in self.images]}


#: What the lock says of an image.
FIELDS: Mapping[str, Field] = {
    "name": Field(typed.text(NAME, "a name of letters, digits, dots, plus and minus"), required=True),
    "version": Field(
        typed.text(VERSION, "a version of letters, digits, dots, plus and minus, in quotes"), True
    ),
    "sha256": Field(image_policy.sha256, required=True),
    "size": Field(typed.integer(1), required=True),
    "architecture": Field(typed.choice(*ARCHITECTURES.values())),
    "signers": Field(typed.items(image_policy.signer)),
    "source": Field(typed.text()),
}


def read(value: object) -> Lock:
    """Read a lock from the data that YAML gave. Raises LockError, with everything that is wrong."""
    problems: List[str] = []
    images = typed.items(typed.nested(FIELDS, Locked))
    good = typed.mapping(value, {"images": Field(images, required=True)}, "", problems)
    locked: Tuple[Locked, ...] = good.get("images", ())
    names = [f"{image.name} {image.version}" for image in locked]
    problems.extend(
        f"images: {name} is there twice; a name and version stands for one content"
        for name in sorted({name for name in names if names.count(name) > 1})
    )
    if problems:
        raise LockError(problems)
    return Lock(locked)


def name_and_version(file_name: str) -> Optional[Tuple[str, str]]:
    """Return what a file is named after, ``NAME_VERSION.sif``, or None if it is named otherwise."""
    stem, suffix, rest = file_name.rpartition(SUFFIX)
    name, underscore, version = stem.partition("_")
    if not suffix or rest or not underscore or not NAME.fullmatch(name) or not VERSION.fullmatch(version):
        return None
    return name, version
