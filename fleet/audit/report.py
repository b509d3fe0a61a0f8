"""An audit as text, JSON, JUnit and SARIF; and what differs between two."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from fleet.audit.model import Audit, Finding, moment
from fleet.hostlist import fold
from module_utils.node_audit import SEVERITIES
from module_utils.typed import printable

#: Level of SARIF 2.1.0, section 3.27.10.
_LEVELS = {"error": "error", "warning": "warning", "info": "note"}


def lines(audit: Audit, verbose: bool = False) -> Iterator[str]:
    """What people read: findings with their nodes folded, then the sum.

    :param verbose: also what is waived or only worth knowing.
    """
    for finding, nodes in audit.ordered:
        if finding.counts in SEVERITIES[:2] or verbose:
            yield from _told(finding, fold(nodes))
    counts = audit.tally()
    words = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    good = len(audit.nodes - audit.bad_nodes())
    yield f"{good} of {len(audit.nodes)} nodes have nothing to mend" + (
        f"; findings: {words}" if words else ""
    )


def _told(finding: Finding, nodes: str) -> Iterator[str]:
    waived = f" ({finding.waived})" if finding.waived else ""
    place = f" [{finding.place}]" if finding.place else ""
    evidence = (
        f" ({finding.evidence})" if finding.evidence and finding.evidence not in finding.message else ""
    )
    yield printable(f"{finding.severity.upper()}{waived} {nodes}: {finding.message}{evidence}{place}")
    yield printable(f"    mend: {finding.mend}")


def as_dict(audit: Audit) -> dict[str, Any]:
    """All of it as data for JSON."""
    return {
        "audit": audit.number,
        "at": audit.at,
        "when": audit.when,
        "nodes": sorted(audit.nodes),
        "unreachable": sorted(audit.unreachable),
        "counts": audit.tally(),
        "findings": [
            {**finding._asdict(), "nodes": sorted(nodes), "hostlist": fold(nodes)}
            for finding, nodes in audit.ordered
        ],
        "facts": dict(sorted(audit.facts.items())),
        "stores": audit.stores,
    }


def as_json(audit: Audit) -> str:
    """The same as text."""
    return json.dumps(as_dict(audit), indent=1)


def as_junit(audit: Audit) -> str:
    """JUnit XML, as CI servers read it: a test for each node, one for each finding on it, a suite by source.

    What is waived was skipped; what is only worth knowing has passed.
    """
    top = ElementTree.Element("testsuites", name="fleet audit")
    suites: dict[str, ElementTree.Element] = {}

    def case(suite: str, name: str, node: str) -> ElementTree.Element:
        if suite not in suites:
            suites[suite] = ElementTree.SubElement(top, "testsuite", name=suite)
        return ElementTree.SubElement(
            suites[suite], "testcase", classname=f"{suite}.{node}", name=printable(name)
        )

    bad = audit.bad_nodes()
    for node in sorted(audit.nodes - bad):
        case("nodes", "nothing to mend", node)
    for finding, nodes in audit.ordered:
        for node in sorted(nodes):
            made = case(finding.source, f"{finding.rule} {finding.subject}", node)
            said = printable(f"{finding.message}; {finding.place}; mend: {finding.mend}")
            if finding.waived:
                ElementTree.SubElement(made, "skipped", message=printable(finding.waived))
            elif finding.severity in SEVERITIES[:2]:
                failure = ElementTree.SubElement(made, "failure", type=finding.severity, message=said)
                failure.text = f"node {node}\n{said}"
    for suite in suites.values():
        suite.set("tests", str(len(suite)))
        suite.set("failures", str(len(suite.findall("testcase/failure"))))
        suite.set("errors", "0")
        suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
        suite.set("timestamp", audit.when.replace(" ", "T"))
    ElementTree.indent(top)
    return ElementTree.tostring(top, encoding="unicode", xml_declaration=True) + "\n"


def as_sarif(audit: Audit, version: str) -> str:
    """SARIF 2.1.0, as code scanners exchange findings: a result for each finding, its nodes as locations."""
    rules: dict[str, dict[str, Any]] = {}
    results = []
    for finding, nodes in audit.ordered:
        rule = f"{finding.source}/{finding.rule}"
        rules.setdefault(
            rule, {"id": rule, "shortDescription": {"text": rule}, "help": {"text": printable(finding.mend)}}
        )
        physical: dict[str, Any] = {}
        if finding.file:
            # Relative to the node, which has no URI.
            physical = {"artifactLocation": {"uri": quote(finding.file.lstrip("/")), "uriBaseId": "NODE"}}
            if finding.line:
                physical["region"] = {"startLine": finding.line}
        location = {"logicalLocations": [{"name": node, "kind": "node"} for node in sorted(nodes)]}
        result = {
            "ruleId": rule,
            "ruleIndex": list(rules).index(rule),
            "level": _LEVELS[finding.severity],
            "message": {"text": printable(f"{fold(nodes)}: {finding.message}; mend: {finding.mend}")},
            "locations": [{**location, **({"physicalLocation": physical} if physical else {})}],
            "partialFingerprints": {"finding/v1": "|".join(finding.key)},
        }
        if finding.waived:
            result["suppressions"] = [{"kind": "external", "justification": finding.waived}]
        results.append(result)
    driver = {"name": "fleet audit", "version": version, "rules": list(rules.values())}
    run = {
        "tool": {"driver": driver},
        "originalUriBaseIds": {"NODE": {"uri": "file:///"}},
        "results": results,
    }
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


# --- between two audits -------------------------------------------------------------------------------------


@dataclass
class Difference:
    """What has changed between two audits.

    :param new: finding → the nodes that have it now and had not; *gone* the other way round, of nodes that
        were asked both times.
    :param facts: (name, before, after) → nodes, such as ``("apptainer", "1.4.4", "1.4.5")``.
    :param joined: nodes that the first audit had not; *left* that the second has not.
    """

    before: Audit
    after: Audit
    new: dict[Finding, set[str]] = field(default_factory=dict)
    gone: dict[Finding, set[str]] = field(default_factory=dict)
    facts: dict[tuple[str, str, str], set[str]] = field(default_factory=dict)
    joined: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)

    @property
    def worse(self) -> bool:
        """Whether there is an error or a warning that there was not before."""
        return any(finding.counts in SEVERITIES[:2] for finding in self.new)


def compare(before: Audit, after: Audit) -> Difference:
    """Say what differs. A finding whose figures or lines have changed is the same one."""
    made = Difference(before, after, joined=after.nodes - before.nodes, left=before.nodes - after.nodes)
    # Nobody knows what became of the findings of a node that did not answer.
    silent = after.unreachable | before.unreachable
    for target, these, those in ((made.new, after, before), (made.gone, before, after)):
        known: dict[tuple[str, ...], set[str]] = {}
        for finding, nodes in those.found.items():
            known.setdefault((*finding.key, finding.counts), set()).update(nodes)
        for finding, nodes in these.found.items():
            rest = nodes - known.get((*finding.key, finding.counts), set())
            if finding.rule != "unreachable":
                rest -= silent
            if target is made.gone:
                rest -= made.left
            if rest:
                target[finding] = rest
    for node in before.facts.keys() & after.facts.keys():
        was, now = before.facts[node], after.facts[node]
        for name in was.keys() | now.keys():
            if was.get(name) != now.get(name):
                change = name, was.get(name, "none"), now.get(name, "none")
                made.facts.setdefault(change, set()).add(node)
    return made


def difference_lines(made: Difference) -> Iterator[str]:
    """What people read."""
    yield f"from audit {made.before.number} ({made.before.when}) to {made.after.number} ({made.after.when})"
    for word, found in (("NEW", made.new), ("GONE", made.gone)):
        for finding, nodes in sorted(found.items(), key=lambda one: (one[0].rank, -len(one[1]), one[0].key)):
            told = _told(finding, fold(nodes))
            yield f"{word:4} {next(told)}"
            if word == "NEW":
                yield next(told)
    for (name, was, now), nodes in sorted(made.facts.items(), key=lambda one: (-len(one[1]), one[0])):
        yield printable(f"{fold(nodes)}: {name.replace('_', ' ')}: {was} → {now}")
    for word, nodes in (("JOINED", made.joined), ("LEFT", made.left)):
        if nodes:
            yield f"{word} {fold(nodes)}"
    if not (made.new or made.gone or made.facts or made.joined or made.left):
        yield "nothing has changed"


def difference_json(made: Difference) -> str:
    """The same as JSON."""

    def listed(found: dict[Finding, set[str]]) -> list[dict[str, Any]]:
        return [{**finding._asdict(), "nodes": sorted(nodes)} for finding, nodes in found.items()]

    return json.dumps(
        {
            "from": {"audit": made.before.number, "when": moment(made.before.at)},
            "to": {"audit": made.after.number, "when": moment(made.after.at)},
            "new": listed(made.new),
            "gone": listed(made.gone),
            "facts": [
                {"name": name, "was": was, "now": now, "nodes": sorted(nodes)}
                for (name, was, now), nodes in made.facts.items()
            ],
            "joined": sorted(made.joined),
            "left": sorted(made.left),
        },
        indent=1,
    )
