# SPDX-License-Identifier: Apache-2.0
"""apptainer.conf: what may stand in it in which release, and what Apptainer makes of what stands in it.

Apptainer ignores a directive that it doesn't know, takes the first of two that contradict, reads
``yes, no`` as ``yes`` and ``yes # a comment`` as an error that stops every command on the node. Here
each of these is an error with a message, before a node sees it.

Source of the grammar: ``pkg/util/apptainerconf/parser.go`` of https://github.com/apptainer/apptainer
(the same from 1.0.0 to 1.5.3).
"""

from __future__ import annotations

import difflib
import re
from typing import Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import apptainer_version
from .apptainer_conf_releases import SINGULARITYCE_ONLY, Directive, Value, expand

_RELEASES = expand()
_LARGEST = 2**64 - 1
# strconv.ParseUint(text, 0, 64) of Go: prefixes, and single underscores between digits.
_GO_NUMBER = re.compile(r"0[xX](_?[0-9a-fA-F])+|0[bB](_?[01])+|0[oO]?(_?[0-7])+|[1-9](_?[0-9])*|0")
_LINE = re.compile(r"[\t\f\r ]*(?P<name>[a-zA-Z _-]+)[\t ]*=[\t ]*(?P<value>.*)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u0085\u2028\u2029]")
# Whitespace and a number sign: someone believes that the rest of the line is a comment.
_COMMENT = re.compile(r"(^|\s)#")


class ConfigError(ValueError):
    """A configuration that Apptainer would not take the way it is meant.

    problems: one sentence each, that names the directive (or the line) and the mend.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


class UnknownReleaseError(ConfigError):
    """A release whose directives are not in the data."""


class Entry(NamedTuple):
    """One directive in a file to be written.

    lines: what goes into the file, without newlines; a comment where the directive isn't set.
    """

    name: str
    about: str
    allowed: str
    default: str
    lines: List[str]


def schema(release: str) -> Dict[str, Directive]:
    """Return the directives of *release* (``X.Y.Z``), in the order of the file.

    A patch release that is newer than this project's data has the directives of the last one known: upstream
    adds none in patch releases any more. Raises UnknownReleaseError for a release before the first or of a
    series (``X.Y``) after the last in the data.
    """
    wanted = apptainer_version.parse(release).numbers
    known = {apptainer_version.parse(name).numbers: directives for name, directives in _RELEASES.items()}
    if wanted < min(known) or wanted[:2] > max(known)[:2]:
        first, last = min(known), max(known)
        raise UnknownReleaseError(
            [
                f"the directives of Apptainer {release} are not known, only those of"
                f" {'.'.join(map(str, first))} to {last[0]}.{last[1]}.x: choose one of these, or update"
                " apptainer-fleet to one that knows it (its developers add an entry to"
                " module_utils/apptainer_conf_releases.py)"
            ]
        )
    return known[max(numbers for numbers in known if numbers <= wanted)]


def check(config: Mapping[str, object], release: str) -> Dict[str, Value]:
    """Return the settings of *config* in Apptainer's own words, checked for *release*.

    config: directive → value, as YAML gives it: booleans for yes and no, numbers, text, lists of text.
    Raises ConfigError with every problem there is.
    """
    directives = schema(release)
    settings: Dict[str, Value] = {}
    problems: List[str] = []
    for name, value in config.items():
        directive = directives.get(name)
        try:
            if directive is None:
                raise ValueError(_unknown(str(name), release))
            settings[name] = _normal(directive, value)
        except ValueError as error:
            problems.append(f"'{name}' {error}")
    if problems:
        raise ConfigError(problems)
    return settings


def complete(config: Mapping[str, object], release: str) -> Dict[str, Value]:
    """Return every directive of *release* with its value: that of *config*, or Apptainer's default.

    Raises ConfigError.
    """
    settings = check(config, release)
    return {name: settings.get(name, directive.default) for name, directive in schema(release).items()}


def entries(config: Mapping[str, object], release: str) -> List[Entry]:
    """Return all that a complete file for *release* has to say, with the settings of *config*.

    Raises ConfigError.
    """
    directives = schema(release)
    return [
        Entry(
            name,
            directives[name].about,
            ", ".join(directives[name].choices) or _ALLOWED[directives[name].kind],
            ", ".join(_items(directives[name].default)) or "none",
            [f"{name} = {item}" for item in _items(value)] or [f"# {name} ="],
        )
        for name, value in complete(config, release).items()
    ]


def parse(text: str, release: str) -> Dict[str, Value]:
    """Return every directive of *release* with the value that Apptainer takes from the file *text*.

    Raises ConfigError, which names the lines, where a line would be ignored or not read the way it looks.
    """
    directives = schema(release)
    found: Dict[str, List[str]] = {}
    problems: List[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        try:
            name, value = _setting(line)
            directive = directives.get(name)
            if directive is None:
                raise ValueError(f"'{name}' {_unknown(name, release)}")
            if value:
                if name in found and directive.kind != "list":
                    raise ValueError(f"'{name}' stands here again, and only the first counts; leave one")
                found.setdefault(name, []).extend(_items(_normal(directive, _read(directive, value))))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise ConfigError(problems)
    return {name: _value(directive, found.get(name)) for name, directive in directives.items()}


_ALLOWED = {"number": "a number", "text": "text", "list": "a list, one item a line"}


def _items(value: Value) -> Tuple[str, ...]:
    return value if isinstance(value, tuple) else (value,) if value else ()


def _value(directive: Directive, items: Optional[List[str]]) -> Value:
    # A list's default is for a node without a file: a file that doesn't name the list has an empty one.
    if directive.kind == "list":
        return tuple(items or ())
    return items[0] if items else directive.default


def _setting(line: str) -> Tuple[str, str]:
    match = _LINE.fullmatch(line)
    if not match:
        raise ValueError(f"{line.strip()!r} is neither a comment nor a directive, and would be ignored")
    return match.group("name").strip(), match.group("value").strip()


def _read(directive: Directive, value: str) -> object:
    """Return what Go makes of *value*, as `_normal` takes it."""
    if directive.kind == "list":
        return value.split(",")
    if directive.kind == "number" and _GO_NUMBER.fullmatch(value):
        digits = value.replace("_", "").lower()
        octal = digits.startswith("0") and digits.isdigit()
        return str(int(digits, 8 if octal else 0))
    return value


def _normal(directive: Directive, value: object) -> Value:
    """Return *value* in Apptainer's own words. Raises ValueError with a message to follow the name."""
    if directive.kind == "choice":
        return _normal_choice(directive, value)
    if directive.kind == "number":
        return _normal_number(value)
    if directive.kind == "list":
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise ValueError(f"must be a list of text, not {value!r}")
        texts = tuple(_normal_text(item) for item in items)
        if "" in texts:
            raise ValueError("has an empty item; leave it out")
        if directive.default:
            _check_binds(texts)
        return texts
    text = _normal_text(value)
    if not text and directive.default:
        raise ValueError(f"is empty, which Apptainer reads as its default {directive.default}; leave it out")
    return text


def _normal_choice(directive: Directive, value: object) -> str:
    word = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
    if word in directive.choices:
        return str(word)
    raise ValueError(
        f"must be exactly one of {', '.join(directive.choices)} in lower case, with nothing after it,"
        f" not {value!r}"
    )


def _normal_number(value: object) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and re.fullmatch("[0-9]+", text) and int(text) <= _LARGEST:
        return str(int(text))
    raise ValueError(f"must be a whole number from 0 to {_LARGEST} without a unit, not {value!r}")


def _normal_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {value!r}; put it in quotes")
    if _CONTROL.search(value):
        raise ValueError(f"must be one line without control characters, not {value!r}")
    if "," in value:
        raise ValueError(
            f"has a comma in {value!r}, where Apptainer splits; give a YAML list where a list may be"
        )
    if _COMMENT.search(value):
        raise ValueError(f"has a comment in {value!r}, which would be part of the value; leave it out")
    return value.strip()


def _check_binds(binds: Sequence[str]) -> None:
    for bind in binds:
        paths = bind.split(":")
        if bind.count(":") > 1 or not all(path.startswith("/") for path in paths):
            raise ValueError(
                f"must be absolute paths SOURCE or SOURCE:DESTINATION, not {bind!r}; Apptainer drops a third"
                " part, so ':ro' would be writable"
            )


def _unknown(name: str, release: str) -> str:
    """Say why *name* is no directive of *release*, to follow the name."""
    ignored = "Apptainer would ignore it"
    if name == "suidbinary path":
        return "is set by Apptainer itself at run time; leave it out"
    having = [known for known, directives in _RELEASES.items() if name in directives]
    if having:
        return f"is no directive of Apptainer {release}, but of {_range(having)}; {ignored}"
    if name in SINGULARITYCE_ONLY:
        instead = SINGULARITYCE_ONLY[name]
        return f"is a directive of SingularityCE; {ignored}" + (f"; see '{instead}'" if instead else "")
    close = _closest(name, schema(release))
    hint = f"; did you mean '{close}'?" if close else ""
    return f"is no directive of Apptainer {release}; {ignored}{hint}"


def _range(releases: Sequence[str]) -> str:
    following = list(_RELEASES)[list(_RELEASES).index(releases[-1]) + 1 :]
    return f"{releases[0]} and later" if not following else f"{releases[0]} until {following[0]}"


def _closest(name: str, known: Iterable[str]) -> Optional[str]:
    """Return the one of *known* that *name* is most likely meant to be, None if there is none."""

    def spoken(written: str) -> str:
        return re.sub(r"[\s_-]+", " ", written.strip().lower())

    meant = {spoken(directive): directive for directive in known}
    matches = difflib.get_close_matches(spoken(name), meant, n=1, cutoff=0.7)
    return meant[matches[0]] if matches else None
