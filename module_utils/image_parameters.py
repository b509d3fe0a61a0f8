# SPDX-License-Identifier: Apache-2.0
"""What the modules about images have in common: their parameters for a policy, and a checker made of them."""

from __future__ import annotations

import contextlib
import datetime
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping

from . import image_keys, image_lock, image_policy
from .image_cache import Cache, CacheError
from .image_check import Checker
from .image_facts import Verifier
from .image_keys import KeyFileError
from .sif_signers import ApptainerAuthenticator

#: Of an argument specification.
SPEC: Mapping[str, Mapping[str, Any]] = {
    "policy": {"type": "dict"},
    "lock": {"type": "dict"},
    "keyrings": {"type": "list", "elements": "path", "default": [], "no_log": False},
    "cache": {"type": "path", "default": "/var/cache/apptainer-fleet/images.sqlite"},
}


class ParameterError(Exception):
    """A parameter that is wrong; the message begins with its name."""


@contextlib.contextmanager
def checker(parameters: Mapping[str, Any], **options: Any) -> Iterator[Checker]:
    """Give the checker that the values of `SPEC` ask for, with more *options* of it.

    Raises ParameterError.
    """
    try:
        policy = image_policy.read(parameters["policy"], datetime.date.today())
    except image_policy.PolicyError as error:
        raise ParameterError(_each("policy", error.problems)) from error
    try:
        lock = image_lock.read(parameters["lock"]) if parameters["lock"] is not None else None
    except image_lock.LockError as error:
        raise ParameterError(_each("lock", error.problems)) from error
    try:
        keys = image_keys.read((path, Path(path).read_bytes()) for path in parameters["keyrings"])
    except KeyFileError as error:
        raise ParameterError(f"keyrings: {error}") from error
    except OSError as error:
        raise ParameterError(f"keyrings: {error.filename}: {error.strerror}") from error
    if "locked" in policy.judged and lock is None:
        raise ParameterError("lock: the policy has the rule locked: give the content of images.lock")
    if "signatures" in policy.judged and not parameters["keyrings"]:
        raise ParameterError("keyrings: the policy has the rule signatures: give the keys to verify with")
    with contextlib.ExitStack() as stack:
        more: Dict[str, Any] = dict(options)
        if parameters["cache"]:
            try:
                more["cache"] = stack.enter_context(contextlib.closing(Cache(parameters["cache"])))
            except CacheError as error:
                raise ParameterError(f"cache: {error}") from error
        authenticator = stack.enter_context(ApptainerAuthenticator(keys))
        verifier = Verifier(authenticator, image_keys.fingerprint(keys, time.time()))
        yield Checker(policy, lock, verifier=verifier, **more)


def _each(name: str, problems: List[str]) -> str:
    return "\n".join(f"{name}: {problem}" for problem in problems)
