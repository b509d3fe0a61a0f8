"""Ranges of subordinate IDs, for one user and for 5,000."""

import fcntl
import itertools
import multiprocessing
import os
from types import SimpleNamespace

import pytest

from module_utils import subordinate_ids
from module_utils.subordinate_ids import File, SubordinateIDError, expand, parse, plan

COUNT = 65_536


def planned(users, subuid="", subgid=None, **options):
    subgid = subuid if subgid is None else subgid
    return plan(expand(users), (File("subuid", subuid), File("subgid", subgid)), **options)


def test_users_are_names_numbers_and_ranges():
    assert expand(["alice", 1000, "1001", "2000-2002", "alice", "01001"]) == [
        *("alice", "1000", "1001", "2000", "2001", "2002")
    ]


@pytest.mark.parametrize(
    "user",
    [
        *(
            "",
            "0",
            0,
            "root",
            "-1",
            "5-3",
            "0-5",
            "a:b",
            "a b",
            "!alice",
            "#x",
            "5000000000",
            "a\n",
            "a" * 99,
        ),
        *("1-4294967294", "9" * 5000, {}, ["alice"]),
    ],
)
def test_others_are_refused(user):
    with pytest.raises(SubordinateIDError):
        expand([user])


def test_places_follow_the_order_of_the_list_and_are_equal_in_both_files():
    result = planned(["alice", "bob"])
    assert result.texts == ("alice:100000:65536\nbob:165536:65536\n",) * 2
    assert result.assigned == {"alice": 100_000, "bob": 165_536}


def test_a_second_time_nothing_changes():
    users = ["alice", "10000-14999"]
    first = planned(users)
    again = planned(users, *first.texts)
    assert again.texts == first.texts and not again.assigned


FOREIGN = "# who\n\nlxd:200000:1000\n  odd line\n!carol:300000:65536\ndave:400000:65536"


def test_foreign_lines_comments_and_order_stay_and_nothing_overlaps():
    result = planned(["alice", "dave", "bob", "erin"], FOREIGN)
    for text in result.texts:
        assert text.startswith(FOREIGN + "\n") and text.count("dave:") == 1
        assert_disjoint(text)
    # 165536 would reach into lxd's, 296608 into carol's (disabled and still hers), 362144 into dave's.
    assert result.assigned == {"alice": 100_000, "bob": 231_072, "erin": 493_216}


def assert_disjoint(text):
    ranges = sorted(parse(text), key=lambda r: r.start)
    assert all(a.end <= b.start for a, b in itertools.pairwise(ranges))


def test_a_range_in_one_file_only_is_the_same_in_the_other_if_it_is_free_there():
    result = planned(["alice"], "alice:900000:65536\n", "")
    assert result.texts[1] == "alice:900000:65536\n"
    result = planned(["alice"], "alice:900000:65536\n", "bob:900001:5\n")
    assert result.texts == ("alice:900000:65536\n", "bob:900001:5\nalice:100000:65536\n")


def test_a_larger_range_is_kept():
    assert not planned(["alice"], "alice:500000:131072\n").assigned


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nalice:500000:1000\n", "subuid, line 2: alice has 1000 IDs and shall have 65536"),
        ("!alice:500000:65536\n", "line 1: alice is disabled there"),
        (
            "alice:500000:65536\nbob:500100:65536\n",
            "line 1: the range of alice overlaps that of bob in line 2",
        ),
    ],
)
def test_what_is_there_is_not_touched_unless_told(text, message):
    with pytest.raises(SubordinateIDError, match=message):
        planned(["alice"], text)
    result = planned(["alice"], text, replace=True)
    assert "alice:100000:65536\n" in result.texts[0] and result.texts[0].count("alice") == 1


def test_replace_moves_and_shrinks_those_of_the_list_alone():
    text = "# a\nalice:1000:65536\nbob:2000000:131072\ncarol:3000000:65536\nzoe:7:7\n"
    result = planned(["alice", "bob", "carol"], text, replace=True)
    assert result.texts[0] == ("# a\ncarol:3000000:65536\nzoe:7:7\nalice:100000:65536\nbob:165536:65536\n")
    assert planned(["alice", "bob", "carol"], *result.texts, replace=True).texts == result.texts


def test_a_user_may_stand_there_under_the_other_name():
    assert subordinate_ids.other_names("1000:1:1\nbob:2:2\n", ["alice"]) == ["1000"]
    assert subordinate_ids.other_names("1000:1:1\nbob:2:2\n", ["1001"]) == ["bob"]
    assert not planned(["alice"], "1000:500000:65536\n", aliases={"1000": "alice"}).assigned
    assert planned(["alice"], "1000:500000:65536\n", aliases={"1000": "bob"}).assigned


def test_ids_of_real_users_and_groups_are_in_no_range():
    files = (File("subuid", "", (100_005, 1000)), File("subgid", "", (100_000 + COUNT,)))
    assert plan(["alice"], files).assigned == {"alice": 100_000 + 2 * COUNT}


def test_no_room_is_an_error():
    with pytest.raises(SubordinateIDError, match="no room"):
        planned(["alice", "bob"], start=2**32 - COUNT - 100)
    with pytest.raises(SubordinateIDError, match="no room"):
        planned(["1-70000"])


def test_five_thousand_users_beside_five_thousand_others():
    others = "".join(f"other{n}:{1_000_000 + n * 70_000}:65536\n" for n in range(5000))
    result = planned(["10000-14999"], others)
    assert len(result.assigned) == 5000 and result.texts[0] == result.texts[1]
    assert_disjoint(result.texts[0])
    assert planned(["10000-14999"], *result.texts).texts == result.texts


# The module


@pytest.fixture
def module(ansible_module, monkeypatch, tmp_path):
    runner = ansible_module("subordinate_ids")
    for name, text in {
        "PASSWD": "root:x:0:0::/:/bin/sh\nalice:x:1000:1000::/:/bin/sh\nfar:x:100001:9::/:/bin/sh\n",
        "GROUP": "root:x:0:\nalice:x:1000:\n",
        "NSSWITCH": "passwd: files\n",
    }.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(runner.plugin.subordinate_id_files, name, str(tmp_path / name))
    paths = {"subuid": str(tmp_path / "subuid"), "subgid": str(tmp_path / "subgid")}
    return lambda **arguments: runner(**{**paths, **arguments})


def test_module_writes_both_and_the_second_time_nothing(module, tmp_path):
    (tmp_path / "subuid").write_text("# mine\nbob:300000:65536\n")
    predicted = module(check=True, users=["alice", "20000-24998", 24_999])
    assert not (tmp_path / "subgid").exists() and not (tmp_path / ".pwd.lock").exists()
    done = module(users=["alice", "20000-24998", 24_999])
    assert predicted == done and done["changed"] and done["users"] == done["assigned"] == 5001
    texts = [(tmp_path / name).read_text() for name in ("subuid", "subgid")]
    assert texts[0].startswith("# mine\nbob:300000:65536\nalice:165536:65536\n")
    assert (tmp_path / "subuid").stat().st_mode & 0o777 == 0o644
    for text in texts:
        assert_disjoint(text)
        # 100001 is a user of this node.
        assert not any(entry.start <= 100_001 < entry.end for entry in parse(text))
    inode = (tmp_path / "subuid").stat().st_ino
    again = module(users=["alice", "20000-24999"])
    assert not again["changed"] and again["assigned"] == 0 and "diff" not in again
    assert (tmp_path / "subuid").stat().st_ino == inode


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"users": ["a b"]}, "no name of a user"),
        ({"users": ["alice"], "count": 0}, "above 0"),
        ({"users": ["bob", "alice"]}, "line 1: alice has 10 IDs and shall have 65536"),
    ],
)
def test_module_refuses_before_it_writes(module, tmp_path, check, arguments, message):
    (tmp_path / "subuid").write_text("alice:5:10\n")
    result = module(check=check, **arguments)
    assert result["failed"] and message in result["msg"]
    assert (tmp_path / "subuid").read_text() == "alice:5:10\n" and not (tmp_path / "subgid").exists()


def test_module_knows_a_user_under_both_names(ansible_module, monkeypatch, module, tmp_path):
    me = SimpleNamespace(pw_name="me", pw_uid=4242)
    monkeypatch.setattr("pwd.getpwnam", {"me": me}.__getitem__)
    monkeypatch.setattr("pwd.getpwuid", {4242: me}.__getitem__)
    for name in ("subuid", "subgid"):
        (tmp_path / name).write_text("4242:500000:65536\n")
    assert not module(users=["me"])["changed"]
    assert module(users=["you"])["changed"]
    assert "same user" in module(users=["me", "4000-4300"])["msg"]


def test_module_warns_where_the_files_mean_nothing(module, tmp_path, monkeypatch):
    warned = []
    monkeypatch.setattr("ansible.module_utils.basic.AnsibleModule.warn", lambda _, text: warned.append(text))
    module(users=["alice"])
    assert warned == []
    (tmp_path / "NSSWITCH").write_text("subid: sss # central\n")
    module(users=["alice"])
    assert len(warned) == 1 and "'sss'" in warned[0]


def hold(path, ready, release):
    with open(path, "ab") as lock:  # noqa: PTH123
        fcntl.lockf(lock, fcntl.LOCK_EX)
        ready.set()
        release.wait(30)


def test_module_waits_for_useradd(ansible_module, monkeypatch, tmp_path):
    runner = ansible_module("subordinate_ids")
    monkeypatch.setattr(runner.plugin.subordinate_id_files, "LOCK_SECONDS", 0)
    ready, release = multiprocessing.Event(), multiprocessing.Event()
    other = multiprocessing.Process(target=hold, args=(tmp_path / ".pwd.lock", ready, release))
    other.start()
    try:
        assert ready.wait(30)
        arguments = {
            "subuid": str(tmp_path / "subuid"),
            "subgid": str(tmp_path / "subgid"),
            "users": ["alice"],
        }
        assert "locked" in runner(**arguments)["msg"] and not (tmp_path / "subuid").exists()
    finally:
        release.set()
        other.join()
    assert runner(**arguments)["changed"] and os.path.exists(tmp_path / "subuid")  # noqa: PTH110
