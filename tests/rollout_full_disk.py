"""A rollout whose disk fills up in the middle of a batch: in a mount namespace, with a folder for a tmpfs."""

import contextlib
import subprocess
import sys
from pathlib import Path

from rollout_fakes import FakeClock, FakeCluster, FakeNode, make_plan

from fleet.rollout.driver import Driver
from fleet.rollout.journal import Journal, JournalError

folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
journal, plan = Journal(folder / "j"), make_plan(["c1", "c2", "c3"])
journal.begin(plan)
cluster = FakeCluster({name: FakeNode() for name in plan.nodes})


def fill(point: str) -> None:
    """Leave no room for a byte."""
    if point == "apply: before":
        with (folder / "fill").open("wb", buffering=0) as file:
            for size in (65536, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * size)


cluster.hook = fill
try:
    Driver(plan, journal, cluster, cluster, clock=FakeClock()).run()
    sys.exit("it did not end")
except JournalError as error:
    print(error)
print("held:", *(name for name, node in cluster.nodes.items() if node.held))
cluster.hook = lambda _: None
(folder / "fill").unlink()
print(Driver(plan, journal, cluster, cluster, clock=FakeClock()).run("resume"))
print("held:", *(name for name, node in cluster.nodes.items() if node.held))
print(*cluster.violations, *(node.applied for node in cluster.nodes.values()))
