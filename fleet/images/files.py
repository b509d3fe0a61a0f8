"""The files that people keep about images: policy, images.lock, keys."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from fleet.errors import FleetError
from fleet.images.signers import LocalAuthenticator
from module_utils import atomic_file, image_keys, image_lock, image_policy, image_store
from module_utils.image_facts import Verifier
from module_utils.image_lock import Lock
from module_utils.image_policy import Policy
from module_utils.sif import Sif
from module_utils.sif_integrity import Integrity
from module_utils.sif_signers import Authenticity, TrustedKeys

LOCK_NAME = Path("images.lock")
_HEADER = "# Written by `fleet image lock` and playbooks/images.yml: comments are lost.\n"

#: What YAML files may have: bytes, levels, and values, repeated ones counted each time.
_BYTES, _DEPTH, _VALUES = 64 * 2**20, 100, 1_000_000

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """YAML in which a key that stands twice is an error, as it is to Ansible here."""


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: list[Any] = []
    for key, _ in node.value:
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
        seen.append(key.value)
    loader.flatten_mapping(node)
    pairs: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    return pairs


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_policy(path: Path | None) -> Policy:
    """The policy in a file; without one, the policy that asks for nothing but a sound image.

    :raises FleetError: it can't be read, with everything that is wrong.
    """
    if path is None:
        return Policy()
    try:
        return image_policy.read(_yaml(path), datetime.date.today())
    except image_policy.PolicyError as error:
        raise _wrong(path, error.problems, "see docs/images.md for the rules") from error


def read_lock(path: Path) -> Lock:
    """The images of an images.lock.

    :raises FleetError: it can't be read, with everything that is wrong.
    """
    try:
        return image_lock.read(_yaml(path))
    except image_lock.LockError as error:
        raise _wrong(path, error.problems, "mend it, or take it from version control") from error


@contextlib.contextmanager
def changing_lock(path: Path) -> Iterator[Lock]:
    """The lock at ``path``, or an empty one if there is none, while nobody else changes it with `write_lock`.

    :raises FleetError: it can't be read.
    """
    try:
        folder = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise FleetError(f"{path}: {error.strerror}", "give a file in a folder that exists") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield read_lock(path) if path.exists() else Lock()
    finally:
        os.close(folder)


def lock_text(lock: Lock) -> str:
    """What a file with this lock holds."""
    return _HEADER + yaml.safe_dump(lock.as_dict(), sort_keys=False, allow_unicode=True, width=1000)


def write_lock(path: Path, lock: Lock) -> None:
    """Put a lock in the place of the one before, at once.

    :raises FleetError: it can't be written; the one before is untouched.
    """
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    try:
        atomic_file.replace(str(path.resolve()), lock_text(lock).encode(), mode)
    except OSError as error:
        raise FleetError(
            f"{path}: {error.strerror}", "make room, or give a file that can be written"
        ) from error


def read_keys(paths: Sequence[Path]) -> TrustedKeys:
    """The keys in files.

    :raises FleetError: one of them is none.
    """
    try:
        return image_keys.read((str(path), path.read_bytes()) for path in paths)
    except OSError as error:
        raise FleetError(f"{error.filename}: {error.strerror}", "give a file of public keys") from error
    except image_keys.KeyFileError as error:
        raise FleetError(str(error), "export it with gpg --armor --export") from error


def read_digest(path: Path, name: str) -> str | None:
    """The digest in a file ``NAME.sha256``, None if there is none; whoever put it there may want us to wait.

    Raises OSError, and ValueError if it is none, or for another file than ``name``.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is no regular file")
        return image_store.read_digest(file.read(4096), name)


def verifier(keys: TrustedKeys) -> Verifier:
    """What verifies signatures with these keys in this process, from whatever thread.

    :raises FleetError: a key can't be used.
    """
    own = threading.local()
    # Now, so that a key that can't be used is known before any image is read.
    own.authenticator = LocalAuthenticator(keys)

    def authenticate(sif: Sif, integrity: Integrity) -> dict[int, Authenticity]:
        if not hasattr(own, "authenticator"):
            own.authenticator = LocalAuthenticator(keys)
        return own.authenticator(sif, integrity)  # type: ignore[no-any-return]

    return Verifier(authenticate, image_keys.fingerprint(keys, time.time()))


def _bound(text: bytes) -> None:
    """Refuse what is short as text and without end as data: aliases of aliases, and too many levels.

    A lock may come from a stranger. Raises ValueError, or what the parser raises.
    """
    sizes: dict[str, int] = {}
    # Anchor and number of values of each collection that is not at its end.
    within: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=_Base):
        anchor, size = getattr(event, "anchor", None), 1
        if isinstance(event, yaml.CollectionStartEvent):
            within.append((anchor, 1))
            if len(within) > _DEPTH:
                raise ValueError(f"it is nested more than {_DEPTH} times")
            continue
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"*{event.anchor} stands for what it is in, or for nothing")
            size, anchor = sizes[event.anchor], None
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = within.pop()
        elif not isinstance(event, yaml.ScalarEvent):
            continue
        if anchor:
            sizes[anchor] = size
        outer, before = within.pop()
        within.append((outer, before + size))
        if before + size > _VALUES:
            raise ValueError(f"it has more than {_VALUES} values")


def _yaml(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            content = file.read(_BYTES + 1)
        if len(content) > _BYTES:
            raise ValueError(f"it has more than {_BYTES} bytes")
        _bound(content)
        return yaml.load(content, Loader=_Loader)  # noqa: S506 - a safe one
    except OSError as error:
        raise FleetError(f"{path}: {error.strerror}", "give a YAML file that can be read") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise FleetError(f"{path} can't be understood: {said}", "mend it at that line") from error


def _wrong(path: Path, problems: Sequence[str], mend: str) -> FleetError:
    return FleetError("\n".join(f"{path}: {problem}" for problem in problems), mend)
