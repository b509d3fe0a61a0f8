"""Nodes of Torque and OpenPBS: offline and online, with the notes of others. The servers are models."""

import json

import pytest

from module_utils import node_health, slurm_nodes
from module_utils.pbs_nodes import OPENPBS, TORQUE, PbsError, PbsNode

TAG = "node_health"
REASON = slurm_nodes.sealed(TAG, "disk: / has 1 % free")
NOTE = "rack 7: door"


class Server:
    """What pbsnodes says and does, as the manuals describe it; calls that change something are recorded."""

    def __init__(self, flavour, note="", offline=False):
        self.flavour, self.note, self.offline = flavour, note, offline
        self.calls = []

    def run(self, argv):
        assert argv[0] == "pbsnodes"
        words, node = argv[1:-1], argv[-1]
        if words == ["-x"]:
            state = "offline,job-exclusive" if self.offline else "free"
            note = f"<note>{self.note}</note>" if self.note else ""
            return (
                0,
                f"<Data><Node><name>{node}</name><state>{state}</state>{note}<np>4</np></Node></Data>",
                "",
            )
        if argv[1] == "-v":
            data = {"Mom": "c1", "state": "offline,job-busy" if self.offline else "free"}
            data.update({"comment": self.note} if self.note else {})
            return 0, json.dumps({"pbs_version": "23.06.06", "nodes": {"c1": data}}), ""
        self.calls.append(words)
        assert node == "c1" and words[1] == {TORQUE: "-N", OPENPBS: "-C"}[self.flavour]
        if self.flavour is OPENPBS and len(words[2]) > 80:
            return 1, "", "pbsnodes: comment too long\n"
        self.offline = {"-o": True, "-c": False, "-r": False}[words[0]]
        self.note = words[2]
        return 0, "", ""


@pytest.fixture(params=[TORQUE, OPENPBS], ids=["torque", "openpbs"])
def server(request):
    return Server(request.param)


@pytest.fixture
def node(server):
    return PbsNode("c1", TAG, server.flavour, server.run)


def test_offline_and_online_again(server, node):
    assert node.reason() is None
    node.drain(REASON)
    assert server.offline and server.note == node.reason() == REASON
    node.drain("another")  # it is offline already
    assert server.note == REASON and len(server.calls) == 1
    node.resume(REASON)
    assert not server.offline and server.note == "" and node.reason() is None


def test_a_note_is_kept_and_back_at_the_end(server, node):
    server.note = NOTE
    node.drain(REASON)
    assert server.note == f"{REASON} | {NOTE}" and node.reason() == REASON
    new = slurm_nodes.sealed(TAG, "clock: off")
    node.change(REASON, new)
    assert server.note == f"{new} | {NOTE}"
    node.resume(REASON)  # that is not the reason any more
    assert server.offline
    node.resume(new)
    assert not server.offline and server.note == NOTE


@pytest.mark.parametrize(
    "note",
    ["", "bad DIMM [ticket 42]", f"{REASON} Bob looks", REASON.replace("1 %", "2 %"), f"Bob | {REASON}"],
)
def test_who_is_offline_for_somebody_else_stays_so(server, node, note):
    server.note, server.offline = note, True
    reason = node.reason()
    assert reason == (note or "offline, without a note") and not slurm_nodes.is_sealed(TAG, reason)
    node.drain(REASON)
    node.change(REASON, slurm_nodes.sealed(TAG, "clock: off"))
    node.resume(REASON)
    assert (server.offline, server.note, server.calls) == (True, note, [])


def test_a_reason_that_was_left_on_a_node_that_is_online_is_no_note_of_others(server, node):
    server.note = f"{REASON} | {NOTE}"
    new = slurm_nodes.sealed(TAG, "clock: off")
    node.drain(new)
    assert server.note == f"{new} | {NOTE}"


@pytest.mark.parametrize("length", [0, 20, 40, 60, 80])
def test_openpbs_has_80_letters_and_the_note_is_worth_more(length):
    note = "n" * length
    server = Server(OPENPBS, note)
    node = PbsNode("c1", TAG, OPENPBS, server.run)
    node.drain(slurm_nodes.sealed(TAG, "disk: " + "very long " * 20))
    assert server.offline and len(server.note) <= 80 and server.note.endswith(note)
    if server.note == note:  # no room: a person takes it online
        assert length >= 60 and node.reason() == note
    else:
        assert slurm_nodes.is_sealed(TAG, node.reason())
        node.resume(node.reason())
        assert not server.offline and server.note == note


@pytest.mark.parametrize("out", ["", "{", "<Data>", "<Data></Data>", '{"nodes": {}}', "[]"])
def test_an_answer_without_the_node_is_an_error(server, out):
    node = PbsNode("c1", TAG, server.flavour, lambda argv: (0, out, ""))
    with pytest.raises(PbsError, match="says nothing of c1"):
        node.reason()


def test_what_pbsnodes_says_is_in_the_error(server):
    node = PbsNode("c1", TAG, server.flavour, lambda argv: (15004, "", "pbsnodes: Unauthorized Request"))
    with pytest.raises(PbsError, match="Unauthorized Request"):
        node.drain(REASON)


def test_the_health_program_does_this_with_it(server):
    manager = PbsNode("c1", TAG, server.flavour, server.run)
    settings = node_health.Settings(node="c1", checks={}, manager="torque")
    bad = node_health.Report("c1", {"disk": {"ok": False, "message": "/ has 1 % free", "seconds": 0}})
    good = node_health.Report("c1", {"disk": {"ok": True, "message": "", "seconds": 0}})
    state, server.note = {}, NOTE
    assert node_health.act(bad, settings, state, manager).startswith("is drained for 'node_health: disk")
    assert server.offline and server.note.endswith(NOTE)
    assert node_health.act(bad, settings, state, manager) == ""
    assert node_health.act(good, settings, state, manager).startswith("is resumed")
    assert not server.offline and server.note == NOTE
