"""Images that tests of policy, store and cache are about: made in memory, with real file systems inside."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import sif_builder as make
import squashfs_images

from module_utils.sif_integrity import Digests

PROJECT = Path(__file__).parent.parent
DEFINITION = b"Bootstrap: docker\nFrom: registry.example/base@sha256:1234\n\n%post\n  true\n"


def image(
    root: bytes = squashfs_images.PLAIN,
    labels: dict[str, Any] | None = None,
    definition: bytes | None = DEFINITION,
    extra: tuple[make.Object, ...] = (),
    **fields: Any,
) -> bytes:
    """An image as `apptainer build` lays it out, with that root file system; *fields* are of the header."""
    objects = [] if definition is None else [make.Object(make.DEFFILE, definition, name=b"a.def")]
    if labels is not None:
        metadata = {"data": {"attributes": {"labels": labels}}, "type": "container"}
        objects.append(make.Object(make.JSON, json.dumps(metadata).encode(), name=b"inspect-metadata.json"))
    return make.build(*objects, make.partition(root), *extra, **fields)


def put(path: Path, content: bytes, mode: int = 0o644) -> Path:
    """Write an image; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return path


class Later:
    """A clock that stands an hour later, at which files written now have settled times."""

    def __init__(self, seconds: float = 3600) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return time.time() + self.seconds


def counting_hashes(monkeypatch: Any) -> list[str]:
    """Return a list that grows by the path of every image that is hashed from now on."""
    hashed: list[str] = []
    real = Digests.whole

    def whole(self: Digests, *arguments: Any) -> str:
        hashed.append(os.fspath(self._sif.source.path))  # type: ignore[union-attr]
        return real(self, *arguments)

    monkeypatch.setattr(Digests, "whole", whole)
    return hashed
