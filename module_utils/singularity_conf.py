# SPDX-License-Identifier: Apache-2.0
"""Settings of a Singularity that Apptainer replaces, in the words of Apptainer.

singularity.conf of SingularityCE and of Singularity 3 has the grammar of apptainer.conf, and most of its
directives. Only what a site has changed is carried over: what has the default of the old program gets the
default of the new one, which is often another for good reasons.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Sequence

from . import apptainer_conf, apptainer_conf_lint, atomic_file
from .apptainer_conf_releases import Value, expand

#: Packages of Singularity: EPEL's and that of releases 3, SingularityCE's, Debian's.
PACKAGES = ("singularity", "singularity-ce", "singularity-container")
CONFIGURATION = "/etc/singularity/singularity.conf"
#: Where it is kept once the package is gone: packages take theirs along, or rename it.
KEPT = "/var/lib/apptainer-fleet/singularity.conf"
#: The oldest release that is known: its defaults are those of Singularity 3.
_REFERENCE = next(iter(expand()))


class Inherited(NamedTuple):
    """What of a singularity.conf counts for Apptainer, and why the rest does not, in sentences."""

    settings: Dict[str, Value]
    left_out: List[str]


def keep(path: str = CONFIGURATION, target: str = KEPT) -> None:
    """Keep the file of a Singularity that is about to be removed, if there is one. Raises OSError."""
    content = atomic_file.read(path)
    if content is not None and content != atomic_file.read(target):
        if not Path(target).parent.is_dir():
            Path(target).parent.mkdir()
            # Not as mkdir's mode, of which root's umask would take away.
            Path(target).parent.chmod(0o755)
        atomic_file.replace(target, content, owner=(0, 0))


def find(paths: Sequence[str] = (CONFIGURATION, KEPT)) -> str:
    """Return the text of the first that is there, empty if none is. Raises OSError."""
    contents = (atomic_file.read(path) for path in paths)
    return next((content for content in contents if content is not None), b"").decode(
        errors="surrogateescape"
    )


def translate(text: str, release: str, chosen: Mapping[str, object]) -> Inherited:
    """Return what the singularity.conf *text* is for Apptainer *release*, below what the site has *chosen*.

    Raises apptainer_conf.ConfigError for what is wrong with *chosen*.
    """
    own = apptainer_conf.check(chosen, release)
    defaults = apptainer_conf.schema(_REFERENCE)
    taken, problems = apptainer_conf_lint.read(text, release)
    names = {line.number: line.name for line in apptainer_conf.lines(text) if line.name}
    named = {name: number for number, name in reversed(list(names.items()))}
    settings: Dict[str, Value] = {}
    # Of directives that Apptainer lacks, all are named, for nobody here knows their defaults.
    left_out = [_with_name(problem.message, names) for problem in problems]
    for name, value in taken.items():
        if name not in named or (name in defaults and value == defaults[name].default):
            continue
        if name in own:
            if own[name] != value:
                left_out.append(
                    f"line {named[name]}: '{name}' has another value in apptainer_config or in the profile"
                )
        elif apptainer_conf_lint.check({name: value}, release):
            left_out.append(
                f"line {named[name]}: '{name}' has a value that Apptainer {release} does not take"
            )
        else:
            settings[name] = value
    return Inherited(settings, left_out)


def _with_name(message: str, names: Mapping[int, str]) -> str:
    """Return a message of `apptainer_conf` about a line with the directive in it."""
    line, _, text = message.partition(": ")
    name = names.get(int(line.split(" ")[1]), "")
    return message if not name or f"'{name}'" in text else f"{line}: '{name}' {text}"
