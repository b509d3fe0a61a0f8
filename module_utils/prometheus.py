# SPDX-License-Identifier: Apache-2.0
"""Metrics as Prometheus reads them, for files of the textfile collector of its node exporter.

Source: the text exposition format, https://prometheus.io/docs/instrumenting/exposition_formats/. Lines
have no time stamps: the collector refuses files with some.
"""

from __future__ import annotations

from typing import Iterable, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

#: All names begin with it.
PREFIX = "apptainer_fleet"


class Gauge(NamedTuple):
    """A metric: its *name* without the prefix, what it is, and (labels, value) for each of its values."""

    name: str
    help: str
    values: Sequence[Tuple[Mapping[str, str], float]]


def single(name: str, text: str, value: float) -> Gauge:
    """Return a metric that has one value, and no labels."""
    return Gauge(name, text, [({}, value)])


def lines(gauges: Iterable[Gauge], **common: str) -> Iterator[str]:
    """Yield the lines of a file. *common* are labels of all values. A metric without a value is left out."""
    for gauge in gauges:
        name = f"{PREFIX}{gauge.name}"
        if gauge.values:
            yield f"# HELP {name} {gauge.help}"
            yield f"# TYPE {name} gauge"
        for labels, value in gauge.values:
            pairs = ",".join(f'{key}="{_escaped(one)}"' for key, one in {**common, **labels}.items())
            yield f"{name}{f'{{{pairs}}}' if pairs else ''} {value}"


def text(gauges: Iterable[Gauge], **common: str) -> str:
    """Return the content of a file, as `lines`."""
    made: List[str] = list(lines(gauges, **common))
    return "".join(f"{line}\n" for line in made)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
