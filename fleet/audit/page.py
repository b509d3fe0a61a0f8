"""One page per audit, for whoever reads it without this project: summary, plots, findings, nodes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fleet import page
from fleet.audit.model import Audit, Finding, Summary, moment
from fleet.errors import FleetError
from fleet.hostlist import fold
from fleet.rollout.journal import Journal, folder
from fleet.rollout.site import Site
from fleet.rollout.state import Stage, State
from fleet.runs import Run
from module_utils.node_audit import SEVERITIES

#: Rows of the tables; beyond them the page would be no longer read, nor loaded at once.
FINDINGS, GROUPS = 3000, 5000
#: Findings that a row of nodes links to, audits that plots go back, rollouts that are shown.
LINKS, BACK, ROLLOUTS = 8, 60, 5
#: Runs of playbooks that are shown.
RUNS = 20
_COLUMNS = ("apptainer", "profile", "profile_holds", "user_namespaces", "health", "pull", "os", "kernel")
#: Told apart in light and dark, and by people who see colours otherwise (Okabe and Ito).
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800", "#8c959f")
_WIDTH, _HEIGHT, _LEFT, _TOP = 544.0, 124.0, 56.0, 16.0


def render(
    audit: Audit,
    where: str,
    before: Sequence[Summary] = (),
    rollouts: Sequence[Mapping[str, Any]] = (),
    runs: Sequence[Run] = (),
) -> str:
    """The page as HTML.

    :param where: what was audited, for the heading.
    :param before: earlier audits in numbers, in order.
    :param rollouts: what :func:`progress` gives.
    :param runs: of playbooks, the last one first.
    """
    past = [*before, Summary.of(audit)][-BACK:]
    order = {name: number for number, name in enumerate(sorted(audit.nodes))}
    ordered = audit.ordered
    ids = {finding: number for number, (finding, _) in enumerate(ordered, 1)}
    groups = _groups(audit, order, ids)
    counts = audit.tally()
    judged = [store for store in audit.stores if "images" in store]
    images, refused = (sum(int(store[name]) for store in judged) for name in ("images", "refused"))
    facts = {
        "where": where,
        "number": audit.number,
        "when": audit.when,
        "tiles": [
            ("nodes", len(audit.nodes), ""),
            ("nodes with nothing to mend", len(audit.nodes - audit.bad_nodes()), "good"),
            ("errors", counts["error"], "error"),
            ("warnings", counts["warning"], "warning"),
            ("waived", counts["waived"], "waived"),
            ("nodes out of reach", len(audit.unreachable), "error"),
            ("images judged", images, ""),
            ("images refused", refused, "error"),
        ],
        "versions": _versions(past),
        "severities": _severities(past),
        "coverage": _coverage(audit, images, refused),
        "rollouts": [_bar(f"{one['title']}: {one['said']}", one["parts"]) for one in rollouts],
        "runs": [_run(one) for one in runs[:RUNS]],
        "colours": _COLOURS,
        "severities_known": [*SEVERITIES, "waived"],
        "sources": sorted({finding.source for finding in audit.found}),
        "findings": [_row(finding, nodes, order, ids[finding]) for finding, nodes in ordered[:FINDINGS]],
        "more_findings": max(0, len(ordered) - FINDINGS),
        "columns": [name for name in _COLUMNS if any(name in one for one in audit.facts.values())],
        "groups": groups[:GROUPS],
        "more_groups": max(0, len(groups) - GROUPS),
        "stores": [{**store, "hostlist": fold(store["nodes"])} for store in audit.stores],
        # In a script element nothing is markup but its end.
        "names": Markup(json.dumps(list(order), ensure_ascii=True).replace("<", "\\u003c")),  # noqa: S704
    }
    return page.render("audit.html.j2", facts, "audit.js")


def _row(finding: Finding, nodes: set[str], order: Mapping[str, int], number: int) -> dict[str, Any]:
    return {
        "id": number,
        "finding": finding,
        "counts": finding.counts,
        "nodes": fold(nodes),
        "count": f"{len(nodes)} node{'s' * (len(nodes) != 1)}",
        "indices": _indices(nodes, order),
        "evidence": "" if finding.evidence in finding.message else finding.evidence,
        "link": finding.reference if re.match(r"https://[^\s]+$", finding.reference) else "",
    }


def _run(run: Run) -> dict[str, Any]:
    css = {"unreachable": "error", "failed": "error", "changed": "info", "ok": "good"}
    return {
        "when": moment(run.began),
        "user": run.user,
        "playbook": run.playbook,
        "minutes": f"{(run.ended - run.began) / 60:.1f}" if run.ended else "it has not ended",
        "hosts": [(css[state], f"{count} {state}", names) for state, count, names in run.folded()],
    }


def _indices(nodes: Iterable[str], order: Mapping[str, int]) -> str:
    """Where the names of *nodes* are among all, folded: ``0-3,7``."""
    parts: list[list[int]] = []
    for index in sorted(order[node] for node in nodes if node in order):
        if parts and parts[-1][-1] == index - 1:
            parts[-1][1:] = [index]
        else:
            parts.append([index])
    return ",".join("-".join(map(str, part)) for part in parts)


def _groups(audit: Audit, order: Mapping[str, int], ids: Mapping[Finding, int]) -> list[dict[str, Any]]:
    """Nodes that are alike in facts and findings, those with the most findings first."""
    found: dict[str, list[Finding]] = {node: [] for node in audit.nodes}
    for finding, _ in audit.ordered:
        for node in audit.found[finding]:
            found.setdefault(node, []).append(finding)
    columns = [name for name in _COLUMNS if any(name in one for one in audit.facts.values())]
    alike: dict[tuple[Any, ...], list[str]] = {}
    for node in sorted(audit.nodes):
        facts = audit.facts.get(node, {})
        key = tuple(facts.get(name, "") for name in columns), tuple(found[node])
        alike.setdefault(key, []).append(node)

    def bad(findings: Iterable[Finding]) -> tuple[int, ...]:
        counts = Counter(finding.counts for finding in findings)
        return tuple(-counts[name] for name in SEVERITIES)

    return [
        {
            "nodes": fold(nodes),
            "count": f"{len(nodes)} node{'s' * (len(nodes) != 1)}",
            "indices": _indices(nodes, order),
            "facts": facts,
            "findings": [(ids[one], one.counts) for one in findings[:LINKS] if ids[one] <= FINDINGS],
            "hidden": sum(ids[one] > FINDINGS for one in findings[:LINKS]) + len(findings[LINKS:]),
        }
        for (facts, findings), nodes in sorted(alike.items(), key=lambda one: (bad(one[0][1]), -len(one[1])))
    ]


# --- plots --------------------------------------------------------------------------------------------------


def _versions(past: Sequence[Summary]) -> dict[str, Any]:
    counted = [one.versions for one in past]
    known = sorted(set().union(*counted))
    # What few nodes have shares the last colour.
    by_number = sorted(known, key=lambda name: -sum(one.get(name, 0) for one in counted))[: len(_COLOURS) - 1]
    series = [(name, f"v{by_number.index(name)}" if name in by_number else "v7") for name in known]
    return _plot("Versions over time", past, counted, series, "nodes")


def _severities(past: Sequence[Summary]) -> dict[str, Any]:
    counted = [one.counts for one in past]
    return _plot(
        "Findings by severity", past, counted, [(name, name) for name in (*SEVERITIES, "waived")], "findings"
    )


def _plot(
    title: str,
    past: Sequence[Summary],
    counted: Sequence[Mapping[str, int]],
    series: Sequence[tuple[str, str]],
    what: str,
) -> dict[str, Any]:
    """Columns, one for each audit, of parts on top of each other."""
    most = max((sum(one.values()) for one in counted), default=0)
    width = min(_WIDTH / max(1, len(past)), 60.0)
    columns = []
    for number, (one, counts) in enumerate(zip(past, counted, strict=True)):
        parts, y = [], _TOP + _HEIGHT
        for name, css in series:
            height = _HEIGHT * counts.get(name, 0) / most if most else 0
            y -= height
            if height:
                parts.append(
                    {
                        "class": css,
                        "x": f"{_LEFT + number * width:.1f}",
                        "y": f"{y:.1f}",
                        "width": f"{max(width - 1, 0.5):.1f}",
                        "height": f"{height:.1f}",
                        "title": f"{moment(one.at)}: {counts[name]} {what}, {name}",
                    }
                )
        columns.append(parts)
    last = counted[-1] if counted else {}
    said = ", ".join(f"{name}: {last.get(name, 0)}" for name, _ in series if last.get(name))
    return {
        "title": title,
        "columns": columns if most else [],
        "most": most,
        "first": moment(past[0].at)[:10] if len(past) > 1 else "",
        "last": moment(past[-1].at)[:16],
        "said": f"{title}; in the last audit: {said or f'no {what}'}",
        "key": [(name, css) for name, css in series if any(one.get(name) for one in counted)],
    }


def _coverage(audit: Audit, images: int, refused: int) -> list[dict[str, Any]]:
    rows = []
    with_profile = [facts["profile_holds"] for facts in audit.facts.values() if "profile_holds" in facts]
    if with_profile:
        good = with_profile.count("yes")
        parts = [("good", good, "profile holds"), ("error", len(with_profile) - good, "it does not")]
        rows.append(_bar(f"security profile holds on {good} of {len(with_profile)} nodes", parts))
    stores = [store["nodes"] for store in audit.stores if "images" in store]
    judged = audit.nodes.intersection(node for nodes in stores for node in nodes)
    if audit.stores:
        total = len(audit.nodes)
        parts = [("good", len(judged), "judged"), ("v7", total - len(judged), "not judged")]
        rows.append(_bar(f"images are judged on {len(judged)} of {total} nodes", parts))
    if images:
        parts = [("good", images - refused, "good"), ("error", refused, "refused")]
        rows.append(_bar(f"{images - refused} of {images} images keep the policy", parts))
    return rows


def _bar(title: str, parts: Sequence[tuple[str, int, str]]) -> dict[str, Any]:
    total, x, made = sum(count for _, count, _ in parts) or 1, 0.0, []
    for css, count, name in parts:
        width = 600 * count / total
        if count:
            made.append({"class": css, "x": f"{x:.1f}", "width": f"{width:.1f}", "title": f"{name}: {count}"})
        x += width
    return {"title": title, "parts": made}


# --- what stands around an audit ----------------------------------------------------------------------------


def progress(sources: Sequence[Path]) -> list[dict[str, Any]]:
    """How far the last rollouts on the cluster of an inventory have come; none where there was none."""
    try:
        home = folder(Site.of(tuple(sources), check=False).cluster())
        if not (home / "journal.sqlite").exists():
            return []
        journal = Journal(home)
        plans = journal.rollouts()[:ROLLOUTS]
        states = [State.of(plan, journal.entries(plan.id)) for plan in plans]
    except FleetError:
        # The page is about nodes; `fleet rollout` says what is wrong with a journal.
        return []
    journal.close()
    css = {Stage.DONE: "good", Stage.FAILED: "error", Stage.LEFT: "waived", Stage.PENDING: "v7"}
    made = []
    for plan, state in zip(plans, states, strict=True):
        counts = {stage: len(state.at(stage)) for stage in Stage}
        parts = [(css.get(stage, "info"), count, stage.value) for stage, count in counts.items() if count]
        said = ", ".join(f"{count} {stage.value}" for stage, count in counts.items() if count)
        made.append({"title": plan.title, "said": said, "parts": parts})
    return made
