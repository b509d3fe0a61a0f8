"""A node that is not of its class drains itself with the reason, whether it or its inventory is wrong."""

import contextlib
import json

import pytest
from conftest import LOOK

MISSING = "8 x nvidia H100 in its class, 2 there"


@contextlib.contextmanager
def away(host, *paths):
    """Take files of a node away for a while."""
    host.check_output("mkdir /srv/away")
    # At once: a health check that comes in between would name another number.
    host.check_output(f"mv {' '.join(paths)} /srv/away")
    try:
        yield
    finally:
        for path in paths:
            host.check_output("mv %s %s", f"/srv/away/{path.rpartition('/')[2]}", path)
        host.check_output("rmdir /srv/away")


def test_nodes_of_their_class_are_healthy(node, wait):
    for name in ("c1", "c2"):
        wait(name, drained=False)
        found = json.loads(node(name).check_output(LOOK.replace(" devices", "") if name == "c2" else LOOK))
        assert found["healthy"], found


def test_gpus_that_are_gone_drain_their_node_with_the_reason(node, wait):
    with away(node("c2"), *(f"/dev/nvidia{number}" for number in range(2, 8))):
        assert wait("c2", drained=True).startswith(f"node_health: hardware: {MISSING}")
        wait("c1", drained=False)
    wait("c2", drained=False)


def test_a_class_of_eight_on_a_node_with_two_drains_it_with_the_reason(wait, playbook):
    result = playbook(
        "converge.yml", "--tags=gpu,node_health", "--limit=c1,head", gpu_count=8, gpu_model="H100",
        gpu_accelerators=[],
    )  # fmt: skip
    # It goes on for the node, which is told to drain itself, and says so.
    assert result.code == 0, result.output
    assert f"c1: {MISSING}" in result.output
    assert wait("c1", drained=True).startswith(f"node_health: hardware: {MISSING}")
    assert playbook("converge.yml", "--tags=gpu,node_health", "--limit=c1,head").code == 0
    wait("c1", drained=False)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/dev/accel0", "devices: /dev/accel0: there are 0 devices, not 1"),
        (
            "/etc/apptainer/nvliblist.conf",
            "hardware: /etc/apptainer/nvliblist.conf: No such file or directory: --nv brings nothing",
        ),
    ],
)
def test_what_containers_need_is_looked_for(c1, wait, path, reason):
    with away(c1, path):
        assert wait("c1", drained=True).startswith(f"node_health: {reason}")
    wait("c1", drained=False)


def test_a_library_that_containers_need_is_looked_for(c1):
    line = c1.check_output("/sbin/ldconfig -p | grep 'libcuda.so.1 '")
    with away(c1, line.split()[-1]):
        found = json.loads(c1.run(LOOK).stdout)
    assert found["checks"]["hardware"]["message"].startswith(
        "libcuda.so.1 is not on this node: --nv brings it"
    )
