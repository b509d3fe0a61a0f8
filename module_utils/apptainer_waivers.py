# SPDX-License-Identifier: Apache-2.0
"""Waivers: findings that a site lives with, each for a reason and until a day."""

from __future__ import annotations

import datetime
import difflib
import re
from typing import Collection, Dict, List, NamedTuple, Optional, Sequence, Tuple

_KEYS = ("rule", "reason", "expires")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class Waiver(NamedTuple):
    """*rule* (``L12``, ``CVE-2025-65105``) is waived for *reason*, the day *expires* included."""

    rule: str
    reason: str
    expires: datetime.date

    def __str__(self) -> str:
        """Return it as a report shows it."""
        return f"waived until {self.expires.isoformat()}: {self.reason}"


def read(
    waivers: object, known: Collection[str], today: datetime.date
) -> Tuple[Dict[str, Waiver], List[str]]:
    """Read the value of ``apptainer_waivers``: a list of mappings with *rule*, *reason* and *expires*.

    known: what may be waived. Returns rule → waiver, and one sentence for each problem; a waiver with a
    problem does not count.
    """
    good: Dict[str, Waiver] = {}
    problems: List[str] = []
    if not isinstance(waivers, Sequence) or isinstance(waivers, (str, bytes)):
        return {}, [f"must be a list of waivers, not {waivers!r}"]
    for number, waiver in enumerate(waivers, 1):
        try:
            parsed = _waiver(waiver, known, today)
            if parsed.rule in good:
                raise ValueError("is waived twice; leave one")
            good[parsed.rule] = parsed
        except ValueError as error:
            rule = waiver.get("rule") if isinstance(waiver, dict) else None
            problems.append(f"waiver {number}{f' ({rule})' if rule else ''}: {error}")
    return good, problems


def _waiver(waiver: object, known: Collection[str], today: datetime.date) -> Waiver:
    if not isinstance(waiver, dict):
        raise ValueError(f"must be a mapping of {', '.join(_KEYS)}, not {waiver!r}")
    unknown = sorted(str(key) for key in waiver if key not in _KEYS)
    if unknown:
        raise ValueError(f"has {', '.join(unknown)}, but only {', '.join(_KEYS)} are known")
    missing = [key for key in _KEYS if waiver.get(key) is None or not str(waiver[key]).strip()]
    if missing:
        raise ValueError(f"has no {' and no '.join(missing)}; every waiver needs {', '.join(_KEYS)}")
    rule, expires = str(waiver["rule"]), _day(waiver["expires"])
    if rule not in known:
        close = _closest(rule, known)
        raise ValueError(f"there is no rule {rule}" + (f"; did you mean {close}?" if close else ""))
    if expires < today:
        raise ValueError(
            f"expired on {expires.isoformat()}; mend what it was for, or decide again and give a new day"
        )
    return Waiver(rule, " ".join(str(waiver["reason"]).split()), expires)


def _day(value: object) -> datetime.date:
    # YAML makes a date of an unquoted day.
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value
    if isinstance(value, str) and _DAY.fullmatch(value):
        try:
            return datetime.datetime.strptime(value, "%Y-%m-%d").date()
        except ValueError:
            pass
    raise ValueError(f"expires must be a day like 2027-01-31, not {value}")


def _closest(rule: str, known: Collection[str]) -> Optional[str]:
    spoken = rule.strip().upper().replace("_", "-")
    number = re.fullmatch(r"L?0*([0-9]{1,2})", spoken)
    wanted = f"L{int(number.group(1)):02d}" if number else spoken
    names = {name.upper().replace("_", "-"): name for name in known}
    if wanted in names:
        return names[wanted]
    close = difflib.get_close_matches(wanted, sorted(names), n=1, cutoff=0.6)
    return names[close[0]] if close else None
