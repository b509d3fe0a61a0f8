"""What is remembered of images: for the same file only, by its owner only, and never when damaged."""

import os
import sqlite3

import pytest

from module_utils.image_cache import Cache, CacheError
from module_utils.image_rules import Contents, Finding, Partition, Signatures, Stat, Verdict
from module_utils.squashfs import Content, Paths

STAT = Stat(1, 2, 3, 4, 5)
CONTENTS = Contents(
    sha256="0f" * 32,
    architecture="amd64",
    created=1700000000,
    partitions=(Partition(3, "squashfs", "primary_system", "amd64"),),
    remarks=("odd",),
    labels={"a": "b"},
    sources=("docker://x", "scratch"),
    signatures=Signatures(("A" * 40,), ""),
    keys="k",
    root=Content(3, Paths(1, ("/su",)), Paths(0, ()), Paths(0, ()), None, 0),
)
FINDING = Finding("locked", "error", "it is not", "lock it")


@pytest.fixture
def path(tmp_path):
    tmp_path.chmod(0o700)
    return str(tmp_path / "deep/images.sqlite")


@pytest.fixture
def cache(path):
    opened = Cache(path)
    yield opened
    opened.close()


def again(cache):
    cache.close()
    return Cache(cache.path)


@pytest.mark.parametrize(
    "contents",
    [
        CONTENTS,
        Contents(),
        Contents(root=Content(1, *[Paths(0, ())] * 4, 2)),
        Contents(labels={}, labels_problem="p", sources=(), sources_problem="q", root_problem="r"),
        Contents(labels={"a": "\udcff\x00"}),
    ],
)
def test_what_is_remembered_comes_back(cache, contents):
    cache.remember(STAT, contents)
    assert again(cache).contents(STAT) == contents


@pytest.mark.parametrize("field", Stat._fields)
def test_nothing_is_remembered_of_another_file(cache, field):
    cache.remember(STAT, CONTENTS)
    assert cache.contents(STAT._replace(**{field: 99})) is None


def test_a_file_has_one_row_however_often_it_changes(cache, path):
    cache.remember(STAT, CONTENTS)
    cache.remember(STAT._replace(changed=6), Contents())
    cache.close()
    assert sqlite3.connect(path).execute("SELECT count(*) FROM contents").fetchone() == (1,)
    assert Cache(path).contents(STAT) is None


def status(stat):
    times = (0, stat.modified, stat.changed)
    values = (0o100644, stat.inode, stat.device, 1, 0, 0, stat.size, 0, 0, 0)
    return os.stat_result(
        values, dict(zip(("st_atime_ns", "st_mtime_ns", "st_ctime_ns"), times, strict=True))
    )


def test_verdicts_come_back_for_the_same_file_in_the_same_context(cache):
    good = Verdict("/store/a.sif", 3, "0f" * 32, ())
    bad = Verdict("/store/b.sif", 3, None, (FINDING,))
    cache.remember_verdicts("/store", "c", {}, [("a.sif", good, STAT), ("b.sif", bad, STAT)])
    remembered = again(cache).verdicts("/store", "c")
    assert sorted(remembered) == ["a.sif", "b.sif"] and len(remembered) == 2
    assert remembered.verdict("a.sif", status(STAT)) == good
    assert remembered.verdict("b.sif", status(STAT)) == bad
    assert remembered.verdict("c.sif", status(STAT)) is None
    for field in Stat._fields:
        assert remembered.verdict("a.sif", status(STAT._replace(**{field: 99}))) is None
    assert (
        len(Cache(cache.path).verdicts("/store", "d")) == len(Cache(cache.path).verdicts("/other", "c")) == 0
    )


def test_rows_are_carried_over(cache):
    good = Verdict("/s/a.sif", 3, None, ())
    cache.remember_verdicts("/s", "c", {}, [("a.sif", good, STAT), ("gone.sif", good, STAT)])
    kept = cache.verdicts("/s", "c").without({"gone.sif"})
    cache.remember_verdicts("/s", "c", kept, [("b.sif", good, STAT)])
    assert sorted(cache.verdicts("/s", "c")) == ["a.sif", "b.sif"]


def test_a_folder_of_any_name(cache):
    folder = "/s\udcff\n"
    cache.remember_verdicts(folder, "c", {}, [("\udcfe.sif", Verdict("", 3, None, ()), STAT)])
    assert (
        again(cache).verdicts(folder, "c").verdict("\udcfe.sif", status(STAT)).path == "/s\udcff\n/\udcfe.sif"
    )


# --- damage -------------------------------------------------------------------------------------------------


def fill(cache):
    for number in range(200):
        cache.remember(STAT._replace(inode=number), CONTENTS)
    cache.remember_verdicts("/s", "c", {}, [("a.sif", Verdict("/s/a.sif", 3, None, ()), STAT)])
    cache.close()


@pytest.mark.parametrize("damage", ["text", "half", "empty", "holes"])
def test_a_damaged_file_is_made_anew(cache, path, damage):
    fill(cache)
    size = os.path.getsize(path)  # noqa: PTH202
    with open(path, "r+b") as file:  # noqa: PTH123
        if damage == "text":
            file.write(b"this is no database at all")
        elif damage == "half":
            file.truncate(size // 2)
        elif damage == "empty":
            file.truncate(0)
        else:
            for place in range(4096, size, 4096):
                file.seek(place)
                file.write(os.urandom(512))
    opened = Cache(path)
    for number in range(200):
        assert opened.contents(STAT._replace(inode=number)) in (None, CONTENTS)
    opened.verdicts("/s", "c")
    opened.remember(STAT, CONTENTS)
    opened.close()
    assert Cache(path).contents(STAT) == CONTENTS
    assert os.stat(path).st_mode & 0o777 == 0o600  # noqa: PTH116


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE contents SET value=replace(value, '0f0f', '1f1f')",
        "UPDATE contents SET value=replace(value, 'amd64', 'arm64')",
        "UPDATE contents SET value='{}'",
        "UPDATE contents SET value='['",
        "UPDATE contents SET seal=x'00'",
        "UPDATE contents SET seal='text'",
    ],
)
def test_a_row_that_was_altered_is_as_if_it_were_not_there(cache, path, change):
    cache.remember(STAT, CONTENTS)
    cache.close()
    connection = sqlite3.connect(path)
    assert connection.execute(change).rowcount == 1
    connection.commit()
    assert Cache(path).contents(STAT) is None


def test_a_row_is_nothing_for_another_file(cache, path):
    cache.remember(STAT, CONTENTS)
    cache.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE contents SET inode=77")
    connection.commit()
    assert Cache(path).contents(STAT._replace(inode=77)) is None


@pytest.mark.parametrize("change", ["value=replace(value, 'error', 'info')", "context='d'", "folder=x'2f74'"])
def test_verdicts_that_were_altered_are_as_if_they_were_not_there(cache, path, change):
    cache.remember_verdicts("/s", "c", {}, [("b.sif", Verdict("/s/b.sif", 3, None, (FINDING,)), STAT)])
    cache.close()
    connection = sqlite3.connect(path)
    assert connection.execute(f"UPDATE verdicts SET {change}").rowcount == 1  # noqa: S608
    connection.commit()
    opened = Cache(path)
    assert [len(opened.verdicts(f, c)) for f in ("/s", "/t") for c in ("c", "d")] == [0] * 4


def test_a_cache_of_another_version_is_forgotten(cache, path):
    cache.remember(STAT, CONTENTS)
    cache.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.commit()
    assert Cache(path).contents(STAT) is None


def test_one_that_another_process_holds_is_waited_for_and_then_passed_by(cache, path, monkeypatch):
    cache.close()
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda name, timeout: real(name, timeout=0.05))
    opened = Cache(path)
    other = real(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    opened.remember(STAT, CONTENTS)
    assert opened.contents(STAT) is None
    other.execute("ROLLBACK")
    opened.remember(STAT, CONTENTS)
    assert opened.contents(STAT) == CONTENTS
    opened.close()


# --- whose it is --------------------------------------------------------------------------------------------


def test_it_is_its_owners_alone(cache, path):
    assert os.stat(path).st_mode & 0o777 == 0o600  # noqa: PTH116
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700  # noqa: PTH116, PTH120


def by_others(path):
    os.chmod(path, 0o644)  # noqa: PTH101


def folder_by_others(path):
    os.chmod(os.path.dirname(path), 0o1777)  # noqa: PTH101, PTH120, S103


def link(path):
    os.rename(path, path + ".real")  # noqa: PTH104
    os.symlink(path + ".real", path)  # noqa: PTH211


def fifo(path):
    os.unlink(path)  # noqa: PTH108
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (by_others, "must be a regular file of its user alone, mode 0600: remove it"),
        (folder_by_others, "can be written by others: give a path in a folder"),
        (link, "can't be opened: Too many levels of symbolic links"),
        (fifo, "must be a regular file"),
    ],
)
def test_one_that_others_could_have_written_is_refused(cache, path, change, message):
    cache.close()
    change(path)
    with pytest.raises(CacheError, match=message):
        Cache(path)
