# SPDX-License-Identifier: Apache-2.0
"""Nodes as Slurm has them: read, drained, resumed and rebooted by hostlist, and never against somebody else.

What was seen on Slurm 22.05, 24.11 and 26.05, and decides how this is done:

* ``scontrol update`` of a list with one unknown name does a part of the list: names are checked before.
* A drain on a drained node replaces its Reason: nodes that somebody drained are left alone.
* The Reason stays after a resume: it means something only beside the flag DRAIN or the state DOWN.
* A reboot appends to the Reason, as SlurmUser; ``nextstate=RESUME`` ends a drain whoever set it.
* ``scontrol --json`` came with 23.02; before, ``sinfo --json`` has the same data, of all nodes.

Slurm has no "resume if the Reason is": nodes are read at that moment, and what happens in the milliseconds
between is not seen.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, FrozenSet, Iterable, List, Mapping, Sequence, Tuple

#: Runs a program: argv → exit code, standard output, standard error. 127 where there is no such program.
Run = Callable[[List[str]], Tuple[int, str, str]]

#: The longest Reason; Slurm takes more, and every listing of nodes gets it.
REASON_LENGTH = 200

_BUSY = {"ALLOCATED", "MIXED", "ERROR"}
_UNAVAILABLE = {
    *("DRAIN", "FAIL", "NOT_RESPONDING", "REBOOT_ISSUED", "INVALID_REG"),
    *("POWERED_DOWN", "POWERING_DOWN", "POWERING_UP"),
}
# What Slurm itself adds to a Reason.
_BY_SLURM = re.compile(r"(?: : reboot (?:issued|requested|complete|timed out))+")
_SEALED = re.compile(r"(?P<tag>[^:]+): (?P<text>.+) \((?P<seal>[0-9a-f]{6})\)")
_NUMBERED = re.compile(r"(.*?)([0-9]+)")
# Seconds by which the boot time that a node reports differs from one registration to the next.
_BOOT_TIME_ROUNDING = 5


class SlurmError(Exception):
    """Slurm can't be asked, or refuses; the message says what was tried and what it said."""


class UnknownNodesError(SlurmError):
    """Slurm has no nodes of these *names*; nothing was touched."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"Slurm has no node {fold(names)}: mend the name, or slurm.conf")
        self.names = tuple(names)


@dataclass(frozen=True)
class Node:
    """A node as slurmctld has it; times are seconds since 1970, 0 where it does not know.

    *base* is its state, such as IDLE, *flags* what stands behind it, such as DRAIN. *user* is who has set the
    *reason*, which stays when it does not apply any more.
    """

    name: str
    base: str
    flags: FrozenSet[str] = frozenset()
    reason: str = ""
    user: str = ""
    changed_at: int = 0
    boot_time: int = 0
    slurmd_start_time: int = 0
    version: str = ""
    partitions: Tuple[str, ...] = ()
    features: Tuple[str, ...] = ()
    gres: Tuple[str, ...] = ()
    address: str = ""

    @property
    def state(self) -> str:
        """The state as scontrol writes it, such as ``IDLE+DRAIN``."""
        return "+".join((self.base, *sorted(self.flags)))

    @property
    def drain(self) -> bool:
        """Whether it takes no new jobs: it is draining or drained."""
        return "DRAIN" in self.flags

    @property
    def busy(self) -> bool:
        """Whether it has jobs, or cleans up behind one."""
        return self.base in _BUSY or "COMPLETING" in self.flags

    @property
    def drained(self) -> bool:
        """Whether it takes no new jobs and has none."""
        return self.drain and not self.busy

    @property
    def responding(self) -> bool:
        """Whether its slurmd answers."""
        return "NOT_RESPONDING" not in self.flags and self.base != "UNKNOWN"

    @property
    def available(self) -> bool:
        """Whether it takes jobs, as far as its own state goes."""
        return self.base in {"IDLE", "ALLOCATED", "MIXED"} and not self.flags & _UNAVAILABLE

    @property
    def down_by_hand(self) -> bool:
        """Whether somebody has set it down; Slurm itself does it, too, as its own user."""
        return self.base == "DOWN" and bool(self.reason) and self.user not in ("", "slurm")

    @property
    def up(self) -> bool:
        """Whether it answers and would take jobs after a resume."""
        able = (
            self.responding and self.base != "FUTURE" and not self.flags & (_UNAVAILABLE - {"DRAIN", "FAIL"})
        )
        return able and (self.base != "DOWN" or self.drain)

    def drained_by(self, reason: str, user: str) -> bool:
        """Whether it is draining or drained for exactly this *reason*, set by *user*.

        What Slurm adds for a reboot does not matter, and who has set the Reason then.
        """
        if not self.drain or not self.reason.startswith(reason):
            return False
        added = self.reason[len(reason) :]
        return self.user == user if not added else bool(_BY_SLURM.fullmatch(added))

    def rebooted_since(self, before: Node) -> bool:
        """Whether it has booted after it was as *before*, and answers."""
        return self.responding and self.boot_time > before.boot_time + _BOOT_TIME_ROUNDING


@dataclass(frozen=True)
class Outcome:
    """What became of a request: nodes that were *changed*, that were so already (*kept*), and *foreign* ones.

    The last are drained or down for another reason, which they still have; they were left alone.
    """

    changed: Tuple[str, ...]
    kept: Tuple[str, ...]
    foreign: Mapping[str, Node]


class SlurmNodes:
    """The nodes of a cluster, through *run*, which is *user* to Slurm."""

    def __init__(self, run: Run, user: str = "root") -> None:
        self._run = run
        self.user = user

    def names(self, hostlist: str) -> List[str]:
        """Return the names in a *hostlist*, as Slurm understands it. Raises SlurmError."""
        argv = ["scontrol", "show", "hostnames", hostlist]
        out, err = self._do(argv)
        names = list(dict.fromkeys(out.split()))
        # It says what is wrong and succeeds.
        if err.strip() or not names:
            raise SlurmError(f"{hostlist!r} is no hostlist: {err.strip() or 'it names no node'}")
        return names

    def read(self, nodes: Iterable[str]) -> Dict[str, Node]:
        """Return nodes by their names, in the order of *nodes*. Raises UnknownNodesError and SlurmError."""
        wanted = list(dict.fromkeys(nodes))
        if not wanted:
            return {}
        known = self._read([fold(wanted)])
        missing = [name for name in wanted if name not in known]
        if missing:
            raise UnknownNodesError(missing)
        return {name: known[name] for name in wanted}

    def read_all(self) -> Dict[str, Node]:
        """Return all nodes that Slurm has, by their names. Raises SlurmError."""
        return self._read([])

    def _read(self, hostlist: Sequence[str]) -> Dict[str, Node]:
        argv = ["scontrol", "show", "node", *hostlist, "--json"]
        code, out, err = self._run(argv)
        if code and "unrecognized option" in err:
            argv = ["sinfo", "--json"]
            code, out, err = self._run(argv)
        if code:
            raise SlurmError(_complaint(argv, code, out, err))
        return parse(out)

    def drain(
        self, nodes: Iterable[str], reason: str, *, check: bool = False, also_down: bool = False
    ) -> Outcome:
        """Let nodes take no new jobs, for *reason*. With *check*, say only what would be done.

        Nodes that are drained or down for another reason are left alone, but with *also_down* those that
        Slurm itself has set down because they did not answer. Raises SlurmError.
        """
        check_reason(reason)
        changed, kept, foreign = [], [], {}
        for name, node in self.read(nodes).items():
            if node.drained_by(reason, self.user):
                kept.append(name)
            elif node.drain or (node.base == "DOWN" and not (also_down and not node.down_by_hand)):
                foreign[name] = node
            else:
                changed.append(name)
        if changed and not check:
            self._update(changed, "DRAIN", reason)
        return Outcome(tuple(changed), tuple(kept), foreign)

    def resume(self, nodes: Iterable[str], reason: str, *, check: bool = False) -> Outcome:
        """Let nodes that were drained for exactly *reason*, by this user, take jobs again.

        Raises SlurmError.
        """
        changed, kept, foreign = [], [], {}
        seen = self.read(nodes)
        for name, node in seen.items():
            if node.drained_by(reason, self.user):
                changed.append(name)
            elif node.drain or node.base == "DOWN":
                foreign[name] = node
            else:
                kept.append(name)
        if not check:
            # UNDRAIN ends the drain and nothing else. A node that went down while it was ours needs more.
            down = [name for name in changed if seen[name].base == "DOWN"]
            for state, some in (
                ("UNDRAIN", [name for name in changed if name not in down]),
                ("RESUME", down),
            ):
                if some:
                    self._update(some, state)
        return Outcome(tuple(changed), tuple(kept), foreign)

    def change_reason(self, nodes: Iterable[str], old: str, new: str) -> Outcome:
        """Give nodes drained for exactly *old*, by this user, the Reason *new*. Raises SlurmError."""
        check_reason(new)
        changed, foreign = [], {}
        for name, node in self.read(nodes).items():
            if node.drained_by(old, self.user):
                changed.append(name)
            else:
                foreign[name] = node
        if changed:
            self._do(["scontrol", "update", f"nodename={fold(changed)}", f"reason={new}"])
        return Outcome(tuple(changed), (), foreign)

    def reboot(self, nodes: Iterable[str], reason: str, *, check: bool = False) -> Outcome:
        """Boot nodes anew, as soon as their jobs have ended.

        Those drained for exactly *reason* by this user stay drained, the others come back by themselves.
        Nodes drained or down for another reason are left alone. Raises SlurmError.
        """
        check_reason(reason)
        ours, others, foreign = [], [], {}
        for name, node in self.read(nodes).items():
            if node.drained_by(reason, self.user):
                ours.append(name)
            elif node.drain or node.base == "DOWN":
                foreign[name] = node
            else:
                others.append(name)
        if not check:
            if ours:
                self._do(["scontrol", "reboot", fold(ours)])
            if others:
                self._do(["scontrol", "reboot", "ASAP", "nextstate=RESUME", f"reason={reason}", fold(others)])
        return Outcome((*ours, *others), (), foreign)

    def _update(self, names: Sequence[str], state: str, reason: str = "") -> None:
        argv = ["scontrol", "update", f"nodename={fold(names)}", f"state={state}"]
        self._do([*argv, f"reason={reason}"] if reason else argv)

    def _do(self, argv: List[str]) -> Tuple[str, str]:
        code, out, err = self._run(argv)
        if code:
            raise SlurmError(_complaint(argv, code, out, err))
        return out, err


def wait(
    read: Callable[[], Mapping[str, Node]],
    done: Callable[[Node], bool],
    deadline: float,
    *,
    interval: float = 2.0,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Dict[str, Node]:
    """Wait until *done* holds for all nodes that *read* returns, *deadline* seconds at most.

    Returns those for which it does not, as last seen. They are read every *interval* seconds, later five
    times as rarely. Whatever *read* raises ends the wait.
    """
    end = clock() + deadline
    pause = interval
    while True:
        left = {name: node for name, node in read().items() if not done(node)}
        remaining = end - clock()
        if not left or remaining <= 0:
            return left
        sleep(min(pause, remaining))
        pause = min(pause * 1.2, 5 * interval)


def parse(text: str) -> Dict[str, Node]:
    """Return the nodes in the JSON of ``scontrol show node`` or, up to 22.05, ``sinfo``, by their names.

    Raises SlurmError for anything else.
    """
    try:
        listed = json.loads(text)["nodes"]
        return {node.name: node for node in map(_node, listed)}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise SlurmError(f"Slurm's JSON can't be read ({error!r}): {text[:80]!r}") from error


def _node(data: Mapping[str, Any]) -> Node:
    """Read a node; state and numbers changed their form with 23.02 and 23.11."""
    state = data["state"]
    words = [state, *data.get("state_flags", ())] if isinstance(state, str) else list(state)
    base, *flags = (str(word).upper() for word in words)
    return Node(
        name=str(data["name"]),
        base=base,
        flags=frozenset(flags),
        reason=data.get("reason") or "",
        user=data.get("reason_set_by_user") or "",
        changed_at=_number(data.get("reason_changed_at")),
        boot_time=_number(data.get("boot_time")),
        slurmd_start_time=_number(data.get("slurmd_start_time")),
        version=data.get("version") or data.get("slurmd_version") or "",
        partitions=tuple(data.get("partitions") or ()),
        features=parts(data.get("features")),
        gres=parts(data.get("gres")),
        address=str(data.get("address") or ""),
    )


def _number(value: Any) -> int:
    if isinstance(value, Mapping):
        return int(value["number"]) if value.get("set") and not value.get("infinite") else 0
    return int(value or 0)


def parts(value: Any) -> Tuple[str, ...]:
    """Return the parts of what Slurm writes as a text with commas, or as a list, depending on its release.

    Commas in brackets, as in ``gpu:a100:4(S:0,1)``, are none between parts.
    """
    found = value if isinstance(value, list) else re.split(r",(?![^()]*\))", str(value or ""))
    return tuple(str(part) for part in found if part and part != "(null)")


def fold(names: Iterable[str]) -> str:
    """Return a hostlist of *names*, in which numbers at their ends are ranges: ``c[01-16,20],gpu3``."""
    groups: Dict[Tuple[str, int], List[int]] = {}
    for name in dict.fromkeys(names):
        match = _NUMBERED.fullmatch(name)
        prefix, digits = match.groups() if match else (name, "")
        # A number with a zero before it has a width: c1 and c10 are of one group, c01 is of another.
        width = len(digits) if digits.startswith("0") or not digits else 1
        groups.setdefault((prefix, width), []).extend([int(digits)] if digits else [])
    return ",".join(_folded(prefix, width, sorted(numbers)) for (prefix, width), numbers in groups.items())


def _folded(prefix: str, width: int, numbers: Sequence[int]) -> str:
    if not numbers:
        return prefix
    ranges: List[List[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    if len(numbers) == 1:
        return f"{prefix}{numbers[0]:0{width}d}"
    parts = (
        f"{first:0{width}d}" if first == last else f"{first:0{width}d}-{last:0{width}d}"
        for first, last in ranges
    )
    return f"{prefix}[{','.join(parts)}]"


def without_slurms_own(reason: str) -> str:
    """Return a Reason without what Slurm has added to it for a reboot."""
    match = re.search(_BY_SLURM.pattern + r"\Z", reason)
    return reason[: match.start()] if match else reason


def check_reason(reason: str) -> None:
    """Raise SlurmError unless *reason* can be the Reason of a node, and is the same when it is read again."""
    if not reason.strip() or reason != reason.strip() or not reason.isprintable():
        raise SlurmError(f"reason: must be one line of text, not {reason!r}")
    if len(reason) > REASON_LENGTH:
        raise SlurmError(f"reason: must have at most {REASON_LENGTH} characters, not {len(reason)}")


def sealed(tag: str, text: str, length: int = REASON_LENGTH) -> str:
    """Return a Reason that `is_sealed` will know as one of *tag*, until somebody changes or adds to it.

    The text is cut so that the Reason is not longer than *length*; what can't be in one is left out.
    """
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    words = words[: length - len(tag) - len(": ") - len(" (123456)")].strip() or "?"
    return f"{tag}: {words} ({_seal(tag, words)})"


def is_sealed(tag: str, reason: str) -> bool:
    """Whether *reason* is one that ``sealed(tag, …)`` has made, as it made it."""
    match = _SEALED.fullmatch(reason)
    return bool(match and match["tag"] == tag and match["seal"] == _seal(tag, match["text"]))


def text_of(reason: str) -> str:
    """Return the text in a Reason that `sealed` has made."""
    match = _SEALED.fullmatch(reason)
    return match["text"] if match else reason


def _seal(tag: str, text: str) -> str:
    return hashlib.sha256(f"{tag}: {text}".encode()).hexdigest()[:6]


def _complaint(argv: Sequence[str], code: int, out: str, err: str) -> str:
    return f"`{' '.join(argv)}` failed ({code}): {(err or out).strip() or 'it said nothing'}"
