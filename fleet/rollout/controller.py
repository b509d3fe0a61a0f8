"""One controller at work: the lock, the signals, the screen, and the driver in the middle."""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live

from fleet.errors import FleetError
from fleet.rollout import report, view
from fleet.rollout.driver import Driver
from fleet.rollout.journal import Entry, Journal, JournalError, Lock
from fleet.rollout.model import OUTCOMES, Plan
from fleet.rollout.site import Site
from fleet.rollout.state import State
from fleet.rollout.steps import Playbooks
from module_utils import atomic_file

#: Exit statuses beside those of outcomes.
INTERRUPTED, BUSY = 4, 5


class BusyError(FleetError):
    """Another controller is at work on this cluster."""


@contextlib.contextmanager
def locked(journal: Journal) -> Iterator[None]:
    """Be the only controller of a cluster. Raises BusyError."""
    lock = Lock(journal.home)
    if not lock.take():
        raise BusyError(
            f"a controller is at work on {journal.home.name} already: {lock.holder()}",
            "fleet rollout status shows it; pause and abort reach it",
        )
    try:
        yield
    finally:
        lock.release()


def unfinished(journal: Journal) -> Plan | None:
    """The rollout of this cluster that has not ended, or can be gone on with, if there is one."""
    for plan in journal.rollouts():
        state = State.of(plan, journal.entries(plan.id))
        if state.outcome not in ("complete", "incomplete", "aborted"):
            return plan
    return None


class _Screen:
    """Shows what happens: a picture on a terminal, else a line for each entry of the journal."""

    def __init__(self, plan: Plan, journal: Journal, console: Console) -> None:
        self._plan, self._journal, self._console = plan, journal, console
        self._waiting = ""
        self._entries: list[Entry] = journal.entries(plan.id)
        self.live = (
            Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None
        )

    def tell(self, text: str) -> None:
        self._console.print(text, markup=False)

    def __call__(self, state: State, entry: Entry | None, waiting: str) -> None:
        self._waiting = waiting
        if entry:
            self._entries.append(entry)
        if self.live:
            rows = self._console.height
            picture = view.picture(self._plan, state, self._entries, self._waiting, running=True, rows=rows)
            self.live.update(picture)
        elif entry and (text := view.said(self._plan, entry)):
            self.tell(text)
        elif waiting:
            self.tell(f"{time.strftime('%H:%M:%S')} waiting: {waiting}")


def drive(plan: Plan, journal: Journal, console: Console, command: str, *, ask: str = "") -> int:
    """Work on a rollout until there is an outcome; the caller has the lock.

    :param ask: ``abort`` to bring it to an end at once.
    :returns: the exit status. Raises FleetError where nothing may be done.
    """
    if original := journal.original(plan.id):
        # Two controllers with a journal each would work against each other.
        raise FleetError(
            f"{journal.file}: is a copy of {original}, with which rollout {plan.id} was worked on last",
            f"go on there (--state {original.parents[1]}), or move that file away",
        )
    site = Site.of([Path(path) for path in plan.inventories], check=ask != "abort")
    base = journal.home.parent
    scheduler = site.scheduler(plan.scheduler["kind"], plan.scheduler.get("host", ""), base)
    screen = _Screen(plan, journal, console)
    steps = Playbooks(journal.home, screen.tell)
    steps.wait_for_orphans()
    driver = Driver(plan, journal, scheduler, steps, show=screen)
    driver.asked = ask
    try:
        with _signals(driver, screen), screen.live or contextlib.nullcontext():
            outcome = driver.run(command)
    except JournalError as error:
        click.secho(f"fleet: {error}", fg="red", err=True)
        return INTERRUPTED
    except OSError as error:
        click.secho(f"fleet: {error}", fg="red", err=True)
        room = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        click.secho(f"  mend: {room}; then `fleet rollout resume` goes on", fg="red", err=True)
        return INTERRUPTED
    except KeyboardInterrupt:
        click.secho(
            "fleet: interrupted; `fleet rollout resume` goes on where this was", fg="yellow", err=True
        )
        return INTERRUPTED
    console.print(view.picture(plan, driver.state, journal.entries(plan.id), "", running=False))
    try:
        page = write_report(plan, journal)
        console.print(f"report: {page}", markup=False, soft_wrap=True)
    except FleetError as error:
        click.secho(f"fleet: {error}", fg="yellow", err=True)
    return OUTCOMES[outcome]


@contextlib.contextmanager
def _signals(driver: Driver, screen: _Screen) -> Iterator[None]:
    """The first signal asks for a pause, the second ends this process at once; both harm nothing."""

    def handle(_number: int, _frame: object) -> None:
        if driver.asked or driver.state.request:
            raise KeyboardInterrupt
        driver.asked = "pause"
        screen.tell(
            "pausing: what is begun is brought to an end, nothing new is begun; once more to leave at once"
        )

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_report(plan: Plan, journal: Journal, file: Path | None = None) -> Path:
    """Write the page of a rollout, by default into its own folder."""
    entries = journal.entries(plan.id)
    state = State.of(plan, entries)
    page = file or journal.home / plan.id / "report.html"
    running = journal.at_work() == plan.id
    text = report.render(plan, state, entries, view.status_of(state, running=running))
    try:
        page.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_file.replace(str(page), text.encode(), mode=page.parent.stat().st_mode & 0o660)
    except OSError as error:
        raise FleetError(f"{page}: {error.strerror}", "give --output a file that can be written") from error
    return page


def console() -> Console:
    """Where a terminal is looked at, its width; else lines that are not folded."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 1000)
