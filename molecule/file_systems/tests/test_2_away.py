"""A server that is away: everything ends in time, and containers that don't need it run."""

import json
import time

import pytest
from conftest import HOME, LOOK, PROGRAM, SCRATCH

CONTAINER = "/tmp/root"
#: As a user, in a container without the network's file systems in its own image.
RUN = f"timeout 40 apptainer exec {CONTAINER}"


@pytest.fixture(scope="module", autouse=True)
def image(node):
    """A container of busybox on both nodes."""
    for name in ("c1", "c2"):
        node(name).check_output(
            f"su alice -c 'mkdir -p {CONTAINER}/bin {CONTAINER}/etc && cp /bin/busybox {CONTAINER}/bin/ &&"
            f" cd {CONTAINER}/bin && for name in sh cat ls true touch; do ln -sf busybox $name; done'"
        )


def alice(host, command):
    """Run as a user. Apptainer ends with 255, which testinfra takes for a connection that failed."""
    return host.run(f"cd / && su alice -c {json.dumps(command)} || exit 1")


def bounded(host, command, seconds):
    """Run a command; fail if it takes longer, also where no signal would end it."""
    began = time.monotonic()
    done = host.run(command)
    assert time.monotonic() - began < seconds, command
    return done


def test_containers_see_what_is_mounted_and_what_an_automount_mounts_later(c1, node):
    c1.check_output("systemctl stop lustre-scratch.mount")
    assert "lustre_sim" not in c1.check_output(f"grep {SCRATCH} /proc/self/mountinfo")
    seen = alice(c1, f"{RUN} cat {SCRATCH}/README {HOME}/README")
    assert seen.stdout == "of the file system scratch\nof the file system home\n", seen.stderr
    assert "lustre_sim" in c1.check_output(f"grep {SCRATCH} /proc/self/mountinfo")
    # A node of another class has neither the file systems nor a bind of them.
    assert "lustre" not in node("c2").check_output("cat /etc/apptainer/apptainer.conf")
    assert alice(node("c2"), f"{RUN} true").rc == 0


def test_containers_start_while_nothing_can_be_mounted(c1):
    c1.check_output("mkdir -p /etc/lustre_client_sim && touch /etc/lustre_client_sim/mgs_down")
    c1.check_output("systemctl stop lustre-scratch.mount")
    try:
        assert alice(c1, f"{RUN} true").rc == 0
        failed = alice(c1, f"{RUN} cat {SCRATCH}/README")
        assert failed.rc != 0 and "of the file system" not in failed.stdout
        # The site's own way would have stopped every container: the mount point itself as a bind.
        direct = alice(c1, f"timeout 40 apptainer exec --bind {SCRATCH} {CONTAINER} true")
        assert direct.rc != 0
    finally:
        c1.check_output("rm /etc/lustre_client_sim/mgs_down")
    c1.check_output("systemctl reset-failed; ls /lustre/scratch")


def test_a_mount_that_never_ends_is_given_up(c1):
    c1.check_output("systemctl stop lustre-scratch.mount; touch /etc/lustre_client_sim/mount_hangs")
    try:
        assert bounded(c1, f"ls {SCRATCH}", 60).rc != 0
    finally:
        c1.check_output("rm /etc/lustre_client_sim/mount_hangs")
    c1.check_output("systemctl reset-failed; ls /lustre/scratch")


def test_a_hung_file_system_stops_nobody_who_does_not_need_it(c1, head, slurm, hung):
    # A process that a signal has ended is 255 to ssh.
    assert c1.check_output(f"timeout -s KILL 2 ls {SCRATCH}; echo $?") == "137"
    assert bounded(c1, f"cd / && su alice -c '{RUN} true' || exit 1", 30).rc == 0
    assert alice(c1, f"{RUN} cat {HOME}/README").stdout == "of the file system home\n"
    # Hooks of jobs: the job ends, its node is not drained.
    began = time.monotonic()
    job = head.run(f"cd / && su alice -c 'timeout 60 srun --chdir=/ --nodelist=c1 {RUN} true' || exit 1")
    assert job.rc == 0 and time.monotonic() - began < 40, job.stderr
    slurm.wait_until(lambda: slurm.node("c1")["state"] == ["IDLE"])


def test_facts_end_in_time_and_name_it(c1, playbook, hung):
    began = time.monotonic()
    found = playbook("facts.yml", "--limit", "c1")
    assert found.code == 0, found.output
    assert f"{SCRATCH} did not answer within 1 s" in " ".join(found.output.split())
    assert time.monotonic() - began < 40


def test_the_health_check_drains_the_node_by_name_and_heals_it(c1, slurm, hung):
    ended = bounded(c1, PROGRAM, 40)
    assert ended.rc == 1 and f"mounts: {SCRATCH} did not answer" in ended.stderr
    assert slurm.reason("c1").startswith("node_health: mounts: /lustre/scratch")


def test_a_healthy_node_says_so(c1, slurm):
    assert c1.run(PROGRAM).rc == 0
    found = json.loads(c1.check_output(LOOK))
    assert found["healthy"] and {"mounts", "lustre"} <= set(found["checks"])
    slurm.quiet()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("unhealthy", "lustre: lustre says of itself: NOT HEALTHY"),
        ("ni_down/ib0", "lustre: LNet's 10.77.104.11@o2ib is down"),
    ],
)
def test_what_lustre_and_lnet_say_of_themselves_counts(c1, fault, said):
    c1.check_output(f"mkdir -p /etc/lustre_client_sim/ni_down && touch /etc/lustre_client_sim/{fault}")
    try:
        ended = c1.run(f"{LOOK.replace(' --json', '')}")
    finally:
        c1.check_output(f"rm /etc/lustre_client_sim/{fault}")
    assert ended.rc == 1 and said in ended.stdout + ended.stderr
