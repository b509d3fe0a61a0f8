# SPDX-License-Identifier: Apache-2.0
"""apptainer.conf as it is on a node: what Apptainer takes from it, and what it takes otherwise than meant.

`apptainer_conf` refuses a file with a mistake. Here such a file is read the way Apptainer reads it, so that
the rules can judge what is really in force. What a mistake is, `apptainer_conf` alone decides.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple

from . import apptainer_conf, apptainer_version
from .apptainer_conf_releases import Value, expand


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
    for number, line in enumerate(text.split("\n"), 1):
        name, _, value = (part.strip() for part in line.partition("="))
        subject = f"line {number}"
        if name in items and schema[name].kind != "list" and value:
            message = f"line {number}: '{name}' stands there again, and only the first counts"
            problems.append(Problem("L03", subject, message))
            continue
        try:
            apptainer_conf.parse(line, release)
        except apptainer_conf.ConfigError as error:
            # Its own number is that of the only line it got.
            message = str(error).replace("line 1:", f"line {number}:", 1)
            problems.append(Problem(_rule(name, value, release), subject, message))
        if name in schema and value:
            items.setdefault(name, []).extend(value.split(","))
    settings: Dict[str, Value] = {}
    for name, directive in schema.items():
        if directive.kind == "list":
            settings[name] = tuple(item.strip() for item in items.get(name, ()) if item.strip())
        else:
            taken = _scalar(name, items.get(name, [""])[0], release)
            if taken is not None:
                settings[name] = taken
    return settings, problems


def _scalar(name: str, item: str, release: str) -> Optional[Value]:
    # Apptainer compares what stands before a comma as it is, blanks included.
    if item != item.strip():
        return None
    try:
        return apptainer_conf.parse(f"{name} = {item}", release)[name]
    except apptainer_conf.ConfigError:
        return None


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
