# SPDX-License-Identifier: Apache-2.0
"""The security profiles: what each sets, what holds with it, and what doesn't. All of it is here, as data.

A site's ``apptainer_config`` says everything that a profile leaves open; what contradicts a profile is an
error. docs/reference/apptainer_profiles.md is made of this file.

Sources: ``pkg/util/apptainerconf/config.go`` and ``internal/pkg/syecl`` of
https://github.com/apptainer/apptainer; its admin guide, configfiles.rst and security.rst; CVE-2023-30549;
issue apptainer#1854.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple

from . import apptainer_conf
from .apptainer_conf import ConfigError
from .apptainer_conf_releases import Directive
from .apptainer_ecl import Ecl


class Setting(NamedTuple):
    """A directive in a profile.

    values: the first that the release knows is set; a site may choose another of them. why: the reason. open:
    whether a site may choose what it likes, and the rules judge that.
    """

    directive: str
    values: Tuple[str, ...]
    why: str
    open: bool = False


class Profile(NamedTuple):
    """A security profile.

    suid: whether the package apptainer-suid is installed. user_namespaces: whether users have to be able to
    create user namespaces. whitestrict: whether an ECL with nothing but this mode has to be on. about: what
    it is for. settings: what it sets in apptainer.conf. holds: what no user gets around. know: what it can't
    enforce, and what it costs. Each is a sentence.
    """

    about: str
    suid: bool
    user_namespaces: bool
    whitestrict: bool
    settings: Tuple[Setting, ...]
    holds: Tuple[str, ...]
    know: Tuple[str, ...]


_FUSE_IS_SAFER = "users could otherwise have the kernel mount file systems that they made (CVE-2023-30549)"
_BYPASS = (
    "Limits of any kind (the ECL, 'limit container …', 'allow container … = no', 'user bind control') bind"
    " nobody: a user starts containers with an Apptainer of his own, which reads nothing of the node."
    " Rule L08 says so."
)

PROFILES: Mapping[str, Profile] = {
    "rootless": Profile(
        about="No program of Apptainer runs with privileges. For sites that trust the kernel's user"
        " namespaces and need no say in which images run.",
        suid=False,
        user_namespaces=True,
        whitestrict=False,
        settings=(
            Setting(
                "allow setuid",
                ("no",),
                "there is no setuid starter in it; one that gets here another way is not used either",
            ),
            Setting("allow user ns", ("yes",), "no container starts without in it"),
        ),
        holds=(
            "No file of Apptainer has the setuid bit, so no fault in Apptainer makes a user root.",
            "A user is the same user inside, for the node: root inside is root of nothing outside.",
            "The kernel mounts no file system that users made: images are mounted with FUSE.",
        ),
        know=(_BYPASS,),
    ),
    "enforced": Profile(
        about="The setuid starter is the only way to a container, and it runs listed images alone. For sites"
        " that have to say which images run. It needs user_namespaces_enabled: false and apptainer_ecl.",
        suid=True,
        user_namespaces=False,
        whitestrict=True,
        settings=(
            Setting(
                "allow setuid", ("yes",), "the setuid starter is the only way to start a container in it"
            ),
            Setting("allow user ns", ("no",), "a container in a user namespace is bound by no list"),
            Setting("allow container sif", ("yes",), "the list judges no other format, so they are off"),
            Setting("allow container squashfs", ("no",), "the list judges SIF images only"),
            Setting("allow container extfs", ("no",), "the list judges SIF images only"),
            Setting("allow container dir", ("no",), "the list judges SIF images only"),
            Setting(
                "allow setuid-mount squashfs",
                ("iflimited", "yes"),
                "users trace a FUSE process and swap what a listed image contains (apptainer#1854)",
            ),
            Setting("allow setuid-mount extfs", ("no",), _FUSE_IS_SAFER),
        ),
        holds=(
            "An image runs only if it is a SIF that lies in a listed directory, and every key of that"
            " directory has signed all of it. Unsigned, changed, partly or wrongly signed ones are refused.",
            "Directories, ext3 and bare SquashFS images are refused, and so is `--userns`.",
            "An Apptainer that a user brings along starts nothing: it is not setuid, and the kernel gives"
            " users no user namespaces.",
        ),
        know=(
            "What a user binds or overlays into a listed image is his own, and so are programs that he runs"
            " without a container: the list says which images run, not which programs.",
            "An image is judged when it starts. One that is revoked goes on running where it runs.",
            "Everything that needs user namespaces is off: `--fakeroot`, builds by users, other container"
            " programs, sandboxes of browsers.",
            "A fault in the setuid starter can make a user root. Apply its updates at once (rule L30).",
            "Root on the node is bound by nothing of this.",
        ),
    ),
    "compatible": Profile(
        about="Containers start with the setuid starter, or with `--userns` without it. For sites on their"
        " way from one of the other profiles to the other.",
        suid=True,
        user_namespaces=True,
        whitestrict=False,
        settings=(
            Setting("allow setuid", ("yes",), "the setuid starter is one of its two ways"),
            Setting("allow user ns", ("yes",), "`--userns` is one of its two ways"),
            Setting("allow setuid-mount squashfs", ("iflimited",), _FUSE_IS_SAFER, open=True),
            Setting("allow setuid-mount extfs", ("no",), _FUSE_IS_SAFER, open=True),
        ),
        holds=("A user is the same user inside, for the node.",),
        know=(
            f"{_BYPASS} In this profile as a warning, so that a list can be tried before it binds.",
            "A fault in the setuid starter can make a user root. Apply its updates at once (rule L30).",
        ),
    ),
}


def settings(profile: str, config: Mapping[str, object], release: str) -> Dict[str, object]:
    """Return what *profile* and the site's *config* set together for *release*, in Apptainer's own words.

    Raises ConfigError where they contradict each other, or `apptainer_conf.check` finds something.
    """
    own = apptainer_conf.check(config, release)
    schema = apptainer_conf.schema(release)
    result: Dict[str, object] = {}
    problems: List[str] = []
    for setting in PROFILES[profile].settings:
        values = possible(setting, schema)
        if not values:
            continue
        result[setting.directive] = values[0]
        chosen = own.get(setting.directive, values[0])
        if chosen not in values and not setting.open:
            problems.append(
                f"'{setting.directive}' is {chosen}, but apptainer_profile is '{profile}', which has"
                f" {' or '.join(values)}: {setting.why}; take it out, or choose another profile"
            )
    if problems:
        raise ConfigError(problems)
    return {**result, **own}


def possible(setting: Setting, schema: Mapping[str, Directive]) -> Tuple[str, ...]:
    """Return the values of *setting* that a release can have; none if it doesn't know the directive."""
    directive = schema.get(setting.directive)
    return tuple(value for value in setting.values if directive and value in directive.choices)


def ecl_problems(profile: str, ecl: Optional[Ecl]) -> List[str]:
    """Return why *profile* can't have *ecl* (None if the site doesn't say), one sentence each."""
    if not PROFILES[profile].whitestrict:
        return []
    needs = f"but apptainer_profile is '{profile}', which runs listed images alone"
    if ecl is None or not ecl.activated:
        state = "not set" if ecl is None else "off"
        return [f"the list is {state}, {needs}: set execgroups, and enabled: true"]
    return [
        f"execgroup {number} ({group.tagname}) has mode {group.mode}, {needs}: set mode: whitestrict"
        for number, group in enumerate(ecl.execgroups, 1)
        if group.mode != "whitestrict"
    ]
