"""Maintenance windows: when a rollout may drain nodes and begin to change them."""

from __future__ import annotations

import datetime
import re

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEKLY = re.compile(r"(?:([A-Za-z,-]+) +)?([0-2]?[0-9]):([0-5][0-9])-([0-2]?[0-9]):([0-5][0-9])")
_DAY = datetime.timedelta(days=1)


def _days(text: str | None) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    chosen: set[int] = set()
    for part in text.lower().split(","):
        first, _, last = part.partition("-")
        if first not in _DAYS or (last or first) not in _DAYS:
            raise ValueError(f"{part!r} is no day of the week: {', '.join(_DAYS)}, or mon-fri")
        begin, end = _DAYS.index(first), _DAYS.index(last or first)
        chosen.update((begin + n) % 7 for n in range((end - begin) % 7 + 1))
    return frozenset(chosen)


def _minutes(hour: str, minute: str) -> int:
    minutes = int(hour) * 60 + int(minute)
    if minutes > 24 * 60:
        raise ValueError(f"{hour}:{minute} is no time of day")
    return minutes


class Window:
    """``22:00-06:00`` every day, ``sat,sun 08:00-20:00``, ``mon-fri 22:00-06:00``, or once, from a time to
    another: ``2026-11-24T22:00/2026-11-25T06:00``. Times are those of the controller; a night belongs to the
    day it begins on.
    """

    def __init__(self, text: str) -> None:
        """Read one. Raises ValueError."""
        self._once: tuple[datetime.datetime, datetime.datetime] | None = None
        if "/" in text:
            begin, _, end = text.partition("/")
            try:
                self._once = (datetime.datetime.fromisoformat(begin), datetime.datetime.fromisoformat(end))
                ordered = self._once[0] < self._once[1]
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{text!r} is no window like 2026-11-24T22:00/2026-11-25T06:00: {error}"
                ) from error
            if not ordered or self._once[0].tzinfo or self._once[1].tzinfo:
                raise ValueError(f"{text!r}: it has to end after it begins, in the time of the controller")
            return
        match = _WEEKLY.fullmatch(text.strip())
        if not match:
            raise ValueError(f"{text!r} is no window like 22:00-06:00, or sat,sun 08:00-20:00")
        self._days = _days(match[1])
        self._begin, self._end = _minutes(match[2], match[3]), _minutes(match[4], match[5])
        if self._begin == self._end:
            raise ValueError(f"{text!r} is no time at all")

    def contains(self, now: datetime.datetime) -> bool:
        """Whether it is open at *now*, a local time without zone."""
        if self._once:
            return self._once[0] <= now < self._once[1]
        minutes = now.hour * 60 + now.minute
        if self._begin < self._end:
            return now.weekday() in self._days and self._begin <= minutes < self._end
        return (now.weekday() in self._days and minutes >= self._begin) or (
            (now - _DAY).weekday() in self._days and minutes < self._end
        )

    def is_over(self, now: datetime.datetime) -> bool:
        """Whether it opens never again."""
        return self._once is not None and self._once[1] <= now


def is_open(windows: tuple[str, ...], now: datetime.datetime) -> bool:
    """Whether any of the windows is open; without windows it always is."""
    return not windows or any(Window(text).contains(now) for text in windows)
