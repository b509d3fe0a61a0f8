"""Another run of site.yml disturbs nobody: not an administrator who drained a node, and no job."""

import pytest
from conftest import COMPUTE

REASON = "PSU 2 of c2 beeps; ticket #4711, J. Doe"


def services(node):
    """Return what systemd gives anew to each start of a unit; a daemon that reconfigures itself keeps it."""
    show = "systemctl show --property=InvocationID munge slurmctld slurmd"
    return {name: node(name).check_output(show) for name in ("head", *COMPUTE)}


@pytest.fixture
def drained(head, states):
    """A node that an administrator drained; yields what looks what Slurm says of it."""
    head.check_output("scontrol update nodename=c2 state=drain reason=%s", REASON)
    yield lambda: (states()["c2"], head.check_output("sinfo --noheader --Node --nodes=c2 --format=%%E"))
    head.check_output("scontrol update nodename=c2 state=resume")


@pytest.fixture
def job(head, as_alice):
    """A job on c1; yields what looks what Slurm says of it."""
    number = as_alice(head, "sbatch --parsable --nodelist=c1 --output=/dev/null --wrap='exec sleep 600'")
    yield lambda: head.check_output("squeue --noheader --jobs=%s --format=%%T", number.strip())
    head.check_output("scancel %s", number.strip())


def test_a_change_of_configuration_disturbs_no_job_and_no_drain(node, playbook, drained, job):
    assert drained() == ("drained", REASON)
    before = services(node)
    result = playbook("converge.yml", slurm_parameters={"MaxJobCount": 4711})
    assert result.code == 0, result.output
    assert "MaxJobCount             = 4711" in node("head").check_output("scontrol show config")
    assert services(node) == before
    assert job() == "RUNNING"
    assert drained() == ("drained", REASON)


def test_one_more_node_restarts_nothing_and_disturbs_no_job(node, playbook, job, tmp_path):
    """Of the new node there is a name and no machine, so the run is for the others."""
    one_more = tmp_path / "one-more.yml"
    groups = "{slurm_compute: {hosts: {c3: {lab_address: 10.77.31.13}}}}"
    one_more.write_text(f"all: {{children: {{scenario: {{children: {groups}}}}}}}\n")
    node("head").check_output("echo 10.77.31.13 c3 >> /etc/hosts")
    before = services(node)
    result = playbook("converge.yml", "--tags=slurm", f"--inventory={one_more}", "--limit=all:!c3")
    assert result.code == 0, result.output
    assert "NodeName=c3" in node("head").check_output("scontrol show node c3")
    assert services(node) == before
    assert job() == "RUNNING"


def test_a_configuration_that_slurm_refuses_gets_nowhere(head, playbook):
    before = head.file("/etc/slurm/slurm.conf").content
    result = playbook("converge.yml", "--tags=slurm", slurm_parameters={"MaxJobCuont": 4711})
    assert result.code != 0 and "MaxJobCuont" in result.output
    assert head.file("/etc/slurm/slurm.conf").content == before
    assert head.run("scontrol ping").rc == 0


def test_a_configuration_that_slurmctld_can_not_use_is_taken_back(head, playbook):
    """Commands can read it, so this shows only when slurmctld tries."""
    before = head.file("/etc/slurm/slurm.conf").content
    result = playbook("converge.yml", "--tags=slurm", slurm_parameters={"SchedulerType": "sched/nonsense"})
    assert result.code != 0 and "sched/nonsense" in result.output
    assert head.file("/etc/slurm/slurm.conf").content == before
    assert head.run("scontrol ping").rc == 0


def test_slurmctld_moves_to_another_port_and_the_nodes_follow(node, playbook, states):
    result = playbook("converge.yml", "--tags=slurm", slurm_parameters={"slurmctldport": "6900-6901"})
    assert result.code == 0, result.output
    assert node("head").socket("tcp://0.0.0.0:6900").is_listening
    assert node("c1").file("/etc/default/slurmd").contains("--conf-server head:6900")
    assert states() == dict.fromkeys(COMPUTE, "idle")


def test_what_an_interrupted_run_wrote_is_applied_by_a_run_for_one_node(node, head, playbook, states):
    """Commands look for slurmctld where it does not listen yet. This takes back what tests before changed."""
    c1 = node("c1")
    c1.check_output("echo ClusterName=old > /etc/slurm/slurm.conf")
    head.check_output("sed --in-place /ctld[Pp]ort/d /etc/slurm/slurm.conf")
    result = playbook("converge.yml", "--tags=slurm", "--limit=c1")
    assert result.code == 0, result.output
    assert not c1.file("/etc/slurm/slurm.conf").exists
    assert head.socket("tcp://0.0.0.0:6817").is_listening
    assert not head.socket("tcp://0.0.0.0:6900").is_listening
    assert states() == dict.fromkeys(COMPUTE, "idle")
