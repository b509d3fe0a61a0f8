"""Torque's commands over Slurm (Debian's slurm-wlm-torque): a container job by qsub, nodes by pbsnodes."""

import pytest

SCRIPT = """\
#!/bin/bash
#PBS -N container
#PBS -l nodes=1,walltime=00:02:00
exec > /tmp/said
apptainer exec /tmp/box.sif /bin/busybox sh -c 'echo "in $APPTAINER_NAME as $(/bin/busybox id -u)"'
"""
IMAGE = "mkdir -p box/bin && cp /bin/busybox box/bin/ && apptainer --quiet build --force box.sif box"


@pytest.fixture(scope="module")
def alice(head):
    """Run a shell command of a normal user on the controller, and return what it prints."""
    return lambda command: head.check_output("runuser --login alice --command %s", command).strip()


def test_a_container_job_by_qsub(head, node, slurm, alice):
    slurm.quiet()
    alice(IMAGE)
    alice("salloc --quiet --nodes=2 sbcast --force box.sif /tmp/box.sif")
    head.check_output("printf %%s %s > /home/alice/job.sh", SCRIPT)
    job = alice("qsub job.sh").split(".")[0]
    assert job.isdigit()
    assert "container" in alice("qstat")
    slurm.wait_until(lambda: not alice("squeue --noheader"))
    said = [node(name).run("cat /tmp/said").stdout.strip() for name in ("c1", "c2")]
    assert f"in box.sif as {alice('id -u')}" in said


def test_pbsnodes_shows_who_is_offline(head, slurm):
    slurm.quiet()
    assert "state = free" in head.check_output("pbsnodes c2")
    head.check_output("scontrol update nodename=c2 state=drain reason='rack work'")
    try:
        assert "state = offline" in head.check_output("pbsnodes c2")
    finally:
        head.check_output("scontrol update nodename=c2 state=undrain")
