# SPDX-License-Identifier: Apache-2.0
"""Ranges of subordinate user and group IDs, /etc/subuid and /etc/subgid.

Sources: subuid(5) and subgid(5); Apptainer's ``config fakeroot``, which disables a line with ``!`` before it
and needs a range of 65536 in one piece.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

# The last but one 32-bit number; the last means "no ID" to the kernel.
LAST_ID = 2**32 - 2

MAX_USERS = 1_000_000

_LINE = re.compile(r"(!?)([^:\s#!][^:\s]*):([0-9]{1,12}):([0-9]{1,12})\s*")
_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@\\-]{0,63}\$?")
_RANGE = re.compile(r"([0-9]{1,12})-([0-9]{1,12})")


class SubordinateIDError(ValueError):
    """What can't be had; the message names user, file and line, and the mend."""


@dataclass(frozen=True)
class Range:
    """A line that gives *owner* (name or number, as written) *count* IDs from *start* on."""

    owner: str
    start: int
    count: int
    disabled: bool = False
    line: int = 0

    @property
    def end(self) -> int:
        """The first ID after it."""
        return self.start + self.count


@dataclass(frozen=True)
class File:
    """A file as it is.

    *path* is for messages; *reserved* are IDs of real users or groups, which no new range may hold.
    """

    path: str
    text: str
    reserved: Tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The texts of both files, and user → start for ranges that were *assigned* to them now."""

    texts: Tuple[str, str]
    assigned: Mapping[str, int]


def expand(users: Iterable[object]) -> List[str]:
    """Return names and numbers of *users*, in order, each once: ``alice``, ``1000``, ``10000-14999``.

    Raises SubordinateIDError for what is neither.
    """
    result: Dict[str, None] = {}
    for entry in users:
        text = str(entry)
        numbers = _RANGE.fullmatch(text)
        if numbers:
            first, last = int(numbers.group(1)), int(numbers.group(2))
            if not 0 < first <= last <= LAST_ID:
                raise SubordinateIDError(
                    f"{text} is no range of user IDs: the lower comes first, and 0 is root"
                )
            if last - first >= MAX_USERS:
                raise SubordinateIDError(f"{text} has {last - first + 1} users, and {MAX_USERS} is the most")
            result.update((str(number), None) for number in range(first, last + 1))
        elif re.fullmatch("[0-9]{1,12}", text):
            if not 0 < int(text) <= LAST_ID:
                raise SubordinateIDError(f"{text} is no ID of a user that may have subordinate IDs")
            result[str(int(text))] = None
        elif _NAME.fullmatch(text) and not text.isdecimal() and text != "root":
            result[text] = None
        else:
            raise SubordinateIDError(
                f"{text!r} is no name of a user, no user ID, and no range such as 10000-14999"
            )
    if len(result) > MAX_USERS:
        raise SubordinateIDError(f"there are {len(result)} users, and {MAX_USERS} is the most")
    return list(result)


def parse(text: str) -> List[Range]:
    """Return the ranges of a subuid(5) file; lines that are none (comments, for example) are left out."""
    ranges = []
    for number, line in enumerate(text.split("\n"), 1):
        match = _LINE.fullmatch(line)
        if match:
            ranges.append(
                Range(match.group(2), int(match.group(3)), int(match.group(4)), bool(match.group(1)), number)
            )
    return ranges


def other_names(text: str, users: Sequence[str]) -> List[str]:
    """Return the owners in a file that could be one of *users* under another name.

    A user may stand there by name or by number, so names matter where there are numbers, and vice versa.
    """
    known = set(users)
    kinds = {user.isdigit() for user in users}
    owners = {entry.owner for entry in parse(text)} - known
    return sorted(owner for owner in owners if (not owner.isdigit()) in kinds)


def plan(
    users: Sequence[str],
    files: Tuple[File, File],
    *,
    start: int = 100_000,
    count: int = 65_536,
    replace: bool = False,
    aliases: Optional[Mapping[str, str]] = None,
) -> Plan:
    """Give each of *users* a range of *count* IDs in both *files* (subuid, subgid): return their new texts.

    A user keeps a range of at least *count*. Who has none gets the first free place of
    ``start + n * count``, the same in both files, in the order of *users*; the same files and list always
    give the same result. Other lines stay as they are, and where they are. *aliases* maps a name to the
    user's number, or the number to the name, for whoever may stand in a file under the other.

    With *replace*, the lines of *users* that are not exactly one range of *count* at or after *start* are
    made anew.
    Raises SubordinateIDError for a user whose range is smaller, is disabled, or overlaps that of another,
    unless *replace*; and if there is no room.
    """
    if not (0 < start <= LAST_ID and 0 < count <= LAST_ID):
        raise SubordinateIDError(f"start {start} and count {count} have to be above 0 and below {LAST_ID}")
    names = _Names(users, aliases or {})
    tables = (_Table(files[0], names), _Table(files[1], names))
    for table in tables:
        for user in users:
            table.judge(user, start, count, replace)
        table.settle()

    assigned: Dict[str, int] = {}
    # A user who has a range in one file only gets the same in the other, if it is free there.
    for user in users:
        kept = [table.kept.get(user) for table in tables]
        for table, other in ((tables[0], kept[1]), (tables[1], kept[0])):
            if user in table.kept or other is None or other.count != count:
                continue
            if table.free(other.start, other.end):
                table.assign(user, other.start, count)
                assigned[user] = other.start
    place = start
    for user in users:
        lacking = [table for table in tables if user not in table.kept]
        if not lacking:
            continue
        place = _next_place(tables, place, start, count)
        for table in lacking:
            table.assign(user, place, count)
        assigned[user] = place
        place += count
    return Plan((tables[0].text(), tables[1].text()), assigned)


def _next_place(tables: Sequence["_Table"], place: int, start: int, count: int) -> int:
    """Return the first place from *place* on that is free in all *tables*."""
    while True:
        if place + count - 1 > LAST_ID:
            raise SubordinateIDError(
                f"there is no room for {count} IDs more between start ({start}) and {LAST_ID}: "
                "lower start, or give fewer users"
            )
        ends = [table.blocked_until(place, place + count) for table in tables]
        blocked = max(ends)
        if blocked <= place:
            return place
        place = start + -(-(blocked - start) // count) * count


class _Names:
    """Who is who: users as they were asked for, under either of their names."""

    def __init__(self, users: Sequence[str], aliases: Mapping[str, str]) -> None:
        self._canonical = {user: user for user in users}
        for owner, alias in aliases.items():
            if alias in self._canonical:
                self._canonical.setdefault(owner, alias)

    def of(self, owner: str) -> str:
        return self._canonical.get(owner, owner)


class _Table:
    """One file: its lines, what is taken, and what each user keeps."""

    def __init__(self, file: File, names: _Names) -> None:
        self.path = file.path
        self.file = file
        self.freed: Dict[str, List[Range]] = {}
        self.kept: Dict[str, Range] = {}
        self.ranges: Dict[str, List[Range]] = {}
        for entry in parse(file.text):
            self.ranges.setdefault(names.of(entry.owner), []).append(entry)
        # Sorted, with the greatest end so far, so that a look for an overlap needs no walk.
        everything = [(e.start, e.end, user, e) for user, own in self.ranges.items() for e in own if e.count]
        self.taken = sorted(everything, key=lambda item: item[:2])
        self.overlapping: Dict[Range, Range] = {}
        last: Optional[Tuple[int, int, str, Range]] = None
        for item in self.taken:
            if last is not None and item[0] < last[1]:
                self.overlapping.setdefault(item[3], last[3])
                self.overlapping.setdefault(last[3], item[3])
            if last is None or item[1] > last[1]:
                last = item
        self.reserved = sorted(set(file.reserved))
        self.added: List[Tuple[str, int, int]] = []
        self.starts: List[int] = []
        self.ends: List[int] = []

    def settle(self) -> None:
        """Merge what is taken, but for what was freed, into pieces that do not touch each other."""
        for begin, end, user, _ in self.taken:
            if user in self.freed:
                continue
            if self.ends and begin <= self.ends[-1]:
                self.ends[-1] = max(self.ends[-1], end)
            else:
                self.starts.append(begin)
                self.ends.append(end)

    def judge(self, user: str, start: int, count: int, replace: bool) -> None:
        """Keep the user's range, or free it with *replace*. Raises SubordinateIDError if neither may be."""
        own = self.ranges.get(user, [])
        if not own:
            return
        good = [entry for entry in own if entry.count >= count and not entry.disabled]
        fits = [entry for entry in good if entry not in self.overlapping]
        if replace:
            if len(own) == 1 and fits and fits[0].count == count and fits[0].start >= start:
                self.kept[user] = fits[0]
                return
            self.freed[user] = own
            return
        first = own[0]
        where = f"{self.path}, line {first.line}: {user}"
        mend = "change it by hand, or set existing to replace while nobody uses it"
        if fits:
            self.kept[user] = fits[0]
        elif good:
            other = self.overlapping[good[0]]
            raise SubordinateIDError(
                f"{self.path}, line {good[0].line}: the range of {user} overlaps that of {other.owner} "
                f"in line {other.line}, so each can reach the files of the other: {mend}"
            )
        elif first.disabled:
            raise SubordinateIDError(f"{where} is disabled there: enable it, or leave the user out")
        else:
            raise SubordinateIDError(f"{where} has {first.count} IDs and shall have {count}: {mend}")

    def blocked_until(self, begin: int, end: int) -> int:
        """Return the end of what is in the way between *begin* and *end*, or *begin* if it is free."""
        blocked = begin
        index = bisect.bisect_left(self.starts, end) - 1
        if index >= 0 and self.ends[index] > begin:
            blocked = self.ends[index]
        index = bisect.bisect_left(self.reserved, end) - 1
        if index >= 0 and self.reserved[index] >= begin:
            blocked = max(blocked, self.reserved[index] + 1)
        return blocked

    def free(self, begin: int, end: int) -> bool:
        """Whether nobody has an ID between *begin* and *end*, its end excluded."""
        return self.blocked_until(begin, end) == begin

    def assign(self, user: str, begin: int, count: int) -> None:
        """Note a new range, which is free, for the end of the file."""
        self.kept[user] = Range(user, begin, count)
        self.added.append((user, begin, count))
        index = bisect.bisect_left(self.starts, begin)
        self.starts.insert(index, begin)
        self.ends.insert(index, begin + count)

    def text(self) -> str:
        """Return the file: lines that stay, in their order, then the new ones."""
        gone = {entry.line for own in self.freed.values() for entry in own}
        lines = self.file.text.split("\n")
        text = "\n".join(line for number, line in enumerate(lines, 1) if number not in gone)
        if self.added and text and not text.endswith("\n"):
            text += "\n"
        return text + "".join(f"{user}:{begin}:{count}\n" for user, begin, count in self.added)
