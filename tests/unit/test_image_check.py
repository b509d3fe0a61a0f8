"""Verdicts on files, folders and patterns: which images there are, in parallel, and what is remembered."""

import datetime
import os
import sqlite3

import image_store
import pytest
import sif_builder as make
import squashfs_images

from module_utils import image_check, image_facts, image_policy, squashfs
from module_utils.image_cache import Cache
from module_utils.image_check import Checker
from module_utils.image_lock import Lock, Locked
from module_utils.squashfs import SquashfsError, Tool

TODAY = datetime.date(2027, 1, 1)


@pytest.fixture
def store(tmp_path):
    """Two good images, one below, one that is none, and what is no image by its name."""
    folder = tmp_path / "store"
    image_store.put(folder / "a_1.sif", image_store.image())
    image_store.put(folder / "b_1.sif", image_store.image(labels={"tier": "gold"}))
    image_store.put(folder / "below/c_1.sif", image_store.image(trailing=b"more"))
    image_store.put(folder / "broken_1.sif", b"no image")
    image_store.put(folder / "a_1.sif.sha256", b"0f  a_1.sif\n")
    image_store.put(folder / ".a_1.sif.x.tmp", b"half")
    return folder


@pytest.fixture
def cache(tmp_path):
    opened = Cache(str(tmp_path / "cache/images.sqlite"))
    yield opened
    opened.close()


@pytest.fixture
def hashed(monkeypatch):
    return image_store.counting_hashes(monkeypatch)


def checker(policy=None, lock=None, **options):
    options.setdefault("clock", image_store.Later())
    return Checker(image_policy.read(policy or {}, TODAY), lock, **options)


def found(verdicts, folder):
    """Rule names by path below *folder*."""
    return {os.path.relpath(v.path, folder): [f.rule for f in v.findings] for v in verdicts}


EXPECTED = {
    "a_1.sif": [],
    "b_1.sif": [],
    "broken_1.sif": ["structure"],
    "below/c_1.sif": ["remarks"],
}


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_folder_is_all_images_below_it(store, jobs):
    verdicts = list(checker(jobs=jobs).check([str(store)]))
    assert found(verdicts, store) == EXPECTED
    assert [v.path for v in verdicts][-1].endswith("below/c_1.sif")


def test_patterns_and_files_in_their_order(store):
    paths = [str(store / "b*.sif"), str(store / "a_1.sif"), str(store / "nothing*"), str(store / "gone")]
    assert [os.path.basename(v.path) for v in checker().check(paths)] == [  # noqa: PTH119
        *("b_1.sif", "broken_1.sif", "a_1.sif", "nothing*", "gone")
    ]
    assert [v.findings[0].rule for v in checker().check(paths[2:])] == ["readable", "readable"]


def test_a_name_that_is_a_pattern_is_a_name_first(store):
    image_store.put(store / "[ab]_1.sif", image_store.image())
    assert [v.path for v in checker().check([str(store / "[ab]_1.sif")])] == [str(store / "[ab]_1.sif")]


def test_a_pattern_can_name_a_folder(store):
    assert found(checker().check([str(store / "bel*")]), store) == {"below/c_1.sif": ["remarks"]}


def test_other_names_can_be_images_too(store):
    image_store.put(store / "old.img", image_store.image())
    verdicts = checker(patterns=["*.sif", "*.img"]).check([str(store)])
    assert found(verdicts, store) == {**EXPECTED, "old.img": []}


def test_a_folder_whose_name_is_an_image_is_a_folder(store):
    image_store.put(store / "z.sif/deep_1.sif", image_store.image())
    assert found(checker().check([str(store)]), store)["z.sif/deep_1.sif"] == []


def test_links_to_folders_are_not_entered(store):
    (store / "below/up").symlink_to(store)
    (store / "loop.sif").symlink_to("loop.sif")
    (store / "link_1.sif").symlink_to("a_1.sif")
    verdicts = found(checker({"rules": {"symlinks": "forbidden"}}).check([str(store)]), store)
    assert verdicts == {**EXPECTED, "loop.sif": ["readable", "symlinks"], "link_1.sif": ["symlinks"]}


@pytest.mark.parametrize(
    ("link", "pattern"), [("eve/images", "*/images"), ("eve/a", "*/a/b"), ("eve", "e*/")]
)
def test_a_link_that_a_pattern_matches_leads_nowhere(store, tmp_path, link, pattern):
    place, elsewhere = tmp_path / "scratch", tmp_path / "elsewhere"
    (place / link).parent.mkdir(parents=True)
    image_store.put(elsewhere / "b/x_1.sif", image_store.image())
    (place / link).symlink_to(elsewhere)
    (verdict,) = checker().check([f"{place}/{pattern}"])
    assert verdict.path.rstrip("/").endswith(pattern.rstrip("/").replace("*", "eve").replace("eeve", "eve"))
    assert [(one.rule, "not followed" in one.evidence) for one in verdict.findings] == [("readable", True)]


def test_links_that_a_pattern_names_are_followed(store, tmp_path):
    (tmp_path / "link").symlink_to(store)
    (store / "link_1.sif").symlink_to("a_1.sif")
    assert [one.path for one in checker().check([f"{tmp_path}/link/bel*"])] == [
        f"{tmp_path}/link/below/c_1.sif"
    ]
    assert [one.findings for one in checker().check([f"{store}/link*.sif"])] == [()]


def test_what_is_no_file_in_a_folder_has_a_verdict(store):
    os.mkfifo(store / "fifo.sif")
    assert found(checker().check([str(store)]), store)["fifo.sif"] == ["readable"]


def test_a_folder_that_cannot_be_read_is_said(store, monkeypatch):
    real = os.scandir

    def scandir(path):
        if str(path).endswith("below"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(image_check.os, "scandir", scandir)
    verdicts = list(checker().check([str(store)]))
    assert found(verdicts, store)["below"] == ["readable"]
    assert verdicts[-1].findings[0].evidence == "the folder can't be read: Permission denied"


def test_an_image_that_vanishes_takes_no_verdict_of_others_away(store, cache, monkeypatch):
    list(checker(cache=cache).check([str(store)]))
    real = os.scandir

    class Scan:
        """The entries of a folder that somebody takes an image from once they were read."""

        def __init__(self, path):
            self.entries = list(real(path))
            (store / "a_1.sif").unlink(missing_ok=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(image_check.os, "scandir", Scan)
    expected = {name: rules for name, rules in EXPECTED.items() if name != "a_1.sif"}
    assert found(checker(cache=cache).check([str(store)]), store) == expected


def test_a_broken_image_among_many_is_no_error(store):
    for number in range(50):
        image_store.put(store / f"x{number}.sif", os.urandom(number))
    verdicts = list(checker(jobs=3).check([str(store)]))
    assert sum(v.refused() for v in verdicts) == 51 and len(verdicts) == 54


def test_the_lock_and_the_policy_decide(store):
    plain = checker().examine(str(store / "a_1.sif")).verdict
    lock = Lock((Locked("a", "1", plain.sha256, plain.size),))
    verdicts = found(checker({"rules": {"locked": True}}, lock).check([str(store)]), store)
    assert verdicts["a_1.sif"] == [] and verdicts["b_1.sif"] == ["locked"]


def test_it_also_gives_what_it_saw(store):
    checked = checker().examine(str(store / "a_1.sif"))
    assert checked.image.contents.architecture == "amd64" and checked.verdict.sha256


# --- what is remembered -------------------------------------------------------------------------------------


@pytest.fixture
def looked_at(monkeypatch):
    """The paths of images that are opened."""
    paths = []
    real = image_facts.examine

    def examine(path, *arguments, **options):
        paths.append(os.path.basename(path))  # noqa: PTH119
        return real(path, *arguments, **options)

    monkeypatch.setattr(image_facts, "examine", examine)
    return paths


def test_an_unchanged_image_costs_a_stat(store, cache, hashed, looked_at):
    first = list(checker(cache=cache).check([str(store)]))
    assert len(hashed) == 3
    hashed.clear()
    looked_at.clear()
    assert list(checker(cache=cache).check([str(store)])) == first
    # What is no image is nothing to be remembered.
    assert (hashed, looked_at) == ([], ["broken_1.sif"])


def test_an_image_that_changed_is_read_again(store, cache, hashed):
    list(checker(cache=cache).check([str(store)]))
    hashed.clear()
    content = bytearray((store / "a_1.sif").read_bytes())
    content[-1] ^= 1
    status = (store / "a_1.sif").stat()
    (store / "a_1.sif").write_bytes(content)
    os.utime(store / "a_1.sif", ns=(status.st_atime_ns, status.st_mtime_ns))
    verdicts = {v.path: v for v in checker(cache=cache).check([str(store)])}
    assert [os.path.basename(path) for path in hashed] == ["a_1.sif"]  # noqa: PTH119
    hashed.clear()
    assert {v.path: v for v in checker(cache=cache).check([str(store)])} == verdicts and hashed == []


def test_another_owner_or_mode_is_seen(store, cache):
    policy = {"rules": {"mode": "0644"}}
    assert found(checker(policy, cache=cache).check([str(store)]), store)["a_1.sif"] == []
    (store / "a_1.sif").chmod(0o666)
    assert found(checker(policy, cache=cache).check([str(store)]), store)["a_1.sif"] == ["mode"]


def test_another_mode_of_a_folder_above_is_seen(store, cache, hashed):
    policy = {"rules": {"folder_mode": "0755"}}
    store.parent.chmod(0o755)
    list(checker(policy, cache=cache).check([str(store)]))
    hashed.clear()
    store.parent.chmod(0o777)
    assert "folder_mode" in found(checker(policy, cache=cache).check([str(store)]), store)["a_1.sif"]
    assert hashed == []


def test_another_policy_or_lock_or_day_is_another_verdict_without_reading(store, cache, hashed):
    policy = {"rules": {"max_age_days": 9999}}
    assert found(checker(policy, cache=cache).check([str(store)]), store)["a_1.sif"] == []
    hashed.clear()
    strict = {"rules": {"max_age_days": 1}}
    assert found(checker(strict, cache=cache).check([str(store)]), store)["a_1.sif"] == ["max_age_days"]
    later = image_store.Later(10_000 * 86400)
    verdicts = checker(policy, cache=cache, clock=later).check([str(store)])
    assert found(verdicts, store)["a_1.sif"] == ["max_age_days"]
    locked = {"rules": {"locked": True}}
    assert found(checker(locked, cache=cache).check([str(store)]), store)["a_1.sif"] == ["locked"]
    digest = checker(cache=cache).examine(str(store / "a_1.sif")).verdict.sha256
    lock = Lock((Locked("a", "1", digest, 1),))
    assert found(checker(locked, lock, cache=cache).check([str(store)]), store)["a_1.sif"] == []
    assert hashed == []


def test_what_a_stricter_policy_needs_is_read_then(store, cache, monkeypatch):
    list(checker(cache=cache).check([str(store)]))
    wanted = {"rules": {"labels": {"tier": "gold"}}}
    verdicts = found(checker(wanted, cache=cache).check([str(store)]), store)
    assert verdicts["a_1.sif"] == ["labels"] and verdicts["b_1.sif"] == []


def test_a_file_that_has_just_changed_is_not_remembered(store, cache, hashed):
    now = image_store.Later(0)
    list(checker(cache=cache, clock=now).check([str(store)]))
    hashed.clear()
    list(checker(cache=cache, clock=now).check([str(store)]))
    assert len(hashed) == 3


def test_an_image_that_is_gone_is_forgotten(store, cache):
    list(checker(cache=cache).check([str(store)]))
    (store / "a_1.sif").unlink()
    assert "a_1.sif" not in found(checker(cache=cache).check([str(store)]), store)
    cache.close()
    value = sqlite3.connect(cache.path).execute("SELECT value FROM verdicts").fetchall()
    assert not any("a_1.sif" in row[0] for row in value)


def test_another_image_under_the_same_name_is_seen(store, cache):
    policy = {"rules": {"labels": {"tier": "gold"}}}
    list(checker(policy, cache=cache).check([str(store)]))
    (store / "b_1.sif").rename(store / "a_1.sif")
    verdicts = found(checker(policy, cache=cache).check([str(store)]), store)
    assert verdicts["a_1.sif"] == [] and "b_1.sif" not in verdicts


def test_one_content_is_judged_by_each_place(store, cache, hashed):
    os.link(store / "a_1.sif", store / "below/a_1.sif")
    scope = {"name": "below", "directories": [str(store / "below")], "rules": {"max_age_days": 1}}
    verdicts = found(checker({"scopes": [scope]}, cache=cache).check([str(store)]), store)
    assert verdicts["a_1.sif"] == [] and verdicts["below/a_1.sif"] == ["max_age_days"]
    assert sum("a_1.sif" in path for path in hashed) == 1


def test_a_single_file_is_remembered_too(store, cache, hashed):
    path = str(store / "a_1.sif")
    first = checker(cache=cache).examine(path).verdict
    hashed.clear()
    assert checker(cache=cache).examine(path).verdict == first and hashed == []


def test_what_is_remembered_already_is_not_written_again(store, cache, monkeypatch):
    list(checker(cache=cache).check([str(store)]))
    monkeypatch.setattr(Cache, "remember", None)
    strict = {"rules": {"max_age_days": 1}}
    assert found(checker(strict, cache=cache).check([str(store)]), store)["a_1.sif"] == ["max_age_days"]


# --- unsquashfs ---------------------------------------------------------------------------------------------

INSIDE = {"rules": {"file_capabilities": []}}


@pytest.fixture
def tool(monkeypatch):
    """Say which unsquashfs there is, and what it lists."""

    def use(version, content=None):
        def find():
            if version is None:
                raise SquashfsError("there is no unsquashfs: install squashfs-tools")
            return Tool("/x", version)

        monkeypatch.setattr(image_check, "_tool", find)
        monkeypatch.setattr(squashfs, "content", lambda *_, **__: content)

    return use


def test_a_newer_unsquashfs_is_asked_at_once(store, cache, tool, hashed):
    none = squashfs.Paths(0, ())
    tool(None)
    assert found(checker(INSIDE, cache=cache).check([str(store)]), store)["a_1.sif"] == ["file_capabilities"]
    tool((4, 5), squashfs.Content(1, none, none, none, None, 0))
    assert found(checker(INSIDE, cache=cache).check([str(store)]), store)["a_1.sif"] == ["file_capabilities"]
    hashed.clear()
    tool((4, 6), squashfs.Content(1, none, none, none, none, 0))
    assert found(checker(INSIDE, cache=cache).check([str(store)]), store)["a_1.sif"] == []
    assert hashed == []


@pytest.mark.skipif(not os.access("/usr/bin/unsquashfs", os.X_OK), reason="squashfs-tools is not installed")
def test_real_root_file_systems_are_judged(store, cache):
    image_store.put(store / "full_1.sif", image_store.image(root=squashfs_images.FULL))
    image_store.put(store / "hostile_1.sif", image_store.image(root=squashfs_images.HOSTILE))
    image_store.put(store / "ext_1.sif", make.build(make.partition(fs=2)))
    policy = {"rules": {"setuid_files": ["/usr/bin/su*"], "device_nodes": [], "writable_folders": []}}
    for _ in range(2):
        verdicts = found(checker(policy, cache=cache, jobs=2).check([str(store)]), store)
        three = ["setuid_files", "device_nodes", "writable_folders"]
        assert verdicts["full_1.sif"] == three
        # Strange names beside what is there.
        assert sorted(verdicts["hostile_1.sif"]) == sorted(three * 2)
        assert verdicts["ext_1.sif"] == three and verdicts["a_1.sif"] == []
