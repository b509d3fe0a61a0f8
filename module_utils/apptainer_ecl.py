# SPDX-License-Identifier: Apache-2.0
"""ecl.toml, the execution control list: which SIF images may run, by the keys that signed them.

Apptainer goes on *without* the list where it can't read the file. So the reader here knows exactly the part
of TOML that the list needs, and refuses everything else: what it takes, every TOML reader takes the same way.
It exists because Python has one only since 3.11, and nodes have older ones.

Sources: TOML 1.0.0; ``pkg/syecl`` of https://github.com/apptainer/apptainer.
"""

from __future__ import annotations

import difflib
import json
import posixpath
import re
from typing import Dict, List, Mapping, NamedTuple, Tuple, Union

from . import openpgp, typed
from .typed import Field

#: What Apptainer says of an image that the list doesn't let run; not of a list that it can't use.
REFUSED = "while checking container image with ECL"
MODES = ("whitelist", "whitestrict", "blacklist")


class EclError(ValueError):
    """A text that is no list; the message names the line, what is wrong with it, and the mend."""


class ExecGroup(NamedTuple):
    """Which keys images of one directory need.

    dirpath: the directory of the images itself, not those below it; empty for all that no other group has.
    keyfp: fingerprints of primary keys, as written. mode: all (``whitestrict``) or one (``whitelist``) of
    them has to have signed, or none (``blacklist``).
    """

    tagname: str = ""
    mode: str = ""
    dirpath: str = ""
    keyfp: Tuple[str, ...] = ()


class Ecl(NamedTuple):
    """The list. legacyinsecure: whether signatures of before 2020 count, which leave most unsigned."""

    activated: bool = False
    legacyinsecure: bool = False
    execgroups: Tuple[ExecGroup, ...] = ()


Scalar = Union[bool, str, Tuple[str, ...]]

_TOP = {"activated": bool, "legacyinsecure": bool}
_GROUP = {"tagname": str, "mode": str, "dirpath": str, "keyfp": tuple}
_KINDS = {bool: "true or false", str: "a string in quotes on one line", tuple: "a list of strings"}
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}

# Control characters but the tab may stand nowhere (TOML, "Comment" and "String").
_TEXT = r"[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]"
_BLANK = re.compile(r"[ \t]*")
_COMMENT = re.compile(f"#{_TEXT}*")
_KEY = re.compile(r"[A-Za-z0-9_-]+")
_HEADER = re.compile(r"\[\[[ \t]*execgroup[ \t]*\]\]")
_LITERAL = re.compile(r"'((?:(?!')" + _TEXT + r")*)'")
_BASIC = re.compile(r'"((?:\\["\\bfnrt]|\\u[0-9A-Fa-f]{4}|\\U[0-9A-Fa-f]{8}|(?!["\\])' + _TEXT + r')*)"')
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))")
_LARGEST_CHARACTER = 0x10FFFF


def read(content: Union[bytes, str]) -> Ecl:
    """Return the list in *content*. Raises EclError."""
    if isinstance(content, bytes):
        try:
            content = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise EclError(f"is no UTF-8 text at byte {error.start}") from error
    return _Reader(content.replace("\r\n", "\n")).document()


def problems(ecl: Ecl) -> List[str]:
    """Return why Apptainer refuses to run any SIF with this list, one sentence each; empty if it does not."""
    found = []
    seen: Dict[str, int] = {}
    for number, group in enumerate(ecl.execgroups, 1):
        name = f"execgroup {number}" + (f" ({group.tagname})" if group.tagname else "")
        if group.mode not in MODES:
            found.append(f"{name}: mode must be one of {', '.join(MODES)}, not {group.mode!r}")
        path = group.dirpath
        if path and (not path.startswith("/") or posixpath.normpath(path) != path or path.startswith("//")):
            found.append(
                f"{name}: dirpath must be an absolute path without '.', '..', and doubled or last slashes,"
                f" not {path!r}"
            )
        if path in seen:
            found.append(
                f"{name}: dirpath {path!r} is that of execgroup {seen[path]}; give each directory one group"
            )
        seen.setdefault(path, number)
        found += [
            f"{name}: keyfp must be fingerprints of 40 hexadecimal digits, not {fingerprint!r}"
            for fingerprint in group.keyfp
            if not re.fullmatch("[0-9A-Fa-f]{40}", fingerprint)
        ]
    return found


def wanted(description: object) -> Ecl:
    """Return the list that *description* asks for, the option ``ecl`` of the module `apptainer_config`.

    It has ``enabled``, ``legacy_insecure`` and ``execgroups``; each of these ``name``, ``mode``, ``dirpath``
    and ``fingerprints``. Raises ValueError with a line for each problem, also if Apptainer would refuse it.
    """
    ecl: Ecl = _WANTED(description)
    found = problems(ecl)
    if ecl.activated and not ecl.execgroups:
        found.append("is enabled without execgroups, which refuses every SIF image; name some, or disable it")
    if found:
        raise ValueError("\n".join(found))
    return ecl


def render(ecl: Ecl) -> str:
    """Return ecl.toml for *ecl*: `read` of it is the same list."""
    parts = [
        _HEAD,
        f"activated = {_boolean(ecl.activated)}\nlegacyinsecure = {_boolean(ecl.legacyinsecure)}\n",
    ]
    for group in ecl.execgroups:
        # JSON's strings are those of TOML, but for DEL.
        keys = "".join(f"  {_quoted(key)},\n" for key in group.keyfp)
        parts.append(
            f"\n[[execgroup]]\ntagname = {_quoted(group.tagname)}\nmode = {_quoted(group.mode)}\n"
            f"dirpath = {_quoted(group.dirpath)}\nkeyfp = [\n{keys}]\n"
        )
    return "".join(parts)


_HEAD = """\
# Ansible writes this file (apptainer-fleet): what is changed here is lost.
#
# Which SIF images run, by directory and signers. Apptainer goes on without the list if it can't read this
# file. It binds users in setuid mode with user namespaces off alone; for other formats see apptainer.conf.

"""


def _place(value: object) -> str:
    if value == "":
        return ""
    return str(typed.text(what="a directory, or empty for all that no other group has")(value))


def _wanted(
    enabled: bool = True, legacy_insecure: bool = False, execgroups: Tuple[ExecGroup, ...] = ()
) -> Ecl:
    return Ecl(enabled, legacy_insecure, execgroups)


def _wanted_group(
    name: str, dirpath: str, fingerprints: Tuple[str, ...], mode: str = "whitestrict"
) -> ExecGroup:
    return ExecGroup(name, mode, dirpath, fingerprints)


_WANTED_GROUP: Dict[str, Field] = {
    "name": Field(typed.text(what="what its images are, in words"), required=True),
    "mode": Field(typed.choice(*MODES)),
    "dirpath": Field(_place, required=True),
    # Without one, whitestrict lets images pass that anybody has signed.
    "fingerprints": Field(typed.items(openpgp.check_fingerprint, least=1), required=True),
}
_WANTED = typed.nested(
    {
        "enabled": Field(typed.boolean),
        "legacy_insecure": Field(typed.boolean),
        "execgroups": Field(typed.items(typed.nested(_WANTED_GROUP, _wanted_group))),
    },
    _wanted,
)


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


class _Reader:
    """The text, and how far it has been read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def document(self) -> Ecl:
        """Return all of it."""
        top: Dict[str, Scalar] = {}
        groups: List[Dict[str, Scalar]] = []
        while self._at < len(self._text):
            self._take(_BLANK)
            if self._peek() == "[":
                if not self._take(_HEADER):
                    raise self._error("only [[execgroup]] is known as a table; write it so")
                groups.append({})
            elif self._peek() not in ("", "\n", "#"):
                self._pair(groups[-1] if groups else top, _GROUP if groups else _TOP, bool(groups))
            self._end_of_line()
        return _ecl(top, groups)

    def _pair(self, table: Dict[str, Scalar], known: Mapping[str, type], in_group: bool) -> None:
        key = self._take(_KEY)
        if key not in known:
            raise self._error(_unknown(key, known, in_group))
        if key in table:
            raise self._error(f"{key} stands here again; leave one")
        self._take(_BLANK)
        self._expect("=", f"after {key}")
        self._take(_BLANK)
        start = self._at
        value = self._value()
        if not isinstance(value, known[key]):
            self._at = start
            raise self._error(f"{key} must be {_KINDS[known[key]]}")
        table[key] = value

    def _value(self) -> Scalar:
        if self._peek() == "[":
            return self._list()
        if self._peek() in ("'", '"'):
            return self._string()
        word = self._take(_KEY)
        if word in ("true", "false"):
            return word == "true"
        raise self._error("this is no value that the list has: true, false, a string or a list of strings")

    def _list(self) -> Tuple[str, ...]:
        self._at += 1
        items = []
        self._space()
        while self._peek() != "]":
            items.append(self._string())
            self._space()
            if self._peek() != "]":
                self._expect(",", "between strings")
                self._space()
        self._at += 1
        return tuple(items)

    def _string(self) -> str:
        if self._text.startswith(("'''", '"""'), self._at):
            raise self._error("strings over several lines are not known; write it on one")
        match = _LITERAL.match(self._text, self._at)
        if match:
            self._at = match.end()
            return match.group(1)
        match = _BASIC.match(self._text, self._at)
        if not match:
            raise self._error(
                "a string in quotes must stand here and end on its line, without broken escapes"
            )
        text = _ESCAPE.sub(self._escape, match.group(1))
        self._at = match.end()
        return text

    def _escape(self, match: "re.Match[str]") -> str:
        if match.group(3):
            return _ESCAPES[match.group(3)]
        character = int(match.group(1) or match.group(2), 16)
        if character > _LARGEST_CHARACTER or 0xD800 <= character <= 0xDFFF:  # noqa: PLR2004 - surrogates
            raise self._error(f"{match.group()} is no character")
        return chr(character)

    def _space(self) -> None:
        """Pass blanks, comments and ends of lines, as they may stand in lists."""
        while True:
            self._take(_BLANK)
            self._take(_COMMENT)
            if self._peek() != "\n":
                return
            self._at += 1

    def _end_of_line(self) -> None:
        self._take(_BLANK)
        self._take(_COMMENT)
        if self._at < len(self._text):
            self._expect("\n", "here")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, pattern: "re.Pattern[str]") -> str:
        match = pattern.match(self._text, self._at)
        if not match:
            return ""
        self._at = match.end()
        return match.group()

    def _expect(self, character: str, where: str) -> None:
        if self._peek() != character:
            wanted = "the end of the line" if character == "\n" else repr(character)
            raise self._error(f"{wanted} must stand {where}, not {self._peek() or 'the end of the file'!r}")
        self._at += 1

    def _error(self, what: str) -> EclError:
        line = self._text.count("\n", 0, self._at) + 1
        return EclError(f"line {line}: {what}")


def _ecl(top: Mapping[str, Scalar], groups: List[Dict[str, Scalar]]) -> Ecl:
    # The types are those of `_TOP` and `_GROUP`: `_pair` has looked at them.
    return Ecl(execgroups=tuple(ExecGroup(**group) for group in groups), **top)  # type: ignore[arg-type]


def _unknown(key: str, known: Mapping[str, type], in_group: bool) -> str:
    if not key:
        return "a key must stand here, as in: activated = true"
    if in_group and key in _TOP:
        return f"{key} is for the whole list; put it above the first [[execgroup]]"
    if not in_group and key in _GROUP:
        return f"{key} is for a group; put it below [[execgroup]]"
    close = difflib.get_close_matches(key.lower(), known, n=1)
    return f"{key} is not known" + (f"; did you mean {close[0]}?" if close else f": {', '.join(known)} are")
