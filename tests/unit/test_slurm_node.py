"""The module slurm_node: what it asks of Slurm, what it says, and what it leaves alone."""

import pytest
from slurm_sim import Cluster

REASON = "fleet rollout 7"


@pytest.fixture
def cluster():
    return Cluster.of("c[1-4]")


@pytest.fixture
def module(ansible_module, cluster, monkeypatch):
    runner = ansible_module("slurm_node")
    monkeypatch.setattr(runner.plugin.AnsibleModule, "run_command", lambda _, argv, **__: cluster.run(argv))
    # Time passes only here.
    now = [0.0]
    monkeypatch.setattr(
        runner.plugin.slurm_nodes.wait,
        "__kwdefaults__",
        {"interval": 2.0, "sleep": lambda s: now.__setitem__(0, now[0] + s), "clock": lambda: now[0]},
    )
    return runner


def test_info_shows_nodes_and_changes_nothing(module, cluster):
    cluster.drain("c2", "disk dies", "bob")
    result = module(nodes="c[1-2]")
    assert not result["changed"] and not cluster.updates
    assert result["nodes"]["c1"]["available"] and result["nodes"]["c1"]["state"] == "IDLE"
    assert result["nodes"]["c2"] == {
        "state": "IDLE+DRAIN",
        "drain": True,
        "busy": False,
        "available": False,
        "reason": "disk dies",
        "user": "bob",
        "changed_at": 0,
        "boot_time": 0,
        "slurmd_start_time": 0,
        "version": "",
        "partitions": [],
    }


def test_drained_in_one_call_with_a_diff_and_only_once(module, cluster):
    result = module(nodes="c[1-3]", state="drained", reason=REASON)
    assert result["changed"] and result["changed_nodes"] == "c[1-3]" and result["nodes"]["c3"]["drain"]
    assert result["diff"][0]["before"].splitlines()[0] == "c1: no drain"
    assert result["diff"][0]["after"].splitlines()[0] == f"c1: drain, {REASON}"
    assert len(cluster.updates) == 1
    again = module(nodes="c[1-3]", state="drained", reason=REASON)
    assert not again["changed"] and again["changed_nodes"] == "" and again["diff"] == []
    assert len(cluster.updates) == 1


@pytest.mark.parametrize("state", ["drained", "resumed", "rebooted"])
def test_the_drain_of_somebody_else_fails_before_anything_is_done(module, cluster, state):
    cluster.drain("c1", REASON)
    cluster.drain("c[2-3]", "disk dies", "bob")
    result = module(nodes="c[1-4]", state=state, reason=REASON)
    assert (
        result["failed"] and "c[2-3] is IDLE+DRAIN by bob for 'disk dies': nothing was done" in result["msg"]
    )
    assert not cluster.updates and sorted(result["nodes"]) == ["c2", "c3"]


@pytest.mark.parametrize("state", ["drained", "resumed", "rebooted"])
def test_or_is_left_alone(module, cluster, state):
    cluster.drain("c1", REASON)
    cluster.drain("c2", "disk dies", "bob")
    before = cluster.nodes["c2"]
    result = module(nodes="c[1-4]", state=state, reason=REASON, foreign="skip")
    assert result["changed"] and result["foreign_nodes"] == "c2" and cluster.nodes["c2"] == before


def test_check_mode_predicts_and_does_nothing(module, cluster):
    cluster.drain("c1", REASON)
    for state in ("drained", "resumed", "rebooted"):
        predicted = module(check=True, nodes="c[1-2]", state=state, reason=REASON)
        assert predicted["changed"] and not cluster.updates
    predicted = module(check=True, nodes="c[1-2]", state="resumed", reason=REASON)
    done = module(nodes="c[1-2]", state="resumed", reason=REASON)
    assert predicted["changed_nodes"] == done["changed_nodes"] == "c1" and predicted["diff"] == done["diff"]


def test_resumed_means_that_nodes_take_jobs(module, cluster):
    cluster.drain("c[1-2]", REASON)
    cluster.change("c2", flags=cluster.nodes["c2"].flags | {"NOT_RESPONDING"})
    result = module(nodes="c[1-2]", state="resumed", reason=REASON, timeout=30)
    assert result["failed"] and result["msg"] == "after 30 seconds, not resumed: c2 is IDLE+NOT_RESPONDING"


def test_it_waits_until_jobs_have_ended(module, cluster):
    cluster.change("c1", base="MIXED")
    looks = []

    def meanwhile(argv):
        looks.append(argv)
        if len(looks) == 8:
            cluster.change("c1", base="IDLE")

    cluster.meanwhile = meanwhile
    assert (
        module(nodes="c1", state="drained", reason=REASON, timeout=600)["nodes"]["c1"]["state"]
        == "IDLE+DRAIN"
    )
    cluster.meanwhile = lambda argv: None
    cluster.change("c2", base="ALLOCATED")
    result = module(nodes="c2", state="drained", reason=REASON, timeout=600)
    assert result["failed"] and "after 600 seconds, not drained: c2 is ALLOCATED+DRAIN" in result["msg"]
    assert cluster.nodes["c2"].drain


def test_rebooted_means_booted_after_this(module, cluster):
    def meanwhile(argv):
        if cluster.updates:
            cluster.change("c1", base="IDLE", flags=frozenset(), boot_time=1000)

    cluster.meanwhile = meanwhile
    assert module(nodes="c1", state="rebooted", reason=REASON, timeout=600)["changed"]
    result = module(nodes="c2", state="rebooted", reason=REASON, timeout=600)
    assert result["failed"] and "not rebooted: c2 is DOWN+DRAIN+REBOOT_ISSUED" in result["msg"]


def test_an_unknown_node_is_an_error_and_nothing_is_touched(module, cluster):
    result = module(nodes="c[1-5]", state="drained", reason=REASON)
    assert result["failed"] and "Slurm has no node c5" in result["msg"] and not cluster.updates


@pytest.mark.parametrize(
    "arguments", [{}, {"reason": " "}, {"reason": "two\nlines"}, {"reason": REASON, "timeout": -1}]
)
def test_what_makes_no_sense_is_refused(module, cluster, arguments):
    assert module(nodes="c1", state="drained", **arguments)["failed"]
    assert not cluster.updates
