"""Asking the nodes: playbooks/audit.yml in batches, and once more on one node for each shared store."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fleet import converge
from fleet.audit.model import Audit, Finding, unreachable
from fleet.check import recorded_groups
from fleet.errors import FleetError
from fleet.paths import PROJECT
from fleet.playbook import PlaybookResult, run_playbook

PLAYBOOK = PROJECT / "playbooks/audit.yml"
#: Its task.
TASK = "Audit"
#: Nodes that are asked to judge a shared store, if those before them could not.
TRIES = 3


def groups() -> list[str]:
    """The groups of its play: whoever is on record, and whoever has images judged."""
    return [*recorded_groups(), "image_policy"]


def audit(sources: Sequence[Path], hosts: Sequence[str], batch: int, forks: int, console: Console) -> Audit:
    """Audit *hosts*. Raises FleetError if Ansible could not begin."""

    def ask(
        nodes: Sequence[str], label: str, stores: Mapping[str, Sequence[str]] | None = None
    ) -> PlaybookResult:
        result = run_playbook(
            PLAYBOOK,
            sources,
            console,
            extra=[f"--forks={forks}"],
            limit=nodes,
            variables={"audit_stores": stores} if stores else None,
            label=label,
            wanted=TASK,
        )
        if not result.hosts or (not result.ok and not result.lost):
            raise FleetError(f"ansible-playbook ended with status {result.status}:\n{result.output[-4000:]}")
        return result

    made = Audit(time.time(), set(hosts))
    shared: dict[str, list[str]] = {}
    parts = list(converge.batches(hosts, (), batch))
    for number, part in enumerate(parts, 1):
        label = f"batch {number} of {len(parts)}" if len(parts) > 1 else ""
        result = ask(part, label)
        for node, said in result.results.items():
            take(made, node, said)
            for store in said.get("stores", ()):
                if store["shared"]:
                    shared.setdefault(store["id"], []).append(node)
        lose(made, result)
    _judge_shared(made, shared, ask)
    made.stores = _folded(made.stores)
    return made


def _folded(stores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Local stores that are alike on many nodes, as one."""
    alike: dict[tuple[Any, ...], dict[str, Any]] = {}
    for store in stores:
        key = tuple(sorted((name, value) for name, value in store.items() if name != "nodes"))
        alike.setdefault(key, {**store, "nodes": []})["nodes"].extend(store["nodes"])
    return [{**store, "nodes": sorted(store["nodes"])} for store in alike.values()]


def take(made: Audit, node: str, said: Mapping[str, Any]) -> None:
    """Take in what the module returned on *node*."""
    for finding in said.get("findings", ()):
        made.add(Finding.of(finding), [node])
    if said.get("facts"):
        made.facts[node] = {str(name): str(value) for name, value in said["facts"].items()}
    made.stores += [{**store, "nodes": [node]} for store in said.get("stores", ()) if not store["shared"]]


def lose(made: Audit, result: PlaybookResult) -> None:
    """Take in the nodes that said nothing."""
    for failure in result.lost:
        if failure.unreachable:
            made.add(unreachable(), [failure.host])
        else:
            message = f"could not be audited: {failure.message}"
            mend = "mend what it says, then audit it again"
            made.add(Finding("audit", "failed", "error", "node", message, mend), [failure.host])


def _judge_shared(made: Audit, shared: Mapping[str, Sequence[str]], ask: Any) -> None:
    """Let one node judge each store, and others if it can't."""
    judged: dict[str, tuple[str, dict[str, Any]]] = {}
    refused: dict[str, list[Finding]] = {}
    for number in range(TRIES):
        asked: dict[str, list[str]] = {}
        for store, nodes in shared.items():
            if store not in judged and number < len(nodes):
                asked.setdefault(nodes[number], []).append(store)
        if not asked:
            break
        result = ask(sorted(asked), "shared stores", asked)
        for node, said in result.results.items():
            found = [Finding.of(one) for one in said.get("findings", ())]
            for store in said.get("stores", ()):
                of_it = [one for one in found if one.subject.startswith(store["path"].partition("*")[0])]
                if "images" in store:
                    judged[store["id"]] = (node, store)
                    for finding in of_it:
                        made.add(finding, [node])
                else:
                    refused[store["id"]] = of_it
    for store, nodes in shared.items():
        if store in judged:
            made.stores.append({**judged[store][1], "nodes": sorted(nodes), "judged_by": judged[store][0]})
            continue
        made.stores.append({"id": store, "path": store, "shared": True, "nodes": sorted(nodes)})
        for finding in refused.get(store, [_unjudged(store)]):
            made.add(finding, nodes)


def _unjudged(store: str) -> Finding:
    message = f"no node could judge the images of {store}"
    return Finding("audit", "images", "error", store, message, "see to its mount on these nodes")
