"""After a boot: LNet after the network, mounts after LNet, slurmd after the mounts."""

import contextlib
import time

from conftest import HOME, SCRATCH

BEGUN = "systemctl show -p UserspaceTimestamp --value"
UNITS = ("network-online.target", "lnet.service", "lustre-home.mount", "slurmd.service")


def booted(c1):
    """When the node was booted, empty while it can't say."""
    with contextlib.suppress(RuntimeError):  # what testinfra calls a connection that fails
        return c1.run(BEGUN).stdout.strip()
    return ""


def test_a_boot_brings_everything_in_its_order_and_the_node_back(c1, slurm):
    slurm.quiet()
    before = booted(c1)
    c1.run("systemd-run --on-active=1 systemctl reboot")
    deadline = time.monotonic() + 120
    while booted(c1) in ("", before):
        assert time.monotonic() < deadline, "the node did not come back"
        time.sleep(1)
    c1.check_output("timeout 90 sh -c 'until systemctl --quiet is-active slurmd; do sleep 1; done'")
    shown = c1.check_output("systemctl show -p ActiveEnterTimestampMonotonic --value " + " ".join(UNITS))
    network, lnet, home, slurmd = (int(value) for value in shown.split())
    assert 0 < network <= lnet <= home <= slurmd
    assert (
        c1.check_output("systemctl show -p Requires -p After lustre-scratch.mount").count("lnet.service") == 2
    )
    # The automount waits until somebody looks.
    assert c1.check_output("systemctl is-active lustre-scratch.automount") == "active"
    assert c1.check_output(f"cat {SCRATCH}/README {HOME}/README").count("of the file system") == 2
    slurm.quiet()
