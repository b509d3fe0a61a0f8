"""More than a controller and nodes: a backup, slurmdbd, a login node, switches, devices, records."""

import subprocess
import sys

import pytest
from conftest import NODES, wait_for


def test_both_controllers_run_and_the_first_is_in_charge(login):
    said = login.check_output("scontrol ping").splitlines()
    assert said == ["Slurmctld(primary) at ctl1 is UP", "Slurmctld(backup) at ctl2 is UP"]


def test_a_user_of_the_login_node_runs_jobs_which_are_accounted_for(node, login, alice):
    assert not login.file("/etc/slurm/slurm.conf").exists
    assert sorted(alice("srun --nodes=2 hostname").split()) == ["c1", "c2"]
    job = alice("sbatch --parsable --wait --output=/dev/null --wrap='exit 3'; true")
    show = f"sacct --noheader --parsable2 --allocations --jobs={job} --format=User,State,ExitCode"
    wait_for(lambda: alice(show) == "alice|FAILED|3:0", 30, lambda: alice(show))
    files = [node(name).file("/run/slurm/conf/slurm.conf").content for name in ("login", "c1")]
    assert files == [node("ctl1").file("/etc/slurm/slurm.conf").content] * 2


def test_slurmctld_knows_the_switches(node, alice):
    said = node("ctl1").check_output("scontrol show topology")
    assert "SwitchName=leaf1 Level=0 LinkSpeed=1 Nodes=c1" in said
    assert "SwitchName=root Level=1 LinkSpeed=1 Nodes=c[1-2] Switches=leaf1,leaf2" in said
    show = "srun --nodelist=c2 sh -c 'echo $SLURM_TOPOLOGY_ADDR $SLURM_TOPOLOGY_ADDR_PATTERN'"
    assert alice(show) == "root.leaf2.c2 switch.switch.node"


def test_devices_are_those_that_the_nodes_have(node, alice):
    assert node("ctl1").file("/etc/slurm/gres.conf").content_string.splitlines()[1:] == [
        "NodeName=c1 Name=gpu Type=sim File=/dev/nvidia[0-1] Flags=nvidia_gpu_env",
        "NodeName=c2 Name=tpu File=/dev/accel0",
    ]
    show = "sh -c 'echo $(hostname) $CUDA_VISIBLE_DEVICES$SLURM_STEP_GPUS'"
    assert alice(f"srun --partition=accelerated --gres=gpu:sim:1 {show}") == "c1 00"
    assert alice(f"srun --partition=accelerated --gres=tpu:1 {show}") == "c2"
    assert "drain" not in alice("sinfo --noheader")


@pytest.fixture(scope="module")
def check(lab_state):
    """Run ``fleet check``; return its exit status and what it says."""
    inventory = f"{__file__.rpartition('/tests/')[0]}/inventory"

    def run():
        argv = [sys.executable, "-m", "fleet", "check", "-i", inventory]
        ended = subprocess.run(argv, capture_output=True, text=True, check=False)
        return ended.returncode, ended.stdout + ended.stderr

    return run


def test_every_node_of_slurm_is_on_record(node, check):
    """Also those that have no Apptainer: slurmdbd and login nodes."""
    for name in NODES:
        assert node(name).file("/var/lib/apptainer-fleet/record.json").exists
    code, said = check()
    assert code == 0, said


@pytest.mark.parametrize(
    ("name", "path"), [("db", "/etc/slurm/slurmdbd.conf"), ("login", "/etc/default/sackd")]
)
def test_a_change_on_them_is_found(node, check, name, path):
    node(name).check_output("cp --preserve %s /root/kept && echo '# by hand' >> %s", path, path)
    try:
        code, said = check()
        assert code != 0 and path in said and name in said
    finally:
        node(name).check_output("cp --preserve /root/kept %s", path)
