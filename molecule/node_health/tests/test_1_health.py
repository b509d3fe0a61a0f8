"""Nodes judge themselves: what is broken drains its node with the name of the check, nothing else does."""

import contextlib
import json
import time

import pytest
from conftest import COMPUTE, LOOK, PROGRAM

FOREIGN = "bad DIMM in slot A1 [ticket 42]"

#: What is broken: the check, what breaks it, what heals it, and what the Reason says.
BROKEN = {
    "writable": (
        "mount -o remount,ro /srv/small",
        "mount -o remount,rw /srv/small",
        "/srv/small is read-only",
    ),
    "disk": ("fallocate -l 1000K /srv/small/big", "rm /srv/small/big", "% free, less than 10"),
    "clock": ("echo 3.5 > /srv/clock", "echo 0.001 > /srv/clock", "the clock is off by 3.500 s"),
    "mounts": (
        "umount /srv/scratch_sim",
        "systemctl restart scratch_sim",
        "/srv/scratch_sim is not mounted",
    ),
    "devices": (
        "mv /dev/nvidia0 /dev/away",
        "mv /dev/away /dev/nvidia0",
        "/dev/nvidia[0-9]: there are 0 devices, not 1",
    ),
    "commands": (
        "touch /srv/nhc_sim.broken",
        "rm /srv/nhc_sim.broken",
        "nhc_sim failed (1): ERROR: nhc_sim: check_it: broken",
    ),
    # Of what Apptainer reads, a digest is kept: the container is run again at once.
    "container": (
        "sed -i.good 's/^bind path = .*/bind path = \\/no\\/such/' /etc/apptainer/apptainer.conf",
        "mv /etc/apptainer/apptainer.conf.good /etc/apptainer/apptainer.conf",
        "no container runs on this node",
    ),
    "apptainer": (
        "mv /usr/bin/apptainer /usr/bin/away",
        "mv /usr/bin/away /usr/bin/apptainer",
        "apptainer is not installed",
    ),
}


@contextlib.contextmanager
def broken(host, check):
    """Break something on a node for a while."""
    host.check_output(BROKEN[check][0])
    try:
        yield
    finally:
        host.check_output(BROKEN[check][1])


def test_healthy_nodes_are_idle_and_slurmd_runs_the_program(head, node, slurm):
    slurm.quiet()
    said = head.check_output("scontrol show config")
    assert f"HealthCheckProgram      = {PROGRAM}" in said and "HealthCheckInterval     = 3600 sec" in said
    for name in COMPUTE:
        found = json.loads(node(name).check_output(LOOK))
        assert found["healthy"] and found["node"] == name
        assert set(found["checks"]) == {*BROKEN, "user_namespaces"}


@pytest.mark.parametrize("check", BROKEN)
def test_what_is_broken_drains_its_node_by_name(node, slurm, check):
    c1 = node("c1")
    with broken(c1, check):
        ended = c1.run(PROGRAM)
        assert ended.rc == 1 and f"error: node_health: {check}: " in ended.stderr
        assert BROKEN[check][2] in slurm.drained("c1") and slurm.drained("c1").startswith(
            f"node_health: {check}"
        )
    healed = c1.run(PROGRAM)
    assert healed.rc == 0, healed.stderr
    assert not slurm.drained("c1") and not slurm.drained("c2")


def test_a_mount_that_hangs_is_bounded_and_named(node, slurm):
    c1 = node("c1")
    c1.check_output("pkill -STOP squashfuse")
    try:
        ended = c1.run(f"timeout 20 {PROGRAM}")
        assert ended.rc == 1
        assert "error: node_health: mounts: /srv/scratch_sim did not answer within 2 seconds" in ended.stderr
        assert slurm.drained("c1").startswith("node_health: mounts: /srv/scratch_sim did not answer")
    finally:
        c1.check_output("pkill -CONT squashfuse")
    assert c1.run(PROGRAM).rc == 0 and not slurm.drained("c1")


@pytest.mark.parametrize("reason", [FOREIGN, "node_health: disk: /tmp has 1 % free"])
def test_a_node_drained_by_somebody_else_stays_drained(head, node, slurm, reason):
    c1 = node("c1")
    head.check_output("scontrol update nodename=c1 state=drain reason=%s", reason)
    keys = ("reason", "reason_set_by_user", "reason_changed_at")
    before = {key: slurm.node("c1")[key] for key in keys}
    try:
        assert c1.run(PROGRAM).rc == 0
        with broken(c1, "clock"):
            assert c1.run(PROGRAM).rc == 1
        assert c1.run(PROGRAM).rc == 0
        assert {key: slurm.node("c1")[key] for key in keys} == before
        assert slurm.drained("c1") == reason
    finally:
        head.check_output("scontrol update nodename=c1 state=undrain")
    slurm.quiet()


def test_a_drain_to_which_a_person_has_added_a_word_is_that_persons(head, node, slurm):
    c1 = node("c1")
    with broken(c1, "disk"):
        c1.run(PROGRAM)
    reason = f"{slurm.drained('c1')} Bob looks at it"
    head.check_output("scontrol update nodename=c1 reason=%s", reason)
    assert c1.run(PROGRAM).rc == 0 and slurm.drained("c1") == reason
    head.check_output("scontrol update nodename=c1 state=undrain")
    slurm.quiet()


def test_it_stays_drained_through_the_playbook_of_the_site(head, node, slurm, playbook):
    head.check_output("scontrol update nodename=c1 state=drain reason=%s", FOREIGN)
    # With another parameter, so that slurmctld is reconfigured, and every slurmd with it.
    result = playbook("converge.yml", node_health_interval=5)
    assert result.code == 0, result.output
    node("c1").check_output(PROGRAM)
    time.sleep(12)  # slurmd has run it, too
    data = slurm.node("c1")
    assert (data["state"], data["reason"], data["reason_set_by_user"]) == (["IDLE", "DRAIN"], FOREIGN, "root")
    head.check_output("scontrol update nodename=c1 state=undrain")
    slurm.quiet()


def test_slurm_finds_out_by_itself_and_is_told_when_it_is_over(node, slurm):
    with broken(node("c2"), "clock"):
        slurm.wait_until(
            lambda: slurm.drained("c2").startswith("node_health: clock: the clock is off by 3.5")
        )
        assert slurm.node("c2")["reason_set_by_user"] == "root" and not slurm.drained("c1")
    slurm.wait_until(lambda: not slurm.drained("c2"))


def test_slurmd_does_not_start_on_a_node_that_boots_unhealthy(node, slurm):
    slurm.quiet()
    node("c2").check_output("echo 9 > /srv/clock")
    # Power off and on again, as systemd sees it.
    node("c2").run("systemctl stop slurmd; rm -f /run/apptainer-fleet/node-health.passed")
    started = node("c2").run("systemctl start slurmd")
    assert started.rc != 0
    assert not node("c2").service("slurmd").is_running
    said = node("c2").check_output("journalctl --quiet --output=cat --unit=slurmd --since=-1min")
    assert "error: node_health: clock: the clock is off by 9.000 s" in said
    node("c2").check_output("echo 0 > /srv/clock")
    # It looks again by itself.
    slurm.wait_until(lambda: node("c2").service("slurmd").is_running)
    slurm.quiet()
    # Only at boot: a restart on a node that has become unhealthy loses no jobs; it is drained.
    with broken(node("c2"), "clock"):
        node("c2").check_output("systemctl restart slurmd")
        slurm.wait_until(lambda: slurm.drained("c2").startswith("node_health: clock"))
    slurm.wait_until(lambda: not slurm.drained("c2"))
