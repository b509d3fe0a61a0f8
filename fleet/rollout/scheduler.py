"""What a rollout asks of a scheduler."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from fleet.errors import FleetError
from fleet.rollout.model import Plan, Seen


class SchedulerError(FleetError):
    """The scheduler did not answer, or refused: nothing can be said of what it has done."""


class Scheduler(Protocol):
    """A scheduler, by the names that nodes have in the inventory.

    Calls may be repeated: each brings nodes to a state and does nothing to those that have it. A node whose
    Reason is not the plan's is never touched. All raise :class:`SchedulerError`.

    *longest* is how many characters a Reason may have.
    """

    longest: int

    def look(self) -> Mapping[str, Seen]:
        """All nodes of the cluster that it knows, those outside the rollout included."""
        ...

    def drain(self, nodes: Collection[str], reason: str, plan: Plan) -> None:
        """Let nodes take no new jobs, with this Reason; those that somebody else holds keep theirs."""
        ...

    def resume(self, nodes: Collection[str], plan: Plan) -> None:
        """Let nodes take jobs again, if the plan's Reason is what holds them."""
        ...

    def reboot(self, nodes: Collection[str], plan: Plan) -> None:
        """Boot nodes anew that this plan holds; they stay held."""
        ...

    def no_reboot(self) -> str:
        """Why it can't boot nodes anew; empty if it can."""
        ...

    def ends(self) -> Mapping[str, float]:
        """Node → seconds until the last of its jobs has to end; a node without jobs may be left out."""
        ...
