# SPDX-License-Identifier: Apache-2.0
"""What Prometheus is told of a node: its health, its last pull, and its last converge.

The health program writes it whenever it has looked at everything. What is not there, such as a pull on a node
that does not, has no metric.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, List, Mapping

from . import atomic_file, node_record, prometheus, pull
from .prometheus import Gauge, single


def write(path: str, checks: Mapping[str, Mapping[str, Any]], now: float) -> None:
    """Write what *checks* found (`node_health.Report.checks`) at the time *now*, and the rest.

    Raises OSError.
    """
    Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    gauges = [*health(checks, now), *last_pull(pull.RESULT), *last_converge(node_record.PATH)]
    atomic_file.replace(path, prometheus.text(gauges).encode(), 0o644)


def health(checks: Mapping[str, Mapping[str, Any]], now: float) -> List[Gauge]:
    """Return what the health checks found."""
    return [
        single(
            "_node_healthy",
            "Whether all health checks are well.",
            int(all(one["ok"] for one in checks.values())),
        ),
        Gauge(
            "_node_health_check",
            "Whether this health check is well.",
            [({"check": name}, int(bool(one["ok"]))) for name, one in checks.items()],
        ),
        Gauge(
            "_node_health_check_seconds",
            "How long it took.",
            [({"check": name}, one["seconds"]) for name, one in checks.items()],
        ),
        single("_node_health_timestamp_seconds", "When the health checks were made.", int(now)),
    ]


def last_pull(path: str) -> List[Gauge]:
    """Return how the last pull ended, of the file *path*; nothing if there is none."""
    try:
        result = json.loads(atomic_file.read(path) or b"")
        outcome, converged = str(result["outcome"]), result.get("converged") or {}
        gauges = [
            Gauge("_pull_outcome", "How the last pull ended.", [({"outcome": outcome}, 1)]),
            single("_pull_timestamp_seconds", "When it began.", _seconds(result["when"])),
            single("_pull_seconds", "How long it took.", float(result["duration"])),
        ]
        if converged:
            text = "When the last pull began after which the node had converged."
            gauges.append(single("_pull_converged_timestamp_seconds", text, _seconds(converged["when"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return gauges


def last_converge(path: str) -> List[Gauge]:
    """Return what the record *path* says of the last whole converge; nothing if there is none."""
    try:
        _, state = node_record.read((atomic_file.read(path) or b"").decode())
        changed = Path(path).stat().st_mtime
        version = str(state["packages"].get("apptainer", ""))
    except (OSError, ValueError, KeyError, AttributeError):
        return []
    text = "When what a whole converge leaves on the node was last another than before."
    return [
        single("_record_timestamp_seconds", text, int(changed)),
        Gauge(
            "_record_info", "The version that the last whole converge left.", [({"apptainer": version}, 1)]
        ),
    ]


def _seconds(when: str) -> int:
    return int(datetime.datetime.fromisoformat(when).timestamp())
