"""The first controller ends, and nothing else does: the backup goes on with all jobs, drains and accounts."""

import pytest
from conftest import REASON, wait_for


def in_charge(host):
    return host.run("scontrol ping").stdout.splitlines()


def test_a_backup_takes_over_and_the_job_lives_on(node, login, alice, job, drained):
    """As if it had failed: it is killed, and nobody hands anything over."""
    ctl1 = node("ctl1")
    # slurmctld writes its state every few seconds.
    saved = "cd /srv/state/slurmctld && grep --quiet 4711 node_state && grep --quiet job.sh job_state"
    wait_for(lambda: ctl1.run(saved).succeeded)
    # By its number: containers share a tree of cgroups, in which systemd would kill those of others, too.
    ctl1.check_output("kill -KILL $(systemctl show --property=MainPID --value slurmctld)")
    try:
        assert in_charge(login)[0] == "Slurmctld(primary) at ctl1 is DOWN"
        wait_for(lambda: login.run("squeue").succeeded, 90)
        assert not ctl1.service("slurmctld").is_running
        assert job.lives()
        assert drained() == f"drained {REASON}"
        second = alice("sbatch --parsable --nodelist=c1 --output=/dev/null --oversubscribe --wrap='exit 0'")
        assert job.let_go() == "COMPLETED|0:0"
        show = f"sacct --noheader --parsable2 --allocations --jobs={second} --format=State"
        wait_for(lambda: alice(show) == "COMPLETED", 60, lambda: alice("squeue; sinfo"))
    finally:
        ctl1.check_output("systemctl start slurmctld")
        wait_for(lambda: in_charge(login) and all(line.endswith("UP") for line in in_charge(login)))
    assert drained() == f"drained {REASON}"


def test_the_first_controller_is_in_charge_again_and_knows_all(node, login, alice, job):
    numbers = [int(number) for number in alice("sacct --noheader --allocations --format=JobID").split()]
    assert int(job.number) == max(numbers)
    assert "c1" in alice("squeue --noheader --format=%N")
    assert job.let_go() == "COMPLETED|0:0"


def test_it_hands_over_when_asked_to(login, job):
    """Without a failure, before work on it; and takes over again when its service is started anew."""
    login.check_output("scontrol takeover")
    assert job.lives()
    node_state = in_charge(login)
    assert any("ctl2 is UP" in line for line in node_state), node_state


def test_another_run_mends_what_the_takeover_left(node, login, playbook):
    result = playbook("converge.yml", "--tags=slurm")
    assert result.code == 0, result.output
    wait_for(lambda: all(line.endswith("UP") for line in in_charge(login)), 60, lambda: in_charge(login))
    again = playbook("converge.yml", "--tags=slurm")
    assert again.code == 0 and set(again.changed.values()) == {0}, again.output


@pytest.mark.parametrize("name", ["ctl1", "ctl2"])
def test_a_folder_that_controllers_do_not_share_is_refused(node, playbook, name):
    """A backup that knows of no job would end them all."""
    before = node(name).check_output(
        "systemctl show --property=InvocationID slurmctld; cat /etc/slurm/slurm.conf"
    )
    result = playbook("converge.yml", "--tags=slurm", slurm_state_folder="/var/lib/apart")
    assert result.code != 0 and "ctl2" in result.output
    assert "mount one file system on all hosts of slurm_controller" in " ".join(result.output.split())
    after = node(name).check_output(
        "systemctl show --property=InvocationID slurmctld; cat /etc/slurm/slurm.conf"
    )
    assert after == before
