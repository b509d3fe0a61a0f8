"""What Apptainer makes of an apptainer.conf, transcribed from its source and from nothing of this project.

Source: ``GetDirectives`` and ``GetConfig`` in pkg/util/apptainerconf/parser.go, with Go's regexp,
strings.TrimSpace and strconv.ParseUint; the directives are those of apptainer-conf-matrix.json in
tests/unit/data, read from config.go. molecule/configuration holds it against the program itself.

`mutants` makes files that are almost right, `disagreement` says where our readers and Apptainer part.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from module_utils import apptainer_conf, apptainer_conf_lint

MATRIX: dict[str, dict[str, list[Any]]] = json.loads(
    (Path(__file__).parent / "unit" / "data" / "apptainer-conf-matrix.json").read_text()
)
# unicode.IsSpace
SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
LINE = re.compile(r"(?m)^[\t\n\f\r ]*([a-zA-Z _-]+)[ \t]*=[ \t]*([^\n]*)$")


class FatalError(ValueError):
    """Every command of Apptainer fails; the text is the directive that is to blame."""


def text_of(content: bytes) -> str:
    """Return *content* with one character for each that Go sees, and for each byte that is no UTF-8."""
    return content.decode(errors="surrogateescape")


def read(content: bytes, release: str) -> dict[str, str | tuple[str, ...]]:
    """Return directive → value as `GetConfig` has it, numbers as decimal text. Raises FatalError."""
    given: dict[str, list[str]] = {}
    for match in LINE.finditer(text_of(content)):
        key, value = match[1].strip(SPACE), match[2].strip(SPACE)
        if value:
            given.setdefault(key, []).append(value)
    config: dict[str, str | tuple[str, ...]] = {}
    for name, (kind, default, authorized) in MATRIX[release].items():
        values = [item for value in given.get(name, []) for item in value.split(",")]
        if kind == "[]string":
            # Its default is for a node without a file.
            config[name] = tuple(value.strip(SPACE) for value in values)
            continue
        if name not in given:
            values = default.split(",") if default else [""]
        value = values[0]
        if kind == "bool" and value not in authorized:
            raise FatalError(name)
        if kind == "string" and authorized and value and value not in authorized:
            raise FatalError(name)
        if kind == "uint":
            try:
                value = str(parse_uint(value))
            except ValueError:
                raise FatalError(name) from None
        config[name] = value
    return config


def parse_uint(text: str) -> int:
    """strconv.ParseUint(text, 0, 64). Raises ValueError."""
    base, digits = 10, text
    if text[:1] == "0":
        base, digits = {"b": (2, text[2:]), "o": (8, text[2:]), "x": (16, text[2:])}.get(
            text[1:2].lower() if len(text) > 2 else "", (8, text[1:])
        )
        if text == "0":
            return 0
    if "_" in text and not underscore_ok(text):
        raise ValueError(text)
    digits = digits.replace("_", "").lower()
    # int() by itself takes signs, blanks, prefixes, and the digits of other scripts.
    if not digits or any(digit not in "0123456789abcdef"[:base] for digit in digits):
        raise ValueError(text)
    if int(digits, base) >= 2**64:
        raise ValueError(text)
    return int(digits, base)


def underscore_ok(text: str) -> bool:
    """underscoreOK of strconv: between digits, or between the prefix of the base and a digit."""
    before, rest, hexadecimal = "^", text, False
    if len(text) >= 2 and text[0] == "0" and text[1].lower() in "box":
        before, rest, hexadecimal = "0", text[2:], text[1].lower() == "x"
    for character in rest:
        if character.isascii() and (character.isdigit() or (hexadecimal and character.lower() in "abcdef")):
            before = "0"
        elif character == "_":
            if before != "0":
                return False
            before = "_"
        else:
            if before == "_":
                return False
            before = "!"
    return before != "_"


def ignored(content: bytes, release: str) -> list[int]:
    """Return the numbers of the lines that are settings to a person, and that Apptainer doesn't apply."""
    lines, seen = [], set()
    for number, line in enumerate(text_of(content).split("\n"), 1):
        shown = line.strip(SPACE)
        if not shown or shown.startswith("#"):
            continue
        match = LINE.match(line)
        name = match[1].strip(SPACE) if match else ""
        kind, default, _ = MATRIX[release].get(name, (None, None, None))
        value, scalar = match[2].strip(SPACE) if match else "", kind != "[]string"
        shadowed = name in seen and (scalar or not value)
        if kind is None or shadowed or (scalar and ("," in value or (not value and default))):
            lines.append(number)
        if value:
            seen.add(name)
    return lines


# --- files that are almost right ----------------------------------------------------------------------------

#: What is put into a file: blanks of all kinds, separators, comments, words of other directives, no UTF-8.
TOKENS = [
    *(" ", "  ", "\t", "\r", "\n", "\n\n", "\v", "\f", "\x00", "\x1c", "\x1f", "\x7f", "\x85", "\xa0"),
    *("\u2003", "\u2028", "\u3000", "\ufeff", "\udc80", "\udcff", "\u0660", "=", "==", ":", ",", ", ", ",,"),
    *(
        "#",
        " # x",
        "# ",
        ";",
        '"',
        "'",
        "\\",
        "-",
        "_",
        "yes",
        "no",
        "Yes",
        "NO",
        "true",
        "0",
        "0x",
        "1_",
        "+1",
    ),
    *("allow setuid = no\n", "allow  setuid = no\n", "Allow setuid = no\n", "allow_setuid = no\n", "minimal"),
    *("suidbinary path = /x\n", "apptheus socket path = /x\n", "oci mode = no\n", "iflimited", "x" * 5000),
]


def mutants(seed: int, count: int, *releases: str) -> Iterator[tuple[str, bytes]]:
    """Yield *count* releases and files, always the same for a seed: valid ones with one to four changes.

    releases: those to choose from, all if none are given.
    """
    chance = random.Random(seed)  # noqa: S311 - to be repeatable
    releases = releases or tuple(MATRIX)
    for _ in range(count):
        release = chance.choice(releases)
        lines = [_line(chance, release) for _ in range(chance.randint(1, 8))]
        text = "\n".join(lines) + "\n"
        for _ in range(chance.randint(1, 4)):
            text = _changed(chance, text)
        yield release, text.encode(errors="surrogateescape")


def _line(chance: random.Random, release: str) -> str:
    name = chance.choice(list(MATRIX[release]))
    kind, default, authorized = MATRIX[release][name]
    if authorized:
        value = chance.choice(authorized)
    elif kind == "uint":
        value = chance.choice(["0", "16", "0x10", "020", "0b1", "1_000", str(2**64 - 1), "08"])
    else:
        value = chance.choice([default or "/x", "/a/b", "/a:/b", "name"])
    return chance.choice([f"{name} = {value}"] * 8 + [f"{name}={value}", f"# {name} = {value}", ""])


def _changed(chance: random.Random, text: str) -> str:
    at, some = chance.randrange(len(text) + 1), chance.randint(1, 3)
    before, after, token = text[:at], text[at:], chance.choice(TOKENS)
    lines = text.split("\n")
    lines.insert(chance.randrange(len(lines)), chance.choice(lines))
    ways = {
        "put in": before + token + after,
        "taken out": before + after[some:],
        "in place": before + token + after[some:],
        "again": "\n".join(lines),
        "line ends": text.replace("\n", chance.choice(["\r\n", "\r", "\n\r"])),
        "cut off": before,
        "other case": before + after[:some].swapcase() + after[some:],
    }
    return ways[chance.choices(list(ways), weights=[10, 2, 2, 2, 1, 1, 2])[0]]


# --- our readers against it ---------------------------------------------------------------------------------


def disagreement(content: bytes, release: str) -> str:
    """Return where our readers take *content* otherwise than Apptainer, or pass over what it ignores.

    Empty if they don't: a file that is taken means the same to both and has no line without effect, and of a
    file that is refused every such line is named, and what is in force nevertheless is told as it is.
    """
    text, fatal, truth = text_of(content), "", {}
    try:
        truth = read(content, release)
    except FatalError as error:
        fatal = str(error)
    # Ours take it for none, as it can't be set.
    truth.pop("suidbinary path", None)
    settings, problems = apptainer_conf_lint.read(text, release)
    told = {problem.subject for problem in problems}
    silent = [number for number in ignored(content, release) if f"line {number}" not in told]
    try:
        taken = apptainer_conf.parse(text, release) == truth
    except apptainer_conf.ConfigError:
        taken = None
    # An empty item of a list is a problem; what it does in a list, no rule has to know.
    full = {k: tuple(filter(None, v)) if isinstance(v, tuple) else v for k, v in truth.items()}
    wrong = {
        "one of our readers refuses it, the other doesn't": (taken is None) is not bool(problems),
        f"'{fatal}' stops Apptainer, and nothing is said": fatal and not problems,
        f"'{fatal}' stops Apptainer, and is a value to us": fatal in settings,
        f"nothing is said of lines {silent}, which have no effect": silent,
        "taken otherwise": taken is False,
        f"in force otherwise: {_difference(settings, full)}": not fatal and settings != full,
    }
    return "; ".join(words for words, applies in wrong.items() if applies)


def _difference(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = {*ours, *theirs}
    return {name: (ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name)}
