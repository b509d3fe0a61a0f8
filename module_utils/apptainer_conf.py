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
import functools
import re
import textwrap
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import apptainer_version
from .apptainer_conf_releases import SINGULARITYCE_ONLY, Directive, Value, expand

_RELEASES = expand()
_BY_NUMBERS = {apptainer_version.parse(name).numbers: directives for name, directives in _RELEASES.items()}
_LARGEST = 2**64 - 1
# strconv.ParseUint(text, 0, 64) of Go: prefixes, and single underscores between digits.
_GO_NUMBER = re.compile(r"0[xX](_?[0-9a-fA-F])+|0[bB](_?[01])+|0[oO]?(_?[0-7])+|[1-9](_?[0-9])*|0")
#: White space, to Go (unicode.IsSpace). Four control characters are some to Python alone.
SPACE = " \t\n\v\f\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
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


@functools.lru_cache(maxsize=None)
def schema(release: str) -> Dict[str, Directive]:
    """Return the directives of *release* (``X.Y.Z``), in the order of the file.

    A patch release that is newer than this project's data has the directives of the last one known: upstream
    adds none in patch releases any more. Raises UnknownReleaseError for a release before the first or of a
    series (``X.Y``) after the last in the data.
    """
    wanted = apptainer_version.parse(release).numbers
    first, last = min(_BY_NUMBERS), max(_BY_NUMBERS)
    if wanted < first or wanted[:2] > last[:2]:
        raise UnknownReleaseError(
            [
                f"the directives of Apptainer {release} are not known, only those of"
                f" {'.'.join(map(str, first))} to {last[0]}.{last[1]}.x: choose one of these, or update"
                " apptainer-fleet to one that knows it (its developers add an entry to"
                " module_utils/apptainer_conf_releases.py)"
            ]
        )
    return _BY_NUMBERS[max(numbers for numbers in _BY_NUMBERS if numbers <= wanted)]


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


def render(config: Mapping[str, object], release: str) -> str:
    """Return a complete apptainer.conf for *release* with the settings of *config*, each line explained.

    Raises ConfigError.
    """
    directives = schema(release)
    parts = [_HEAD.format(release=release)]
    for name, value in complete(config, release).items():
        directive = directives[name]
        allowed = ", ".join(directive.choices) or _ALLOWED[directive.kind]
        default = ", ".join(_items(directive.default)) or "none"
        # An empty value would be the default, so it is left to a comment.
        lines = [f"{name} = {item}" for item in _items(value)] or [f"# {name} ="]
        about = textwrap.wrap(
            directive.about, 100, initial_indent="# ", subsequent_indent="# ", break_long_words=False
        )
        parts.append("\n".join([*about, f"# Values: {allowed}. Default: {default}", *lines]) + "\n")
    return "\n".join(parts)


class Line(NamedTuple):
    """A line that is neither empty nor a comment. name: the directive, None if it is no line of one."""

    number: int
    text: str
    name: Optional[str]
    value: str


def lines(text: str) -> Iterator[Line]:
    """Yield the lines of the file *text* that say something, taken apart as Apptainer does it."""
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip(SPACE)
        if not stripped or stripped.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match:
            yield Line(number, line, match.group("name").strip(" "), match.group("value").strip(SPACE))
        else:
            yield Line(number, line, None, "")


def items(line: Line, release: str) -> List[str]:
    """Return what Apptainer *release* takes from a line by itself, none if it has no value.

    Raises ConfigError where the line would be ignored or not read the way it looks.
    """
    directive = schema(release).get(line.name or "")
    try:
        if line.name is None:
            raise ValueError(
                f"{line.text.strip()!r} is neither a comment nor a directive, and would be ignored"
            )
        if directive is None:
            raise ValueError(f"'{line.name}' {_unknown(line.name, release)}")
        if line.value:
            return list(_items(_normal(directive, _read(directive, line.value))))
        if directive.kind != "list" and directive.default:
            default = f"which Apptainer reads as its default {directive.default}"
            raise ValueError(f"'{line.name}' is empty, {default}; write that")
    except ValueError as error:
        raise ConfigError([f"line {line.number}: {error}"]) from error
    return []


def without_effect(line: Line, directive: Directive) -> str:
    """Return why a line has no effect below another with a value for its *directive*; empty if it has."""
    if not line.value:
        return f"'{line.name}' stands here again and is empty, which takes nothing back"
    if directive.kind != "list":
        return f"'{line.name}' stands here again, and only the first counts"
    return ""


def parse(text: str, release: str) -> Dict[str, Value]:
    """Return every directive of *release* with the value that Apptainer takes from the file *text*.

    Raises ConfigError, which names the lines, where a line would be ignored or not read the way it looks.
    """
    directives = schema(release)
    found: Dict[str, List[str]] = {}
    problems: List[str] = []
    for line in lines(text):
        name = line.name or ""
        again = name in found and without_effect(line, directives[name])
        if again:
            problems.append(f"line {line.number}: {again}; leave one")
            continue
        try:
            taken = items(line, release)
            if line.value:
                found.setdefault(name, []).extend(taken)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return {name: _value(directive, found.get(name)) for name, directive in directives.items()}


def number(text: str) -> Optional[str]:
    """Return the number that Go reads in *text* (``0x10``, ``020``, ``1_000``), decimal; None for none."""
    if not _GO_NUMBER.fullmatch(text):
        return None
    digits = text.replace("_", "").lower()
    octal = digits.startswith("0") and digits.isdigit()
    value = int(digits, 8 if octal else 0)
    return str(value) if value <= _LARGEST else None


_HEAD = """\
# Ansible writes this file (apptainer-fleet): what is changed here is lost.
#
# Every directive that Apptainer {release} knows. It ignores all others, takes the first of two that
# contradict each other, and reads a comment behind a value as part of the value.
"""
_ALLOWED = {"number": "a number", "text": "text", "list": "a list, one item a line"}


def _items(value: Value) -> Tuple[str, ...]:
    return value if isinstance(value, tuple) else (value,) if value else ()


def _value(directive: Directive, items: Optional[List[str]]) -> Value:
    # A list's default is for a node without a file: a file that doesn't name the list has an empty one.
    if directive.kind == "list":
        return tuple(items or ())
    return items[0] if items else directive.default


def _read(directive: Directive, value: str) -> object:
    """Return what Go makes of *value*, as `_normal` takes it."""
    if directive.kind == "list":
        return value.split(",")
    if directive.kind == "number" and number(value) is None:
        hint = "; a leading 0 is for octal numbers" if value.startswith("0") else ""
        raise ValueError(f"must be a whole number from 0 to {_LARGEST} without a unit, not {value!r}{hint}")
    return number(value) if directive.kind == "number" else value


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
    close = _closest(name, release)
    hint = f"; did you mean '{close}'?" if close else ""
    return f"is no directive of Apptainer {release}; {ignored}{hint}"


def _range(releases: Sequence[str]) -> str:
    following = list(_RELEASES)[list(_RELEASES).index(releases[-1]) + 1 :]
    return f"{releases[0]} and later" if not following else f"{releases[0]} until {following[0]}"


@functools.lru_cache(maxsize=None)
def _closest(name: str, release: str) -> Optional[str]:
    """Return the directive that *name* is most likely meant to be, None if there is none."""

    def spoken(written: str) -> str:
        return re.sub(r"[\s_-]+", " ", written.strip().lower())

    meant = {spoken(directive): directive for directive in schema(release)}
    matches = difflib.get_close_matches(spoken(name), meant, n=1, cutoff=0.7)
    return meant[matches[0]] if matches else None
