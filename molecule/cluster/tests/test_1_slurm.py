"""The nodes are one Slurm cluster, which an ordinary user uses from any of them."""

import pytest
from ClusterShell.NodeSet import NodeSet
from conftest import COMPUTE

from module_utils import slurm_hardware


def test_all_nodes_are_idle(states):
    assert states() == dict.fromkeys(COMPUTE, "idle")


@pytest.mark.parametrize("where", ["head", "c1"])
def test_a_user_runs_on_both_nodes(node, as_alice, where):
    said = as_alice(node(where), "srun --nodes=2 sh -c 'echo $(hostname) $(id --user --name)'")
    assert sorted(said.splitlines()) == [f"{name} alice" for name in COMPUTE]


def test_only_the_controller_has_configuration_files(node, head):
    assert head.file("/etc/slurm/slurm.conf").mode == 0o644
    for name in COMPUTE:
        compute = node(name)
        for file in ("slurm.conf", "cgroup.conf", "gres.conf"):
            assert not compute.file(f"/etc/slurm/{file}").exists
        fetched = compute.file("/run/slurm/conf/slurm.conf")
        assert fetched.content == head.file("/etc/slurm/slurm.conf").content


def test_both_nodes_are_one_line(head):
    lines = head.file("/etc/slurm/slurm.conf").content_string.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("NodeName")] == ["NodeName=c[1-2]"]


def test_without_slurmd_the_same_hardware_is_read(node):
    """Check mode on a bare node reads the kernel's files; nodes of this lab share this machine's."""
    printed = node("c1").check_output("slurmd -C")
    assert slurm_hardware.parse_slurmd(printed) == slurm_hardware.read_kernel()


def test_what_was_not_asked_for_does_not_run(node, head):
    assert not head.service("slurmd").is_running
    assert not node("c1").service("slurmctld").is_running


@pytest.mark.parametrize("where", ["head", *COMPUTE])
def test_services_run_now_and_after_a_boot(node, where):
    host = node(where)
    for service in ("munge", "slurmctld" if where == "head" else "slurmd"):
        assert host.service(service).is_running and host.service(service).is_enabled
    assert "munge" not in host.check_output("systemctl --failed --plain --no-legend")
    assert "slurm" not in host.check_output("systemctl --failed --plain --no-legend")


def test_hostlists_mean_the_same_to_slurm(head):
    """What ClusterShell folds, Slurm unfolds; also paddings of two lengths, and digits in the middle."""
    names = ["c1", "c2", "c10", "n1", "n01", "n02", "r1n1", "r1n2", "r2n1", "r2n2", "a1-ib", "a2-ib", "login"]
    unfolded = head.check_output("scontrol show hostnames %s", str(NodeSet.fromlist(names)))
    assert sorted(unfolded.splitlines()) == sorted(names)
