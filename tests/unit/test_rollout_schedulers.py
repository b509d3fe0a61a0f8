"""Slurm and PBS as rollouts ask them, on what their commands print."""

from __future__ import annotations

import json

import pytest
from ClusterShell.NodeSet import NodeSet
from rollout_fakes import make_plan

from fleet.rollout.commands import Paced
from fleet.rollout.pbs import Pbs, parse_openpbs, parse_torque
from fleet.rollout.scheduler import SchedulerError
from fleet.rollout.slurm import Slurm, parse_ends

NAMES = ["c1.example.org", "c2.example.org", "c3.example.org"]
PLAN = make_plan(NAMES)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch, request):
    """Pacing has a test of its own."""
    if "three_calls" not in request.node.name:
        monkeypatch.setattr("fleet.rollout.slurm.Paced", lambda run: run)


OURS = PLAN.reason("apptainer 2", 80)
FAILED = PLAN.reason("failed: x", 80)


class FakeScontrol:
    """slurmctld behind its commands; ``calls`` are the RPCs."""

    def __init__(self, **nodes):
        self.nodes = {
            name: {"state": ["IDLE"], "reason": "", "user": "", **node} for name, node in nodes.items()
        }
        self.calls = []

    def __call__(self, argv):
        self.calls.append(argv)
        if argv[:2] == ["scontrol", "show"]:
            listed = [
                {
                    "name": name,
                    "state": node["state"],
                    "reason": node["reason"],
                    "reason_set_by_user": node["user"],
                    "partitions": ["main"],
                    "boot_time": {"set": True, "infinite": False, "number": 7},
                }
                for name, node in self.nodes.items()
            ]
            return 0, json.dumps({"nodes": listed}), ""
        given = dict(word.split("=", 1) for word in argv[2:] if "=" in word)
        for name in ("c1", "c2", "c3"):
            node = self.nodes.get(name)
            if node is None or not self._names(given.get("nodename", argv[-1]), name):
                continue
            if "state" not in given and "reason" in given:
                node["reason"] = given["reason"]
            match given.get("state"):
                case "DRAIN":
                    node["state"] = [*dict.fromkeys([*node["state"], "DRAIN"])]
                    node["reason"], node["user"] = given["reason"], "root"
                case "UNDRAIN":
                    node["state"] = [word for word in node["state"] if word != "DRAIN"]
                case "RESUME":
                    node["state"] = ["IDLE"]
        return 0, "", ""

    @staticmethod
    def _names(hostlist, name):
        return name in NodeSet(hostlist)

    def updates(self):
        return [argv for argv in self.calls if argv[:2] != ["scontrol", "show"]]


def test_a_drain_right_behind_a_look_asks_no_second_time_and_a_later_one_does():
    scontrol, now = FakeScontrol(c1={}, c2={}, c3={}), [0.0]
    slurm = Slurm(scontrol, NAMES)
    slurm._run._clock = lambda: now[0]
    slurm.look()
    slurm.drain(NAMES[:1], OURS, PLAN)
    assert [argv[1] for argv in scontrol.calls] == ["show", "update"]
    # What was changed is seen, and what somebody does while we wait.
    slurm.drain(NAMES[1:2], OURS, PLAN)
    assert [argv[1] for argv in scontrol.calls] == ["show", "update"] * 2
    slurm.look()
    now[0] += 1
    scontrol.nodes["c3"].update(state=["IDLE", "DRAIN"], reason="fan", user="jdoe")
    slurm.drain(NAMES[2:], OURS, PLAN)
    assert scontrol.nodes["c3"]["reason"] == "fan"


def test_hosts_of_the_inventory_are_nodes_by_their_short_names():
    scontrol = FakeScontrol(
        c1={}, c2={"state": ["MIXED", "DRAIN"], "reason": "fan", "user": "jdoe"}, other={}
    )
    seen = Slurm(scontrol, NAMES).look()
    assert set(seen) == {"c1.example.org", "c2.example.org", "other"}
    assert seen["c1.example.org"].available
    second = seen["c2.example.org"]
    assert (second.held, second.busy, second.reason, second.by) == (True, True, "fan", "jdoe")
    assert len(scontrol.calls) == 1


@pytest.mark.parametrize(
    ("state", "user", "held", "up"),
    [
        (["IDLE"], "", False, True),
        (["IDLE", "NOT_RESPONDING"], "", False, False),
        (["DOWN", "NOT_RESPONDING"], "slurm", False, False),
        (["DOWN"], "slurm", False, False),
        (["DOWN"], "jdoe", True, False),
        (["DOWN", "DRAIN"], "root", True, True),
        (["DOWN", "DRAIN", "NOT_RESPONDING"], "root", True, False),
        (["IDLE", "FAIL"], "root", True, True),
        (["UNKNOWN"], "", False, False),
    ],
)
def test_states(state, user, held, up):
    seen = Slurm(FakeScontrol(c1={"state": state, "user": user, "reason": "x"}), NAMES).look()[
        "c1.example.org"
    ]
    assert (seen.held, seen.up) == (held, up)


def test_a_batch_is_drained_by_one_call_and_what_others_hold_keeps_its_reason():
    scontrol = FakeScontrol(c1={}, c2={"state": ["IDLE", "DRAIN"], "reason": "fan", "user": "root"}, c3={})
    Slurm(scontrol, NAMES).drain(NAMES, OURS, PLAN)
    assert scontrol.updates() == [["scontrol", "update", "nodename=c[1,3]", "state=DRAIN", f"reason={OURS}"]]
    assert scontrol.nodes["c2"]["reason"] == "fan"


def test_a_node_that_is_gone_does_not_keep_others_from_being_drained():
    scontrol = FakeScontrol(c1={}, c3={})
    Slurm(scontrol, NAMES).drain(NAMES, OURS, PLAN)
    assert scontrol.nodes["c1"]["reason"] == scontrol.nodes["c3"]["reason"] == OURS


def test_a_failed_node_gets_another_reason():
    scontrol = FakeScontrol(c1={"state": ["IDLE", "DRAIN"], "reason": OURS, "user": "root"})
    Slurm(scontrol, NAMES).drain(NAMES[:1], FAILED, PLAN)
    assert scontrol.nodes["c1"]["reason"] == FAILED


def test_only_own_drains_are_ended_and_one_call_does_it():
    held = {"state": ["IDLE", "DRAIN"], "reason": OURS, "user": "root"}
    scontrol = FakeScontrol(
        c1=held, c2={**held, "reason": make_plan(NAMES, id="r11").reason("x", 80)}, c3=held
    )
    Slurm(scontrol, NAMES).resume(NAMES, PLAN)
    assert scontrol.updates() == [["scontrol", "update", "nodename=c[1,3]", "state=UNDRAIN"]]


def test_a_colleague_ends_a_drain_of_the_same_rollout_and_none_that_somebody_has_added_to():
    held = {"state": ["IDLE", "DRAIN"], "reason": OURS, "user": "alice"}
    scontrol = FakeScontrol(c1=held, c2={**held, "reason": f"{OURS}, fan"}, c3={**held, "user": "root"})
    slurm = Slurm(scontrol, NAMES, user="bob")
    slurm.drain(NAMES[:1], FAILED, PLAN)
    assert scontrol.nodes["c1"]["reason"] == FAILED
    slurm.look()
    slurm.resume(NAMES, PLAN)
    assert [name for name, node in scontrol.nodes.items() if "DRAIN" in node["state"]] == ["c2"]


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        ("RebootProgram           = /usr/sbin/reboot\n", ""),
        ("RebootProgram           = (null)\n", "RebootProgram"),
        ("", "RebootProgram"),
    ],
)
def test_nodes_are_rebooted_only_where_slurm_can(shown, why):
    assert why in Slurm(lambda _: (0, shown, ""), NAMES).no_reboot()
    assert bool(Slurm(lambda _: (0, shown, ""), NAMES).no_reboot()) == bool(why)


def test_a_node_that_crashed_while_it_was_ours_is_resumed_from_down():
    scontrol = FakeScontrol(c1={"state": ["DOWN", "DRAIN"], "reason": OURS, "user": "root"})
    Slurm(scontrol, NAMES).resume(NAMES[:1], PLAN)
    assert scontrol.nodes["c1"]["state"] == ["IDLE"]


@pytest.mark.parametrize(("user", "reason"), [("slurm", "fleet"), ("jdoe", "mine")])
def test_new_nodes_that_slurm_set_down_can_be_drained_those_of_people_not(user, reason):
    scontrol = FakeScontrol(c1={"state": ["DOWN", "NOT_RESPONDING"], "reason": "mine", "user": user})
    plan = make_plan(NAMES, kind="provision")
    Slurm(scontrol, NAMES).drain(NAMES[:1], plan.reason("provision", 80), plan)
    assert scontrol.nodes["c1"]["reason"].startswith(reason)


def test_slurm_that_does_not_answer_is_an_error_that_is_waited_for():
    slurm = Slurm(lambda argv: (1, "", "Unable to contact slurm controller (connect failure)"), NAMES)
    for call in (slurm.look, slurm.ends, lambda: slurm.resume(NAMES, PLAN)):
        with pytest.raises(SchedulerError, match="Unable to contact"):
            call()


def test_ends_of_jobs():
    text = "c[1-2]|1-02:00:00\nc2|10:05\nc3|UNLIMITED\nc1|5:00:00\n|\nc4|INVALID\n"
    assert parse_ends(text) == {"c1": 93600.0, "c2": 93600.0, "c3": float("inf"), "c4": float("inf")}


# --- PBS ----------------------------------------------------------------------------------------------------

OPENPBS = {
    "nodes": {
        "c1": {"state": "free", "queue": "gpu"},
        "c2": {"state": "offline", "comment": OURS, "jobs": ["7.server"]},
        "c3": {"state": "down,offline", "comment": "fan"},
        "c4": {"state": "job-busy", "jobs": ["8.server"]},
    }
}
TORQUE = f"""<Data><Node><name>c1</name><state>free</state><properties>main,gpu</properties>
<status>boottime=1700000000,state=free</status></Node>
<Node><name>c2</name><state>offline</state><note>{OURS}</note><jobs>0/7.server</jobs></Node>
<Node><name>c3</name><state>down,offline</state><note>fan</note></Node></Data>"""


@pytest.mark.parametrize(
    "seen", [parse_openpbs(json.dumps(OPENPBS)), parse_torque(TORQUE)], ids=["openpbs", "torque"]
)
def test_nodes_of_pbs(seen):
    assert seen["c1"].available and "gpu" in seen["c1"].partitions
    assert (seen["c2"].held, seen["c2"].busy, seen["c2"].reason) == (True, True, OURS)
    assert (seen["c3"].held, seen["c3"].up, seen["c3"].reason) == (True, False, "fan")


@pytest.mark.parametrize(
    ("torque", "text", "drain", "resume"),
    [
        (
            False,
            json.dumps(OPENPBS),
            ["pbsnodes", "-o", "-C", OURS, "c1", "c2"],
            ["pbsnodes", "-r", "-C", "", "c2"],
        ),
        (True, TORQUE, ["pbsnodes", "-o", "-N", OURS, "c1", "c2"], ["pbsnodes", "-c", "-N", "", "c2"]),
    ],
)
def test_pbs_nodes_of_others_are_left_alone(torque, text, drain, resume):
    calls = []

    def run(argv):
        calls.append(argv)
        return 0, text, ""

    pbs = Pbs(run, torque=torque)
    names = ["c1", "c2", "c3", "gone"]
    pbs.drain(names, OURS, PLAN)
    pbs.resume(names, PLAN)
    assert [argv for argv in calls if len(argv) > 4] == [drain, resume]


@pytest.mark.parametrize(
    "text", ["", "<Data>", "[]", '{"nodes": 3}', '<!DOCTYPE x [<!ENTITY a "b">]><Data/>']
)
def test_what_pbs_never_says_is_an_error(text):
    with pytest.raises(SchedulerError):
        parse_openpbs(text)
    with pytest.raises(SchedulerError):
        parse_torque(text)


def test_slurmctld_sees_at_most_three_calls_in_a_second(monkeypatch):
    now, made = [100.0], []
    monkeypatch.setattr("fleet.rollout.commands.time.monotonic", lambda: now[0])

    def run(argv):
        made.append((now[0], 1 if argv[1] == "update" else 2))
        now[0] += 0.01
        return 0, "", ""

    def sleep(seconds):
        now[0] += seconds

    paced = Paced(run, sleep=sleep)
    for _ in range(10):
        paced(["scontrol", "show", "node"])
        paced(["scontrol", "update", "x"])
    for start, _ in made:
        assert sum(calls for at, calls in made if start <= at < start + 1) <= 3
    assert now[0] < 130
