# SPDX-License-Identifier: Apache-2.0
"""What the variables of the role apptainer ask for, checked together: one desired state for one node."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, Tuple

from . import (
    apptainer_conf,
    apptainer_files,
    apptainer_package_files,
    apptainer_profiles,
    apptainer_tree,
    apptainer_version,
)
from .apptainer_conf import ConfigError
from .apptainer_profiles import PROFILES
from .apptainer_version import VersionError

_REPOSITORY_KEYS = ("url", "key")
_APT_KEYS = ("suite", "component")
_URL = re.compile(r"[a-z][a-z0-9+]*:/[^\s]+")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]*")


class StateError(ValueError):
    """Variables that ask for no possible state; one line for each problem, which begins with the variable."""

    def __init__(self, problems: List[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def desired_state(
    version: object,
    profile: object,
    repository: Mapping[str, object],
    options: Mapping[str, object],
    sources: Mapping[str, Any] = {},  # noqa: B006
) -> Dict[str, object]:
    """Return the desired state of a node, as plain data.

    The arguments are the values of ``apptainer_version``, ``apptainer_profile`` and ``apptainer_repository``;
    *sources* has those of ``apptainer_package_files``, ``apptainer_tree`` and
    ``apptainer_replace_singularity``, without ``apptainer_``; *options* has the options of
    `apptainer_files.FORMATS`, each the value of the variable of this name with ``apptainer_`` before it. The
    result: ``version`` and ``release``, text; ``suid``, bool; and every option
    that has a value, ``config`` with what the profile sets.
    Raises StateError with every problem there is.
    """
    problems = [f"apptainer_repository: {problem}" for problem in _repository_problems(repository)]
    problems += _source_problems(str(profile), repository, sources)
    name = str(profile)
    if name not in PROFILES:
        problems.append(f"apptainer_profile: {profile!r} is none of {', '.join(PROFILES)}")
        name = "rootless"
    wanted = apptainer_version.Version("")
    files = {option: value for option, value in options.items() if value is not None}
    try:
        wanted = apptainer_version.parse(version)
        problems += _file_problems(files, name, wanted.release)
    except VersionError as error:
        problems.append(f"apptainer_version: {error}")
    except apptainer_conf.UnknownReleaseError as error:
        problems.append(f"apptainer_version: {error}")
    if problems:
        raise StateError(problems)
    return {"version": str(wanted), "release": wanted.release, "suid": PROFILES[name].suid, **files}


def _file_problems(files: Dict[str, Any], profile: str, release: str) -> List[str]:
    """Return what is wrong with *files*, option → value, and put what the profile sets into them."""
    problems: List[Tuple[str, str]] = []
    own = files.pop("config", {})
    try:
        settings = apptainer_profiles.settings(profile, own, release)
        files["config"] = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    except ConfigError as error:
        problems += [("config", problem) for problem in error.problems]
    try:
        ecl = apptainer_files.check(files, release).get("ecl")
        problems += [("ecl", problem) for problem in apptainer_profiles.ecl_problems(profile, ecl)]
    except apptainer_files.FilesError as error:
        problems += error.problems
    return [f"apptainer_{option}: {problem}" for option, problem in problems]


def _source_problems(profile: str, repository: Mapping[str, object], sources: Mapping[str, Any]) -> List[str]:
    """Return what is wrong with the ways to install, and which of them can't be had together."""
    files, tree = sources.get("package_files") or [], sources.get("tree") or {}
    problems = [
        f"apptainer_package_files: {problem}"
        for problem in apptainer_package_files.read(files, bool(tree))[1]
    ]
    if repository and (files or tree):
        problems.append(
            "apptainer_repository: apptainer_package_files or apptainer_tree has a value, too: take one of"
            " them out, so that it is plain where Apptainer comes from"
        )
    if not tree:
        return problems
    wrong = apptainer_tree.problem(tree.get("path"))
    if wrong:
        problems.append(f"apptainer_tree: {wrong}")
    if not files:
        problems.append(
            "apptainer_tree: it is made of apptainer_package_files, which has no value: give them"
        )
    if profile in PROFILES and PROFILES[profile].suid:
        problems.append(
            f"apptainer_tree: apptainer_profile is '{profile}', which needs the setuid starter, and a tree"
            " has none: choose rootless, or install packages"
        )
    if sources.get("replace_singularity"):
        problems.append(
            "apptainer_tree: apptainer_replace_singularity is true, and with a tree no package is touched:"
            " set it to false, or install packages"
        )
    return problems


def _repository_problems(repository: Mapping[str, object]) -> List[str]:
    if not repository:
        return []
    apt = any(repository.get(key) for key in _APT_KEYS)
    wanted = (*_REPOSITORY_KEYS, *(_APT_KEYS if apt else ()))
    missing = [key for key in wanted if not repository.get(key)]
    if missing:
        return [f"has no {', '.join(missing)}; give it, or {{}} for the node's own package sources"]
    problems = []
    if not _URL.fullmatch(str(repository["url"])):
        problems.append(
            f"url {repository['url']!r} is no URL of a repository, like 'https://example.org/apptainer/'"
        )
    for key in _APT_KEYS if apt else ():
        if not _WORD.fullmatch(str(repository[key])):
            problems.append(f"{key} {repository[key]!r} must be one word")
    return problems
