# SPDX-License-Identifier: Apache-2.0
"""apptainer.conf as it is on a node: what Apptainer takes from it, and what it takes otherwise than meant.

`apptainer_conf` refuses a file with a mistake. Here such a file is read the way Apptainer reads it, so that
the rules can judge what is really in force. What a mistake is, `apptainer_conf` alone decides.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple

from . import apptainer_conf, apptainer_version
from .apptainer_conf_releases import Directive, Value, expand


class Problem(NamedTuple):
    """A line of apptainer.conf, or a setting for it, that Apptainer doesn't take the way it is meant.

    rule: the rule that it breaks, ``L01``. subject: the directive, or the line. message: what is wrong.
    """

    rule: str
    subject: str
    message: str


def check(config: Mapping[str, object], release: str) -> List[Problem]:
    """Return what is wrong with the settings *config*, as `apptainer_conf.check` takes them.

    Raises apptainer_conf.UnknownReleaseError.
    """
    apptainer_conf.schema(release)
    problems = []
    for name, value in config.items():
        try:
            apptainer_conf.check({name: value}, release)
        except apptainer_conf.ConfigError as error:
            problems.append(Problem(_rule(name, value, release), name, str(error)))
    return problems


def read(text: str, release: str) -> Tuple[Dict[str, Value], List[Problem]]:
    """Return what Apptainer takes from the file *text*, directive → value, and what it takes amiss.

    A scalar that stops Apptainer is left out. Items of lists are as they stand there.
    Raises apptainer_conf.UnknownReleaseError.
    """
    schema = apptainer_conf.schema(release)
    items: Dict[str, List[str]] = {}
    problems = []
    for line in apptainer_conf.lines(text):
        name, value, subject = line.name or "", line.value, f"line {line.number}"
        again = name in items and apptainer_conf.without_effect(line, schema[name])
        if again:
            problems.append(Problem("L03", subject, f"{subject}: {again}"))
            continue
        try:
            apptainer_conf.items(line, release)
        except apptainer_conf.ConfigError as error:
            problems.append(Problem(_rule(name, value, release), subject, str(error)))
        if name in schema and value:
            items.setdefault(name, []).extend(value.split(","))
    settings: Dict[str, Value] = {}
    for name, directive in schema.items():
        if directive.kind == "list":
            settings[name] = tuple(
                filter(None, (item.strip(apptainer_conf.SPACE) for item in items.get(name, ())))
            )
        else:
            # What stands before a comma counts as it is, blanks included.
            scalar = taken(directive, items[name][0]) if name in items else directive.default
            if scalar is not None:
                settings[name] = scalar
    return settings, problems


def taken(directive: Directive, item: str) -> Optional[str]:
    """Return what Apptainer takes *item*, the first of a scalar, for; None if it stops every command."""
    if directive.kind == "number":
        return apptainer_conf.number(item)
    # Where there is more than yes and no, Apptainer takes nothing at all, too.
    nothing = item == "" and directive.choices != ("yes", "no")
    return item if nothing or not directive.choices or item in directive.choices else None


def _rule(name: str, value: object, release: str) -> str:
    """Return the rule that a setting breaks which `apptainer_conf` refuses."""
    wanted = apptainer_version.parse(release).numbers
    later = [
        directives[name]
        for known, directives in expand().items()
        if apptainer_version.parse(known).numbers > wanted and name in directives
    ]
    directive = apptainer_conf.schema(release).get(name)
    if directive is None:
        return "L15" if later else "L01"
    if any(value in other.choices for other in later):
        return "L15"
    if name == "bind path":
        return "L18"
    comma = directive.kind != "list" and isinstance(value, str) and "," in value
    return "L04" if comma else "L02"
