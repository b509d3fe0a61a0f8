# SPDX-License-Identifier: Apache-2.0
"""The scanner: judges all images below some folders, and writes down what it found.

It runs on a node, as a program of systemd's timer, with the same code that judges an image before it is
published. Its settings are one JSON file (`read` says what is in it), its results

* JSON, one line for each image: its verdict, ``time`` in seconds since 1970, and whether it was taken away;
* a text file for the textfile collector of Prometheus' node exporter.

Both are the old or the new ones, never a part.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from . import image_parameters, prometheus, typed
from .image_check import Checker
from .image_parameters import ParameterError
from .image_policy import Policy
from .image_rules import Verdict
from .image_store import Store, StoreError
from .prometheus import Gauge, single
from .typed import Field


class ScanError(Exception):
    """What keeps the scanner from its work; the message says why."""


@dataclass(frozen=True)
class Quarantine:
    """From which *stores* refused images are taken away; more than *limit* in one are left where they are."""

    stores: Tuple[str, ...]
    limit: int


@dataclass(frozen=True)
class Settings:
    """What is scanned, and what becomes of it. *judged* is what `image_parameters.checker` takes."""

    paths: Tuple[str, ...]
    results: str
    metrics: str
    patterns: Tuple[str, ...]
    jobs: int
    judged: Mapping[str, Any]
    quarantine: Optional[Quarantine] = None


def _anything(value: object) -> Any:
    return value


_FIELDS: Mapping[str, Field] = {
    "paths": Field(typed.items(typed.text(), least=1), required=True),
    "results": Field(typed.text(), required=True),
    "metrics": Field(typed.text(), required=True),
    "patterns": Field(typed.items(typed.text(), least=1), required=True),
    "jobs": Field(typed.integer(1), required=True),
    "quarantine": Field(
        typed.nested(
            {
                "stores": Field(typed.items(typed.text(), least=1), required=True),
                "limit": Field(typed.integer(1), required=True),
            },
            Quarantine,
        )
    ),
    # These are read by whoever uses them.
    "policy": Field(_anything, required=True),
    "lock": Field(_anything, required=True),
    "keyrings": Field(typed.items(typed.text()), required=True),
    # Empty for none.
    "cache": Field(_anything, required=True),
}


def read(data: object) -> Settings:
    """Read settings from the data that JSON gave. Raises ScanError, with everything that is wrong."""
    problems: List[str] = []
    good = typed.mapping(data, _FIELDS, "", problems)
    if problems:
        raise ScanError("\n".join(problems))
    judged = {key: good.pop(key) for key in ("policy", "lock", "keyrings", "cache")}
    return Settings(judged=judged, **good)


@dataclass
class Summary:
    """What was found. *findings* are numbers by rule and severity, *held* images too many to take away."""

    images: int = 0
    refused: int = 0
    quarantined: int = 0
    held: int = 0
    findings: Dict[Tuple[str, str], int] = field(default_factory=dict)

    def add(self, verdict: Verdict) -> None:
        """Count a verdict."""
        self.images += 1
        self.refused += verdict.refused()
        for one in verdict.findings:
            if not one.waived:
                key = (one.rule, one.severity)
                self.findings[key] = self.findings.get(key, 0) + 1


def scan(settings: Settings, clock: Callable[[], float] = time.time) -> Summary:
    """Judge all images, take away what is to be, and write what was found.

    Raises ScanError; results and metrics are the old ones then.
    """
    began = clock()
    summary = Summary()
    try:
        with image_parameters.checker(
            settings.judged, jobs=settings.jobs, patterns=settings.patterns
        ) as checker:
            verdicts = list(checker.check(settings.paths))
        for verdict in verdicts:
            summary.add(verdict)
        gone = _take_away(settings.quarantine, verdicts, summary)
        lines = (
            json.dumps({**verdict.as_dict(), "time": int(began), "quarantined": verdict.path in gone})
            for verdict in verdicts
        )
        _write(settings.results, lines)
        _write(settings.metrics, _metrics(summary, began, clock() - began))
    except (ParameterError, StoreError) as error:
        raise ScanError(str(error)) from error
    except OSError as error:
        raise ScanError(f"{error.filename}: {error.strerror}") from error
    return summary


def to_take_away(
    wanted: Optional[Quarantine], verdicts: Sequence[Verdict]
) -> Tuple[List[Tuple[Store, Verdict]], int]:
    """Return what is to go into quarantine, and how many images are too many for that.

    Raises StoreError if others than root could put files into a store, or it is not there.
    """
    chosen: List[Tuple[Store, Verdict]] = []
    held = 0
    for store in (Store(path, Checker(Policy())) for path in (wanted.stores if wanted else ())):
        refused = [
            verdict
            for verdict in verdicts
            # What lies in folders below is no image of the store.
            if verdict.refused()
            and os.path.realpath(Path(verdict.path).parent) == store.path
            and (Path(verdict.path).is_symlink() or not Path(verdict.path).is_dir())
        ]
        if wanted and len(refused) > wanted.limit:
            # So many at once are rather a mistake in the policy.
            held += len(refused)
        else:
            chosen += [(store, verdict) for verdict in refused]
    return chosen, held


def _take_away(wanted: Optional[Quarantine], verdicts: Sequence[Verdict], summary: Summary) -> Sequence[str]:
    """Put refused images of the stores into quarantine; return their paths."""
    chosen, summary.held = to_take_away(wanted, verdicts)
    gone = []
    for store, verdict in chosen:
        reason = "scan: " + "; ".join(map(str, verdict.counting()))
        # Another node may have been faster in a store that nodes share.
        if store.quarantine_file(Path(verdict.path).name, reason):
            gone.append(verdict.path)
    summary.quarantined = len(gone)
    return gone


def _metrics(summary: Summary, began: float, seconds: float) -> Iterator[str]:
    """Return the lines of the file of metrics."""
    images = [
        ({"verdict": "good"}, summary.images - summary.refused),
        ({"verdict": "refused"}, summary.refused),
    ]
    found = [
        ({"rule": rule, "severity": severity}, count)
        for (rule, severity), count in sorted(summary.findings.items())
    ]
    return prometheus.lines(
        [
            Gauge("_images", "Images that the last scan judged.", images),
            Gauge("_image_findings", "What the last scan found, and is not waived.", found),
            single("_image_scan_quarantined", "Images it put into quarantine.", summary.quarantined),
            single("_image_scan_held", "Images too many to be put into quarantine at once.", summary.held),
            single(
                "_image_scan_timestamp_seconds", "When the last scan began that came to its end.", int(began)
            ),
            single("_image_scan_seconds", "How long it took.", round(seconds, 3)),
        ]
    )


def _write(path: str, lines: Any) -> None:
    """Put lines of text at *path*, at once. The folder is made if it is missing. Raises OSError."""
    target = Path(path)
    if not target.parent.is_dir():
        target.parent.mkdir(parents=True)
        target.parent.chmod(0o755)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=str(target.parent))
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            for line in lines:
                file.write(f"{line}\n")
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).rename(target)
    except BaseException:
        Path(temporary).unlink()
        raise


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the scanner with the settings in the file that is its only argument; return its exit status.

    Images that are refused are no failure: 1 means that nobody knows.
    """
    (path,) = sys.argv[1:] if arguments is None else arguments
    try:
        settings = read(json.loads(Path(path).read_bytes()))
        summary = scan(settings)
    except (ScanError, ValueError) as error:
        print(f"image scan: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"image scan: {path}: {error.strerror}", file=sys.stderr)
        return 1
    words = [f"{summary.images} images", f"{summary.refused} refused", f"{summary.quarantined} in quarantine"]
    if summary.held:
        words.append(f"{summary.held} left where they are, which are more than the limit of the settings")
    print(f"image scan: {', '.join(words)}")
    return 0
