"""Nodes as Slurm has them: its JSON of several releases, and who may end whose drain."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from slurm_sim import Cluster

from module_utils import slurm_nodes
from module_utils.slurm_nodes import Node, SlurmError, SlurmNodes, UnknownNodesError

DATA = Path(__file__).parent / "data/slurm"
MINE = "fleet rollout 7"
#: As slurmctld of the release said it, with the parser of the data; the one of 23.02 is made from upstream's
#: description of its v0.0.39, in which times are plain numbers still.
RELEASES = sorted(file.stem for file in DATA.glob("*.json"))


@pytest.fixture
def cluster():
    return Cluster.of("n[1-6]")


@pytest.fixture
def slurm(cluster):
    return SlurmNodes(cluster.run)


@pytest.mark.parametrize("release", RELEASES)
def test_the_json_of_each_release_says_the_same(release):
    nodes = slurm_nodes.parse((DATA / f"{release}.json").read_text())
    assert list(nodes) == ["n1", "n2", "n3", "n4", "n5", "n6"]
    assert nodes["n1"].state == "IDLE" and nodes["n1"].available and nodes["n1"].boot_time > 1_795_000_000
    assert nodes["n1"].partitions == ("main",)
    assert nodes["n2"].state == "IDLE+DRAIN" and nodes["n2"].drained and not nodes["n2"].available
    assert nodes["n2"].drained_by("bad DIMM in slot A1 [ticket 42]", "root")
    assert nodes["n2"].changed_at > 1_795_000_000 and nodes["n2"].version == release.split("-")[0]
    assert nodes["n3"].state == "MIXED+DRAIN" and nodes["n3"].busy and not nodes["n3"].drained
    assert nodes["n4"].state == "UNKNOWN+NOT_RESPONDING" and not nodes["n4"].responding
    assert nodes["n4"].boot_time == 0 and not nodes["n4"].available
    assert nodes["n5"].base == "DOWN" and nodes["n5"].drained_by("new kernel", "root")
    assert nodes["n6"].state == "DOWN" and not nodes["n6"].drain and nodes["n6"].reason == "gone"


def test_there_are_samples_of_the_oldest_and_the_newest_release():
    assert {release.split(".")[0] for release in RELEASES} >= {"22", "23", "24", "26"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "slurm_load_node error",
        "[]",
        "{}",
        '{"nodes": [{"name": "n1"}]}',
        '{"nodes": [{"name": "n1", "state": []}]}',
    ],
)
def test_what_is_no_json_of_nodes_is_an_error(text):
    with pytest.raises(SlurmError, match="can't be read"):
        slurm_nodes.parse(text)


def test_numbers_without_a_value_are_zero():
    data = {
        "name": "n1",
        "state": ["IDLE"],
        "boot_time": {"set": False, "infinite": False, "number": 4294967294},
    }
    assert slurm_nodes.parse(json.dumps({"nodes": [data]}))["n1"].boot_time == 0


def test_up_to_22_05_sinfo_is_asked():
    calls = []

    def run(argv):
        calls.append(argv[0])
        if argv[0] == "scontrol":
            return (
                1,
                "",
                "scontrol: unrecognized option '--json'\nTry \"scontrol --help\" for more information\n",
            )
        return 0, (DATA / "22.05.8-sinfo.json").read_text(), ""

    assert list(SlurmNodes(run).read(["n2", "n1"])) == ["n2", "n1"]
    assert calls == ["scontrol", "sinfo"]


def test_slurm_that_does_not_answer_is_an_error_with_what_it_said():
    error = "slurm_load_node error: Unable to contact slurm controller (connect failure)\n"
    with pytest.raises(SlurmError, match=r"scontrol show node n1 --json.*Unable to contact"):
        SlurmNodes(lambda argv: (1, "", error)).read(["n1"])


def test_a_list_is_drained_in_one_call(slurm, cluster):
    outcome = slurm.drain(slurm.names("n[1-3,5]"), MINE)
    assert outcome.changed == ("n1", "n2", "n3", "n5") and not outcome.foreign
    assert cluster.updates == [
        ["scontrol", "update", "nodename=n[1-3,5]", "state=DRAIN", f"reason={MINE}"],
    ]
    assert slurm.drain(["n1", "n2"], MINE).kept == ("n1", "n2")
    assert len(cluster.updates) == 1


def test_a_drain_of_somebody_else_keeps_its_reason(slurm, cluster):
    cluster.drain("n2", "bad DIMM [ticket 42]", "alice")
    cluster.change("n3", base="DOWN", reason="gone", user="root")
    outcome = slurm.drain(["n1", "n2", "n3"], MINE)
    assert outcome.changed == ("n1",) and sorted(outcome.foreign) == ["n2", "n3"]
    assert cluster.nodes["n2"].reason == "bad DIMM [ticket 42]" and cluster.nodes["n3"].reason == "gone"


def test_one_unknown_name_and_nothing_is_touched(slurm, cluster):
    with pytest.raises(UnknownNodesError, match=r"no node x\[1-2\]") as error:
        slurm.drain(["n1", "x1", "x2"], MINE)
    assert error.value.names == ("x1", "x2") and not cluster.updates


@pytest.mark.parametrize(
    ("reason", "user"),
    [
        ("fleet rollout 70", "root"),
        ("fleet rollout", "root"),
        ("fleet rollout 7; keep it, Bob", "root"),
        ("Fleet rollout 7", "root"),
        ("fleet rollout 7", "bob"),
        ("not ours : reboot issued", "slurm"),
        ("fleet rollout 7 : reboot issued, Bob looks", "root"),
        ("", "root"),
    ],
)
def test_resume_leaves_a_drain_with_another_reason_or_user_alone(slurm, cluster, reason, user):
    cluster.drain("n[1-2]", MINE)
    cluster.drain("n2", reason, user)
    before = cluster.nodes["n2"]
    outcome = slurm.resume(["n1", "n2", "n3"], MINE)
    assert outcome.changed == ("n1",) and outcome.kept == ("n3",) and outcome.foreign == {"n2": before}
    assert cluster.nodes["n2"] == before
    assert cluster.updates == [["scontrol", "update", "nodename=n1", "state=UNDRAIN"]]


def test_who_drains_between_the_rollout_and_its_resume_is_seen(slurm, cluster):
    slurm.drain(["n1"], MINE)
    # The rollout has seen its own drain a moment ago; then somebody drains, and only then it resumes.
    assert slurm.read(["n1"])["n1"].drained_by(MINE, "root")
    cluster.drain("n1", "disk dies", "bob")
    assert slurm.resume(["n1"], MINE).foreign["n1"].reason == "disk dies"
    assert cluster.nodes["n1"].drain


def test_a_node_that_went_down_while_it_was_ours_is_resumed(slurm, cluster):
    slurm.drain(["n1", "n2"], MINE)
    cluster.change("n2", base="DOWN")
    assert slurm.resume(["n1", "n2"], MINE).changed == ("n1", "n2")
    assert [argv[2:] for argv in cluster.updates[1:]] == [
        ["nodename=n1", "state=UNDRAIN"],
        ["nodename=n2", "state=RESUME"],
    ]
    assert cluster.nodes["n2"].available


def test_a_node_that_is_down_without_a_drain_is_not_ours(slurm, cluster):
    # The reason of an old rollout stays after the resume.
    cluster.change("n1", base="DOWN", reason=MINE, user="root")
    assert list(slurm.resume(["n1"], MINE).foreign) == ["n1"] and not cluster.updates


def test_a_reboot_leaves_own_drains_and_those_of_others(slurm, cluster):
    slurm.drain(["n1"], MINE)
    cluster.drain("n2", "disk dies", "bob")
    outcome = slurm.reboot(["n1", "n2", "n3"], MINE)
    assert outcome.changed == ("n1", "n3") and list(outcome.foreign) == ["n2"]
    assert cluster.updates[1:] == [
        ["scontrol", "reboot", "n1"],
        ["scontrol", "reboot", "ASAP", "nextstate=RESUME", f"reason={MINE}", "n3"],
    ]
    # Slurm has changed the reason and who has set it; it is still the drain of the rollout.
    assert cluster.nodes["n1"].user == "slurm" and cluster.nodes["n1"].drained_by(MINE, "root")


@pytest.mark.parametrize("act", ["drain", "resume", "reboot"])
def test_check_says_the_same_and_does_nothing(slurm, cluster, act):
    cluster.drain("n1", MINE)
    cluster.drain("n2", "disk dies", "bob")
    wanted = getattr(slurm, act)(["n1", "n2", "n3"], MINE, check=True)
    assert not cluster.updates
    assert getattr(slurm, act)(["n1", "n2", "n3"], MINE) == wanted


@pytest.mark.parametrize("reason", ["", " ", "two\nlines", "tab\there", " padded", "x" * 201])
def test_a_reason_that_would_be_read_differently_is_refused(slurm, cluster, reason):
    for act in (slurm.drain, slurm.reboot):
        with pytest.raises(SlurmError, match="reason: must"):
            act(["n1"], reason)
    assert not cluster.calls


def test_a_hostlist_that_is_none_is_an_error(slurm):
    with pytest.raises(SlurmError, match=r"'n\[1-' is no hostlist: Invalid"):
        slurm.names("n[1-")


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self):
        self.now = 0.0
        self.pauses = []

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


def test_wait_returns_when_all_are_done():
    clock, node = Clock(), Node("n1", "MIXED", frozenset({"DRAIN"}))

    def read():
        return {"n1": node if clock.now < 30 else replace(node, base="IDLE")}

    left = slurm_nodes.wait(read, lambda n: n.drained, 100, sleep=clock.sleep, clock=lambda: clock.now)
    assert left == {} and 30 <= clock.now < 40
    assert max(clock.pauses) <= 10


def test_wait_ends_at_its_deadline_with_what_is_left():
    clock, node = Clock(), Node("n1", "MIXED", frozenset({"DRAIN"}))
    left = slurm_nodes.wait(
        lambda: {"n1": node, "n2": replace(node, name="n2", base="IDLE")},
        lambda n: n.drained,
        60,
        sleep=clock.sleep,
        clock=lambda: clock.now,
    )
    assert left == {"n1": node} and clock.now == 60


def test_without_a_deadline_it_looks_once():
    looked = []
    node = Node("n1", "MIXED")
    slurm_nodes.wait(lambda: looked.append(1) or {"n1": node}, lambda n: n.drained, 0, sleep=looked.clear)
    assert looked == [1]


def test_a_node_has_rebooted_when_it_says_so_and_answers():
    before = Node("n1", "IDLE", boot_time=1000)
    assert replace(before, boot_time=1100).rebooted_since(before)
    # What a node reports differs by a second from one time to the next.
    assert not replace(before, boot_time=1001).rebooted_since(before)
    silent = replace(before, boot_time=1100, flags=frozenset({"NOT_RESPONDING"}))
    assert not silent.rebooted_since(before)


def test_a_sealed_reason_is_known_until_somebody_touches_it():
    reason = slurm_nodes.sealed("node_health", "disk: /tmp has 1 % free")
    assert reason.startswith("node_health: disk: /tmp has 1 % free (")
    assert slurm_nodes.is_sealed("node_health", reason)
    for other in (
        reason.replace("1 %", "2 %"),
        reason + " Bob looks",
        reason.upper(),
        "disk: /tmp has 1 % free",
        "node_health: disk: /tmp has 1 % free",
        "",
    ):
        assert not slurm_nodes.is_sealed("node_health", other)
    assert not slurm_nodes.is_sealed("pbs_health", reason)


def test_a_sealed_reason_can_be_a_reason_whatever_the_text():
    for text in ("x" * 500, "two\nlines\x1b[0m", "", "a (123456)"):
        reason = slurm_nodes.sealed("node_health", text)
        slurm_nodes.check_reason(reason)
        assert slurm_nodes.is_sealed("node_health", reason)
