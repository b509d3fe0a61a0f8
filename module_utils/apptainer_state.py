# SPDX-License-Identifier: Apache-2.0
"""What the variables of the role apptainer ask for, checked together: one desired state for one node."""

from __future__ import annotations

import re
from typing import Dict, List, Mapping, NamedTuple

from . import apptainer_conf, apptainer_version
from .apptainer_conf import ConfigError
from .apptainer_version import VersionError


class Profile(NamedTuple):
    """What a security profile decides.

    suid: whether the package apptainer-suid is installed.
    settings: directives that the profile sets.
    reasons: directive → why ``apptainer_config`` can't set it to anything else.
    """

    suid: bool
    settings: Mapping[str, str]
    reasons: Mapping[str, str]


PROFILES: Mapping[str, Profile] = {
    "rootless": Profile(
        suid=False,
        # A starter with the setuid bit that gets here another way is not used either.
        settings={"allow setuid": "no", "allow user ns": "yes"},
        reasons={
            "allow setuid": "there is no setuid starter in it; choose the profile 'compatible' or 'enforced'",
            "allow user ns": "no container starts without in it; choose the profile 'enforced'",
        },
    ),
    "enforced": Profile(suid=True, settings={}, reasons={}),
    "compatible": Profile(suid=True, settings={}, reasons={}),
}

_REPOSITORY_KEYS = ("url", "suite", "component", "key")
_URL = re.compile(r"[a-z][a-z0-9+]*:/[^\s]+")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]*")


class StateError(ValueError):
    """Variables that ask for no possible state; one line for each problem, which begins with the variable."""

    def __init__(self, problems: List[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def desired_state(
    version: object, profile: object, repository: Mapping[str, object], config: Mapping[str, object]
) -> Dict[str, object]:
    """Return the desired state of a node, as plain data.

    The arguments are the values of ``apptainer_version``, ``apptainer_profile``, ``apptainer_repository``
    and ``apptainer_config``. The result: ``version`` and ``release``, text; ``suid``, bool; ``entries``, one
    dict for every directive of apptainer.conf, with the fields of `apptainer_conf.Entry`.
    Raises StateError with every problem there is.
    """
    problems = [f"apptainer_repository: {problem}" for problem in _repository_problems(repository)]
    chosen = PROFILES.get(str(profile))
    if chosen is None:
        problems.append(f"apptainer_profile: {profile!r} is none of {', '.join(PROFILES)}")
        chosen = PROFILES["rootless"]
    entries: List[apptainer_conf.Entry] = []
    wanted = apptainer_version.Version("")
    try:
        wanted = apptainer_version.parse(version)
        entries = apptainer_conf.entries(
            _settings(chosen, str(profile), config, wanted.release), wanted.release
        )
    except VersionError as error:
        problems.append(f"apptainer_version: {error}")
    except apptainer_conf.UnknownReleaseError as error:
        problems.append(f"apptainer_version: {error}")
    except ConfigError as error:
        problems += [f"apptainer_config: {problem}" for problem in error.problems]
    if problems:
        raise StateError(problems)
    return {
        "version": str(wanted),
        "release": wanted.release,
        "suid": chosen.suid,
        "entries": [entry._asdict() for entry in entries],
    }


def _settings(profile: Profile, name: str, config: Mapping[str, object], release: str) -> Dict[str, object]:
    """Return the profile's settings with those of the site. Raises ConfigError where they contradict."""
    own = apptainer_conf.check(config, release)
    settings = {
        directive: value
        for directive, value in profile.settings.items()
        if directive in apptainer_conf.schema(release)
    }
    contradictions = [
        f"'{directive}' is {own[directive]}, but apptainer_profile is '{name}': {profile.reasons[directive]}"
        for directive, value in settings.items()
        if own.get(directive, value) != value
    ]
    if contradictions:
        raise ConfigError(contradictions)
    return {**settings, **own}


def _repository_problems(repository: Mapping[str, object]) -> List[str]:
    if not repository:
        return []
    missing = [key for key in _REPOSITORY_KEYS if not repository.get(key)]
    if missing:
        return [f"has no {', '.join(missing)}; give it, or {{}} for the node's own package sources"]
    problems = []
    if not _URL.fullmatch(str(repository["url"])):
        problems.append(f"url {repository['url']!r} is no URL for apt, like 'https://example.org/apptainer/'")
    for key in ("suite", "component"):
        if not _WORD.fullmatch(str(repository[key])):
            problems.append(f"{key} {repository[key]!r} must be one word")
    return problems
