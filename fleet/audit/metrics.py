"""An audit as metrics, for Prometheus on the controller."""

from __future__ import annotations

from collections import Counter

from fleet.audit.model import UNKNOWN, Audit
from module_utils import prometheus
from module_utils.prometheus import Gauge, single


def render(audit: Audit, inventory: str) -> str:
    """The file for the textfile collector; every value has the label ``inventory``."""
    bad, silent = audit.bad_nodes(), audit.unreachable
    states = {
        "good": len(audit.nodes - bad),
        "bad": len(bad - silent),
        "unreachable": len(silent),
    }
    found: Counter[tuple[str, str]] = Counter()
    waived: Counter[str] = Counter()
    for finding, nodes in audit.found.items():
        if finding.waived:
            waived[finding.source] += len(nodes)
        else:
            found[finding.source, finding.severity] += len(nodes)
    versions = Counter(facts.get("apptainer", UNKNOWN) for facts in audit.facts.values())
    profiles = Counter(
        (facts["profile"], facts.get("profile_holds", UNKNOWN))
        for facts in audit.facts.values()
        if "profile" in facts
    )
    images = [
        ({"store": store["id"], "verdict": verdict}, count)
        for store in audit.stores
        if "images" in store
        for verdict, count in (("good", store["images"] - store["refused"]), ("refused", store["refused"]))
    ]
    return prometheus.text(
        [
            single("_audit_timestamp_seconds", "When the last audit began.", int(audit.at)),
            Gauge(
                "_audit_nodes",
                "Nodes, by how they are.",
                [({"state": name}, n) for name, n in states.items()],
            ),
            Gauge(
                "_audit_findings",
                "Findings that are not waived, each counted once for each node.",
                [({"source": one, "severity": two}, n) for (one, two), n in sorted(found.items())],
            ),
            Gauge(
                "_audit_waived",
                "Findings that are waived.",
                [({"source": one}, n) for one, n in sorted(waived.items())],
            ),
            Gauge(
                "_audit_versions",
                "Nodes, by the version of Apptainer.",
                [({"apptainer": one}, n) for one, n in sorted(versions.items())],
            ),
            Gauge(
                "_audit_profiles",
                "Nodes, by security profile and whether it holds.",
                [({"profile": one, "holds": two}, n) for (one, two), n in sorted(profiles.items())],
            ),
            Gauge("_audit_images", "Images, by store and verdict; alike local stores count once.", images),
        ],
        inventory=inventory,
    )
