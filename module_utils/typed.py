# SPDX-License-Identifier: Apache-2.0
"""Data that people write, read by a schema: each key has a reader, and what no key is, is an error.

A reader takes a value as YAML or JSON gave it and returns what the program works with, or raises ValueError
with a sentence that goes on after the key, such as "must be true or false, not 3".
"""

from __future__ import annotations

import difflib
from typing import Any, Callable, Collection, Dict, List, Mapping, NamedTuple, Optional, Pattern, Tuple

Reader = Callable[[object], Any]


class Field(NamedTuple):
    """A key of a mapping: how its value is *read*, and whether there must be one."""

    read: Reader
    required: bool = False


def mapping(value: object, fields: Mapping[str, Field], where: str, problems: List[str]) -> Dict[str, Any]:
    """Return the good values of a mapping by key; a key with null is as one that is not there.

    *where* names the mapping, empty for the file as such. What is wrong is appended to *problems*, one
    sentence each that begins with the key's place.
    """
    if not isinstance(value, Mapping):
        problems.append(f"{where or 'the file'}: {_no_mapping(value, fields)}")
        return {}
    result: Dict[str, Any] = {}
    prefix = f"{where}." if where else ""
    for key, one in value.items():
        if not isinstance(key, str) or key not in fields:
            problems.append(f"{prefix}{key}: there is no such key{suggestion(str(key), fields)}")
        elif one is not None:
            try:
                result[key] = fields[key].read(one)
            except ValueError as error:
                problems.extend(f"{prefix}{key}{_joined(line)}" for line in str(error).split("\n"))
    missing = [key for key, field in fields.items() if field.required and value.get(key) is None]
    problems.extend(f"{prefix}{key}: is missing" for key in missing)
    return result


def nested(fields: Mapping[str, Field], build: Callable[..., Any] = dict) -> Reader:
    """Return the reader of a mapping in a mapping; *build* is called with its good values as keywords."""

    def read(value: object) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError(_no_mapping(value, fields))
        problems: List[str] = []
        values = mapping(value, fields, "", problems)
        if problems:
            raise ValueError("\n".join(f".{problem}" for problem in problems))
        return build(**values)

    return read


def items(reader: Reader, least: int = 0) -> Reader:
    """Return the reader of a list of at least *least* values, each once; it gives a tuple."""

    def read(value: object) -> Tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"must be a list, not {shown(value)}")
        if len(value) < least:
            raise ValueError("must not be empty")
        problems: List[str] = []
        result: List[Any] = []
        for number, one in enumerate(value, 1):
            try:
                read_one = reader(one)
                if read_one in result:
                    raise ValueError("is there twice")
                result.append(read_one)
            except ValueError as error:
                problems.extend(f"[{number}]{_joined(line)}" for line in str(error).split("\n"))
        if problems:
            raise ValueError("\n".join(problems))
        return tuple(result)

    return read


def boolean(value: object) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {shown(value)}")
    return value


def integer(least: int, most: Optional[int] = None) -> Reader:
    """Return the reader of a whole number from *least* to *most*."""

    def read(value: object) -> int:
        good = isinstance(value, int) and not isinstance(value, bool)
        if not good or value < least or (most is not None and value > most):  # type: ignore[operator]
            span = f"from {least} to {most}" if most is not None else f"of at least {least}"
            raise ValueError(f"must be a whole number {span}, not {shown(value)}")
        return value  # type: ignore[return-value]

    return read


def choice(*values: str) -> Reader:
    """Return the reader of one of *values*."""

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in values:
            close = suggestion(str(value), values)
            raise ValueError(f"must be one of {', '.join(values)}, not {shown(value)}{close}")
        return value

    return read


def text(pattern: Optional[Pattern[str]] = None, what: str = "text") -> Reader:
    """Return the reader of *what*, one line that is not empty and matches the whole *pattern*, if any."""

    def read(value: object) -> str:
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise ValueError(f"must be {what}, not {shown(value)}")
        if pattern is not None and not pattern.fullmatch(value):
            raise ValueError(f"must be {what}, not {shown(value)}")
        return value

    return read


def texts(value: object) -> Tuple[str, ...]:
    """Read a list of lines, in which one may stand twice."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a list, not {shown(value)}")
    read = text()
    return tuple(read(one) for one in value)


def suggestion(word: str, known: Collection[str]) -> str:
    """Return ``; did you mean …?`` for the known word that is nearest to *word*, empty if none is near."""
    plain = word.strip().lower().replace("-", "_")
    close = [plain] if plain in known else difflib.get_close_matches(plain, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def shown(value: object) -> str:
    """Return a value as a message shows it, on one short line."""
    words = repr(value)
    return words if len(words) <= 80 else f"{words[:77]}..."  # noqa: PLR2004 - a line


def printable(text: str) -> str:
    """Return a text of unknown origin on one line: whatever could move a cursor or a column is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _no_mapping(value: object, fields: Mapping[str, Field]) -> str:
    some = ", ".join(list(fields)[:6]) + (", ..." if len(fields) > 6 else "")  # noqa: PLR2004 - a line
    return f"must be a mapping of {some}, not {shown(value)}"


def _joined(line: str) -> str:
    return line if line.startswith((".", "[")) else f": {line}"
