"""Module slurm_node on a real Slurm: whole hostlists, deadlines, and nobody else's drain.

Not rebooted: to Slurm a container has booted when this machine has, so it waits for a boot that it can't see.
"""

import json

import pytest
from conftest import REASON

OURS = "rack work: ticket 42"


@pytest.fixture
def nodes(node, playbook):
    """Run the module on both nodes; return its result, and whether it failed."""

    def run(state, *options, **more):
        result = playbook("nodes.yml", *options, module={"nodes": "c[1-2]", "state": state, **more})
        assert result.code == 0, result.output
        return json.loads(node("ctl1").file("/run/asked.json").content)

    return run


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


def test_every_json_of_this_release_is_understood(drained, said_the_same):
    """Those of 23.11, 24.05 and 24.11."""
    assert drained() == f"drained {REASON}"
    assert {"v0.0.40", "v0.0.41", "v0.0.42"} <= said_the_same()
