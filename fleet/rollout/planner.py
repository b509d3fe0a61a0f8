"""From an inventory and a wish to a plan: which nodes, in which batches, and whether it can succeed at
all.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console

from fleet.errors import FleetError
from fleet.paths import PROJECT
from fleet.playbook import check_tags, run_playbook
from fleet.rollout import budget
from fleet.rollout.model import Plan, Seen, Settings, Step, fold, is_of
from fleet.rollout.site import COMPUTE, SCHEDULERS, Site
from fleet.rollout.steps import VERIFY
from fleet.rollout.window import Window
from module_utils import apptainer_version

VERIFY_STEP = Step("verify", VERIFY)
REBOOT_STEP = Step("reboot")
KINDS = ("upgrade", "change", "provision")
_TAG = re.compile(r"fleet r[0-9a-f-]+")
#: MiB that have to be free where packages go.
SPACE = 300


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants.

    :param nodes: in the order of the inventory.
    :param canary: nodes for the first batch; None for one of each class.
    :param largest: nodes in a batch at most; 0 leaves it to the budget.
    """

    kind: str
    nodes: tuple[str, ...]
    version: str = ""
    tags: tuple[str, ...] = ()
    reboot: bool = False
    canary: tuple[str, ...] | None = None
    largest: int = 0
    settings: Settings = field(default_factory=Settings)
    adopts: tuple[str, ...] = ()
    space: int = SPACE

    def steps(self) -> tuple[Step, ...]:
        """What is to be done to each node."""
        reboot = (REBOOT_STEP,) if self.reboot else ()
        if self.kind == "provision":
            return (Step("prepare", "node.yml"), *reboot, VERIFY_STEP, Step("join", "site.yml"))
        tags = self.tags or (("apptainer",) if self.version else ())
        return (Step("apply", "site.yml", tags), *reboot, VERIFY_STEP)


def batches(nodes: Sequence[str], first: int, largest: int) -> tuple[tuple[str, ...], ...]:
    """Batches that double: as many as *first*, then twice as many, up to *largest*."""
    made, rest, size = [], list(nodes), max(1, min(first, largest))
    while rest:
        made.append(tuple(rest[:size]))
        rest = rest[size:]
        size = max(1, min(size * 2, largest))
    return tuple(made)


def arrange(
    wish: Wish,
    classes: Mapping[str, Sequence[str]],
    seen: Mapping[str, Seen],
    ends: Mapping[str, float],
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The canaries and the other batches; those whose jobs end first come first."""
    place = {name: number for number, name in enumerate(wish.nodes)}

    def order(name: str) -> tuple[float, int]:
        node = seen.get(name)
        return ends.get(name, float("inf") if node and node.busy else 0.0), place[name]

    nodes = sorted((name for names in classes.values() for name in names), key=order)
    if wish.canary is None:
        first = {name: min(names, key=order) for name, names in classes.items() if names}
        canary = tuple(sorted(first.values(), key=order))
        # One node has nothing to prove to others.
        canary = canary if len(nodes) > len(canary) else ()
    else:
        canary = tuple(name for name in wish.canary if name in nodes)
    others = [name for name in nodes if name not in canary]
    largest = wish.largest or _most(wish.settings, seen, others)
    return canary, batches(others, 2 * max(1, len(canary)), largest)


def _most(settings: Settings, seen: Mapping[str, Seen], nodes: Collection[str]) -> int:
    """How many nodes the budgets of all their partitions allow at a time."""
    size: dict[str, int] = defaultdict(int)
    for node in seen.values():
        for partition in node.partitions:
            size[partition] += 1
    wanted = {p for name in nodes if name in seen for p in seen[name].partitions}
    limits = settings.unavailable
    return max(
        1, sum(budget.limit(limits.get(p, limits.get("*", "10%")), size[p]) for p in wanted) or len(nodes)
    )


class Planner:
    """Makes plans for a site, asking nodes and changing nothing.

    :param console: shows what is being asked.
    """

    def __init__(self, site: Site, console: Console) -> None:
        self._site, self._console = site, console

    def plan(
        self, wish: Wish, scheduler: Mapping[str, str], seen: Mapping[str, Seen], ends: Mapping[str, float]
    ) -> Plan:
        """Make the plan. Raises FleetError for one that can't succeed."""
        if wish.version:
            apptainer_version.parse(wish.version)
        if wish.tags:
            check_tags(PROJECT / "playbooks" / wish.steps()[0].playbook, wish.tags)
        self._check_limits(wish, seen)
        survey, left = self._survey(wish)
        left |= dict(self._unfit(wish, seen, survey))
        nodes = [name for name in wish.nodes if name not in left]
        classes = self._classes(nodes, survey)
        if wish.version:
            self._gate(classes, wish.version)
        # A rollback has canaries and limits of what it takes back: nobody is to be kept from it by them.
        if nodes and wish.canary and not wish.adopts and not set(wish.canary) & set(nodes):
            why = "; ".join(f"{name}: {left[name]}" for name in wish.canary)
            raise FleetError(f"--canary: none of them is left ({why})", "choose others, or --no-canary")
        canary, others = arrange(replace(wish, nodes=tuple(nodes)), classes, seen, ends)
        if nodes:
            self._try(wish, [next(iter(members)) for members in classes.values()])
        before: dict[str, list[str]] = defaultdict(list)
        for name, found in survey.items():
            before[str(found.get("version", "")) or "none"].append(name)
        return Plan(
            id="",
            cluster=self._site.cluster(),
            kind=wish.kind,
            steps=wish.steps(),
            canary=canary,
            batches=others,
            version=wish.version,
            classes={name: tuple(members) for name, members in classes.items()},
            left=left,
            before={version: fold(names) for version, names in sorted(before.items())},
            settings=wish.settings,
            adopts=wish.adopts,
            inventories=tuple(map(str, self._site.sources)),
            scheduler=scheduler,
        )

    @staticmethod
    def _check_limits(wish: Wish, seen: Mapping[str, Seen]) -> None:
        """Refuse a budget for a partition that there is not: it would hold for nobody."""
        known = {partition for node in seen.values() for partition in node.partitions}
        strange = set(wish.settings.unavailable) - known - {"*"}
        # New nodes may bring a new partition along.
        if strange and wish.kind != "provision" and not wish.adopts:
            raise FleetError(
                f"--max-unavailable: the scheduler has no partition {', '.join(sorted(strange))}",
                f"one of {', '.join(sorted(known))}",
            )

    def _survey(self, wish: Wish) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        result = run_playbook(
            PROJECT / "playbooks/rollout_survey.yml",
            self._site.sources,
            self._console,
            limit=wish.nodes,
            variables={"rollout_space": wish.space},
            wanted="Survey",
        )
        said = {**result.failed, **result.unreachable}
        if not result.results and not said:
            raise FleetError("the survey of nodes failed:\n" + result.output[-2000:])
        return result.results, {name: " ".join(said[name].split()) for name in wish.nodes if name in said}

    def _unfit(
        self, wish: Wish, seen: Mapping[str, Seen], survey: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[tuple[str, str]]:
        """Nodes that have nothing to gain, or that can't be had."""
        version = apptainer_version.parse(wish.version) if wish.version else None
        for name in wish.nodes:
            node = seen.get(name)
            ours = bool(node and node.held and is_of(node.reason, wish.adopts))
            has = str(survey.get(name, {}).get("version", ""))
            if version and wish.kind == "upgrade" and has and version.matches(has) and not ours:
                yield name, f"has {has} already"
            elif node is None and wish.kind != "provision":
                yield name, "the scheduler does not know it"
            elif node and node.held and not ours:
                yield name, f"held by {node.by or 'somebody'}: {node.reason or 'no reason'}"
            elif node and not node.up and not node.held and wish.kind != "provision":
                yield name, "down, or does not answer the scheduler"

    def _classes(self, nodes: Sequence[str], survey: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
        """Nodes that are alike: what one of them proves holds for the others."""
        classes: dict[str, list[str]] = defaultdict(list)
        for name in nodes:
            kind = self._site.value(name, "slurm_node_class", "node")
            profile = self._site.value(name, "apptainer_profile", "")
            system = survey.get(name, {}).get("system", "")
            classes["/".join(filter(None, (str(kind), str(system), str(profile))))].append(name)
        return dict(classes)

    def _gate(self, classes: Mapping[str, Sequence[str]], version: str) -> None:
        said = list(self._site.judge([members[0] for members in classes.values()], version))
        if said:
            raise FleetError(
                f"the inventory can't be had with Apptainer {version}:\n" + "\n".join(said),
                "choose another version, or mend the variables; apptainer_waivers accepts a finding",
            )

    def _try(self, wish: Wish, representatives: Sequence[str]) -> None:
        """A check run on one node of each class: whether the mirror has the package for it, among others."""
        step = wish.steps()[0]
        result = run_playbook(
            PROJECT / "playbooks" / step.playbook,
            self._site.sources,
            self._console,
            extra=["--check", *([f"--tags={','.join(step.tags)}"] if step.tags else [])],
            limit=representatives,
            variables={"apptainer_version": wish.version} if wish.version else {},
        )
        if not result.ok:
            raise FleetError(
                "a check run on one node of each class failed:\n"
                + ("\n".join(result.failures) or result.output[-2000:]),
                "nothing was changed; mend this first",
            )


def examine(plan: Plan, site: Site) -> None:
    """Refuse a plan that this program would not have made: a saved one may be old, or edited by hand.

    Raises FleetError that says what is wrong.
    """
    try:
        wrong = list(_wrong(plan, site))
    except (TypeError, ValueError, AttributeError) as error:
        wrong = [str(error)]
    if wrong:
        raise FleetError("the plan can't be carried out:\n" + "\n".join(wrong), "make a new one")


def _wrong(plan: Plan, site: Site) -> Iterator[str]:
    if plan.cluster != site.cluster():
        yield f"it is for cluster {plan.cluster}, the inventory has {site.cluster()}"
    if plan.kind not in KINDS or bool(plan.version) != (plan.kind == "upgrade"):
        yield f"there is no {plan.kind!r} to version {plan.version!r}"
    tags = plan.steps[0].tags if plan.steps else ()
    possible = (Wish(plan.kind, (), plan.version, tags, reboot=reboot) for reboot in (False, True))
    if plan.steps not in [wish.steps() for wish in possible]:
        yield f"its steps are none of a {plan.kind}"
    if twice := [name for name, number in Counter(plan.nodes).items() if number > 1]:
        yield f"it has {fold(twice)} twice"
    if strangers := set(plan.nodes) - set(site.hosts):
        yield f"the inventory has no {fold(strangers)}"
    yield from _wrong_settings(plan.settings)
    if foreign := [tag for tag in plan.adopts if not _TAG.fullmatch(tag)]:
        yield f"adopts: {foreign} are no rollouts"
    if plan.scheduler.get("kind") not in SCHEDULERS[1:]:
        yield f"there is no scheduler {plan.scheduler.get('kind')!r}"
    site.scheduler_host(plan.scheduler.get("host"))
    if plan.kind == "change" and tags:
        check_tags(PROJECT / "playbooks" / plan.steps[0].playbook, tags)
    if plan.version:
        apptainer_version.parse(plan.version)
        yield from site.judge([name for name, *_ in plan.classes.values()], plan.version)


def _wrong_settings(settings: Settings) -> Iterator[str]:
    values = dataclasses.asdict(settings)
    for value in values.pop("unavailable").values():
        budget.check(value)
    for text in values.pop("windows"):
        Window(text)
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            yield f"{name} is no number: {value!r}"
    if settings.poll < 1:
        yield "poll is less than a second"


def later(plan: Plan, site: Site) -> str:
    """What the next run of site.yml would undo, as a sentence; empty if nothing."""
    if not plan.version:
        return ""
    others: dict[str, list[str]] = defaultdict(list)
    for name in plan.nodes:
        written = str(site.value(name, "apptainer_version", ""))
        if written != plan.version:
            others[written].append(name)
    said = ", ".join(f"{version} for {fold(names)}" for version, names in others.items())
    return (
        f"The inventory still says apptainer_version {said}: change it to {plan.version}, or the next run of"
        " site.yml takes the nodes back."
        if said
        else ""
    )


def compute_nodes(site: Site, kind: str) -> list[str]:
    """The nodes that a rollout is for if nobody says: those with Apptainer, under Slurm its compute nodes."""
    groups = site.groups
    nodes = groups.get("apptainer", [])
    if kind == "slurm" and groups.get(COMPUTE):
        compute = set(groups[COMPUTE])
        nodes = [name for name in nodes if name in compute]
    return nodes
