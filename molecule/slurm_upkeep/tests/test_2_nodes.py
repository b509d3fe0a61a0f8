"""Module slurm_node on a real Slurm: whole hostlists, boots, deadlines, and nobody else's drain."""

import json

import pytest
from conftest import COMPUTE, REASON, wait_for

OURS = "rack work: ticket 42"
DROP_IN = "/etc/systemd/system/slurmd.service.d/boot.conf"
SAY_BOOT = f"""\
set -e
mkdir -p $(dirname {DROP_IN})
cat > {DROP_IN} <<'END'
[Service]
ExecStart=
ExecStart=/usr/sbin/slurmd --systemd -b $SLURMD_OPTIONS
END
systemctl daemon-reload
"""
SAY_NO_BOOT = f"rm {DROP_IN} && systemctl daemon-reload && systemctl restart slurmd"


@pytest.fixture
def nodes(node, playbook):
    """Run the module on both nodes; return its result, and whether it failed."""

    def run(state, *options, **more):
        result = playbook("nodes.yml", *options, module={"nodes": "c[1-2]", "state": state, **more})
        assert result.code == 0, result.output
        return json.loads(node("ctl1").file("/run/asked.json").content)

    return run


@pytest.fixture(scope="module")
def boots(node):
    """Return what each node calls its boot, which is another one after it; empty while nobody can log in.

    A container has the uptime of the machine that it is on, by which Slurm would never see that it booted.
    With -b slurmd says when it was started itself; only here, as each restart would be an unexpected boot.
    """
    for name in COMPUTE:
        node(name).check_output(SAY_BOOT)

    def boot(name):
        try:
            return node(name).run("cat /proc/sys/kernel/random/boot_id").stdout.strip()
        except RuntimeError:  # what testinfra calls a connection that fails
            return ""

    yield lambda: {name: boot(name) for name in COMPUTE}
    for name in COMPUTE:
        node(name).check_output(SAY_NO_BOOT)


def test_both_nodes_are_read_drained_and_resumed(nodes, login, idle):
    idle()
    read = nodes("info")["nodes"]
    assert {name: read[name]["state"] for name in read} == {"c1": "IDLE", "c2": "IDLE"}
    assert nodes("drained", "--check", reason=OURS)["changed_nodes"] == "c[1-2]"
    assert "drain" not in login.check_output("sinfo --noheader")
    done = nodes("drained", reason=OURS, timeout=30)
    assert done["changed_nodes"] == "c[1-2]" and done["nodes"]["c2"]["reason"] == OURS
    assert not nodes("drained", reason=OURS)["changed"]
    assert nodes("resumed", reason=OURS, timeout=30)["changed_nodes"] == "c[1-2]"
    idle()


def test_a_deadline_is_kept_while_a_job_runs(nodes, job, login, idle):
    done = nodes("drained", reason=OURS, timeout=2)
    assert done["failed"] and "c1" in done["msg"]
    assert job.lives()
    assert job.let_go() == "COMPLETED|0:0"
    assert not nodes("drained", reason=OURS, timeout=60)["failed"]
    nodes("resumed", reason=OURS, timeout=30)
    idle()


def test_a_drain_of_somebody_else_is_never_ended(nodes, drained, login):
    refused = nodes("drained", reason=OURS)
    assert refused["failed"] and REASON in refused["msg"]
    assert "drain" not in login.check_output("sinfo --noheader --nodes=c1")
    assert nodes("drained", reason=OURS, foreign="skip", timeout=30)["changed_nodes"] == "c1"
    done = nodes("resumed", reason=OURS, foreign="skip", timeout=30)
    assert (done["changed_nodes"], done["foreign_nodes"]) == ("c1", "c2")
    assert drained() == f"drained {REASON}"


def test_nodes_boot_and_are_back_as_they_were(nodes, boots, idle):
    """The drain that is ours stays; who had none takes jobs."""
    nodes("drained", nodes="c2", reason=OURS, timeout=30)
    before = boots(), nodes("info")["nodes"]
    assert nodes("rebooted", "--check", reason=OURS)["changed_nodes"] == "c[1-2]"
    assert boots() == before[0]
    done = nodes("rebooted", reason=OURS, timeout=180)
    assert not done["failed"] and done["changed_nodes"] == "c[1-2]", done
    after = boots()
    for name in COMPUTE:
        assert after[name] not in ("", before[0][name])
        assert done["nodes"][name]["boot_time"] > before[1][name]["boot_time"]
    assert (done["nodes"]["c1"]["drain"], done["nodes"]["c2"]["drain"]) == (False, True)
    assert done["nodes"]["c1"]["available"] and done["nodes"]["c2"]["reason"].startswith(OURS)
    assert nodes("resumed", reason=OURS, timeout=30)["changed_nodes"] == "c2"
    idle()


def test_a_node_boots_when_its_job_has_ended_and_one_of_somebody_else_does_not(
    *, nodes, boots, drained, job, login
):
    before = boots()
    refused = nodes("rebooted", reason=OURS, timeout=5)
    assert refused["failed"] and REASON in refused["msg"] and "nothing was done" in refused["msg"]
    late = nodes("rebooted", reason=OURS, foreign="skip", timeout=3)
    assert late["failed"] and "after 3 seconds, not rebooted: c1 is " in late["msg"]
    assert job.lives() and boots() == before
    assert job.let_go() == "COMPLETED|0:0"
    # Of this node alone: what sinfo has of all of them says mixed for minutes after such a boot.
    show = "scontrol show node c1"
    wait_for(
        lambda: boots()["c1"] not in ("", before["c1"]) and " State=IDLE " in login.run(show).stdout,
        120,
        lambda: login.run(show).stdout,
    )
    assert boots()["c2"] == before["c2"] and drained() == f"drained {REASON}"


def test_a_node_that_does_not_come_back_is_said(node, nodes, boots, idle):
    """It boots without slurmd."""
    before = boots()
    node("c1").check_output("systemctl disable slurmd")
    done = nodes("rebooted", nodes="c1", reason=OURS, timeout=40)
    assert done["failed"] and "after 40 seconds, not rebooted: c1 is " in done["msg"], done
    assert boots()["c1"] not in ("", before["c1"])
    node("c1").check_output("systemctl enable --now slurmd")
    idle()


def test_every_json_of_this_release_is_understood(drained, said_the_same):
    """Those of 23.11, 24.05 and 24.11."""
    assert drained() == f"drained {REASON}"
    assert {"v0.0.40", "v0.0.41", "v0.0.42"} <= said_the_same()
