"""A store: an image is in it whole and judged, or not at all, whoever publishes and whatever fails."""

import errno
import hashlib
import json
import multiprocessing
import os
import resource
import subprocess
import time
from pathlib import Path

import image_store as images
import pytest

from module_utils import image_policy, image_store, sif
from module_utils.image_check import Checker
from module_utils.image_lock import Locked
from module_utils.image_store import RefusedError, Store, StoreError

IMAGE = images.image(labels={"tier": "gold"})
DIGEST = hashlib.sha256(IMAGE).hexdigest()
HELLO = Locked("hello", "1.0", DIGEST, len(IMAGE))
OTHER = images.image(labels={"tier": "silver"})


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "store"
    path.mkdir(mode=0o755)
    return path


@pytest.fixture
def source(tmp_path):
    return str(images.put(tmp_path / "built/hello.sif", IMAGE, mode=0o600))


def store(folder, policy=None, **options):
    return Store(str(folder), Checker(image_policy.read(policy or {}, None)), **options)


def contents(folder):
    """What is in a folder and below: name → bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


PUBLISHED = {"hello_1.0.sif": IMAGE, "hello_1.0.sif.sha256": f"{DIGEST}  hello_1.0.sif\n".encode()}


def test_an_image_is_published_whole_with_its_digest(folder, source):
    os.umask(0o077)
    try:
        assert store(folder).publish(HELLO, source) is True
    finally:
        os.umask(0o022)
    assert contents(folder) == PUBLISHED
    assert (folder / "hello_1.0.sif").stat().st_mode & 0o7777 == 0o644
    assert (folder / "hello_1.0.sif.sha256").stat().st_mode & 0o7777 == 0o644
    assert (folder / "hello_1.0.sif").stat().st_nlink == 1
    checked = subprocess.run(
        ["sha256sum", "-c", "hello_1.0.sif.sha256"], cwd=folder, capture_output=True, check=True
    )
    assert checked.stdout == b"hello_1.0.sif: OK\n"


def test_a_second_time_changes_nothing_and_needs_no_source(folder, source):
    store(folder).publish(HELLO, source)
    before = {path.name: path.stat().st_ctime_ns for path in folder.iterdir()}
    Path(source).unlink()
    assert store(folder).publish(HELLO, source) is False
    assert {path.name: path.stat().st_ctime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("damage", [None, b"", b"0f  x\n"])
def test_a_digest_that_is_missing_or_wrong_is_written_again(folder, source, damage):
    store(folder).publish(HELLO, source)
    if damage is None:
        (folder / "hello_1.0.sif.sha256").unlink()
    else:
        (folder / "hello_1.0.sif.sha256").write_bytes(damage)
    before = contents(folder)
    assert store(folder).publish(HELLO, source, dry_run=True) is True
    assert contents(folder) == before
    assert store(folder).publish(HELLO, source) is True
    assert contents(folder) == PUBLISHED


def test_another_mode(folder, source):
    policy = {"rules": {"mode": "0640"}}
    store(folder, policy, mode=0o640).publish(HELLO, source)
    assert (folder / "hello_1.0.sif").stat().st_mode & 0o7777 == 0o640


def test_dry_run_judges_and_touches_nothing(folder, source):
    assert store(folder).publish(HELLO, source, dry_run=True) is True
    with pytest.raises(RefusedError):
        store(folder, {"rules": {"labels": {"x": "*"}}}).publish(HELLO, source, dry_run=True)
    assert contents(folder) == {}


# --- what is refused ----------------------------------------------------------------------------------------


def refuses(folder, source, message, image=HELLO, *, policy=None, error=StoreError):
    before = contents(folder)
    with pytest.raises(error, match=message) as caught:
        store(folder, policy).publish(image, str(source))
    assert contents(folder) == before
    return caught.value


def test_nothing_is_replaced_under_a_name(folder, source, tmp_path):
    store(folder).publish(HELLO, source)
    other = images.put(tmp_path / "other.sif", OTHER)
    digest = hashlib.sha256(OTHER).hexdigest()
    message = f"hello_1.0.sif is there, and it is another image, SHA-256 {DIGEST}: nothing is replaced"
    refuses(folder, other, message, Locked("hello", "1.0", digest, 1))


@pytest.mark.parametrize("there", ["broken", "link", "folder"])
def test_whatever_has_the_name_is_left_alone(folder, source, there):
    final = folder / "hello_1.0.sif"
    if there == "broken":
        final.write_bytes(b"broken")
    elif there == "link":
        final.symlink_to("/nowhere")
    else:
        final.mkdir()
    refuses(folder, source, "is there, and it is")
    assert os.path.lexists(final)


def test_another_digest_than_promised_is_refused(folder, tmp_path):
    other = images.put(tmp_path / "other.sif", OTHER)
    refuses(
        folder, other, f"has SHA-256 {hashlib.sha256(OTHER).hexdigest()}, and {DIGEST} was to be published"
    )


def test_what_the_policy_refuses_is_refused_with_its_verdict(folder, source):
    policy = {"rules": {"labels": {"tier": "silver"}, "max_age_days": 1}}
    error = refuses(
        folder, source, "hello_1.0.sif is refused:\nlabels error", policy=policy, error=RefusedError
    )
    assert {finding.rule for finding in error.verdict.findings} == {"labels", "max_age_days"}


def test_what_was_published_and_is_refused_now_is_said(folder, source):
    store(folder).publish(HELLO, source)
    policy = {"revoked": [{"sha256": DIGEST, "reason": "a backdoor"}]}
    refuses(
        folder,
        source,
        "is published, and refused now:\nrevoked error: it is revoked: a backdoor",
        policy=policy,
    )


def test_it_is_judged_as_what_it_will_be_and_not_as_what_it_was(folder, source):
    """The source is private, in a folder of anybody; what counts is the store."""
    Path(source).parent.chmod(0o777)
    scope = {"name": "store", "directories": [str(folder)], "rules": {"labels": {"tier": "silver"}}}
    refuses(folder, source, "labels error", policy={"scopes": [scope]}, error=RefusedError)
    here = {
        "name": "built",
        "directories": [str(Path(source).parent)],
        "rules": {"labels": {"tier": "silver"}},
    }
    policy = {"rules": {"mode": "0644", "symlinks": "forbidden"}, "scopes": [here]}
    Path(f"{source}.link").symlink_to(source)
    assert store(folder, policy).publish(HELLO, f"{source}.link")


def test_a_mode_that_the_policy_forbids_is_seen_before_the_copy(folder, source, monkeypatch):
    monkeypatch.setattr(Store, "_copy_and_link", None)
    refuses(
        folder, source, "mode error: it has mode 0644", policy={"rules": {"mode": "0600"}}, error=RefusedError
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "readable error: it can't be opened: No such file"),
        (os.mkfifo, "readable error: it is a FIFO"),
        (lambda path: path.symlink_to("/dev/zero"), "readable error: it is a character device"),
        (lambda path: path.symlink_to(path.name), "readable error: it is a symbolic link"),
        (lambda path: path.mkdir(), "readable error: it is a directory"),
        (lambda path: path.write_bytes(IMAGE[:-1]), "structure error"),
        (lambda path: path.write_bytes(b""), "structure error"),
    ],
)
def test_what_is_no_image_is_refused(folder, tmp_path, make, message):
    path = tmp_path / "source.sif"
    make(path)
    refuses(folder, path, message, error=RefusedError)


def test_a_sparse_giant_is_refused_unread(folder, source, monkeypatch):
    monkeypatch.setattr(sif, "read", None)
    os.truncate(source, 100 * 1024**3)
    refuses(folder, source, "max_size_mib error: it has 107374182400 bytes", error=RefusedError)


@pytest.mark.parametrize("size", [100, len(IMAGE) - 1])
def test_a_source_that_shrinks_during_the_copy_is_refused(folder, source, monkeypatch, size):
    real = Store._copy

    def copy(self, opened, target):
        os.truncate(source, size)
        return real(self, opened, target)

    monkeypatch.setattr(Store, "_copy", copy)
    refuses(folder, source, "hello_1.0.sif can't be published: .*became shorter while it was read")


def test_a_source_that_changes_during_the_copy_is_refused(folder, source, monkeypatch):
    real = Store._copy

    def copy(self, opened, target):
        real(self, opened, target)
        os.utime(source, ns=(1, 1))

    monkeypatch.setattr(Store, "_copy", copy)
    refuses(folder, source, "hello_1.0.sif can't be published: .*changed while it was read")


def test_a_copy_that_differs_is_refused(folder, source, monkeypatch):
    real = image_store._write

    def write(descriptor, octets):
        flipped = bytearray(octets)
        flipped[-1] ^= 1
        real(descriptor, flipped)

    monkeypatch.setattr(image_store, "_write", write)
    refuses(folder, source, "was to be published|structure error|digest")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.rmdir(), "No such file or directory; make the folder of the store first"),
        (lambda path: (path.rmdir(), path.write_text("")), "is no folder"),
        (lambda path: path.chmod(0o777), r"can be written by others .owner \S+, mode 0777."),
        (lambda path: path.chmod(0o1777), "can be written by others"),
        (lambda path: path.chmod(0o775), "can be written by others"),
    ],
)
def test_a_folder_that_is_no_store_is_refused(folder, source, change, message):
    change(folder)
    with pytest.raises(StoreError, match=message):
        store(folder)


def test_a_folder_above_that_others_can_write_to_is_refused(folder, source):
    folder.parent.chmod(0o777)
    with pytest.raises(StoreError, match=f"^{folder.parent} can be written by others"):
        store(folder)
    # As /tmp is, in which nobody can take away what is another one's.
    folder.parent.chmod(0o1777)
    store(folder)


# --- full disks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "fsync", "link", "rename", "fchmod"])
def test_whatever_fails_no_part_is_left(folder, source, monkeypatch, call):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(image_store.os, call, fail)
    if call == "rename":
        # By then the image is published, and only its digest is missing: the next run writes it.
        with pytest.raises(StoreError, match="No space left on device"):
            store(folder).publish(HELLO, source)
        assert contents(folder) == {"hello_1.0.sif": IMAGE}
        monkeypatch.undo()
        assert store(folder).publish(HELLO, source) is True
        assert contents(folder) == PUBLISHED
    else:
        refuses(
            folder, source, "can't be published: No space left on device.*; make room, and publish it again"
        )


def test_a_disk_that_is_too_full_is_known_before_the_copy(folder, source, monkeypatch):
    full = os.statvfs_result((4096, 4096, 100, 5, 5, 9, 9, 9, 0, 255))
    monkeypatch.setattr(image_store.os, "fstatvfs", lambda _: full)
    monkeypatch.setattr(image_store, "_write", None)
    refuses(folder, source, f"No space left on device: it has {len(IMAGE)} bytes; make room")


def test_a_limit_of_file_size_leaves_no_part(folder, source):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        refuses(folder, source, "can't be published: File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB, a quarter of it free."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=755", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a file system")
    try:
        (path / "filler").write_bytes(bytes(192 * 1024))
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("early", [True, False])
def test_a_really_full_disk_leaves_the_store_as_it_was(small_disk, tmp_path, monkeypatch, early):
    large = images.image(labels={"x": "y" * 100_000})
    image = Locked("large", "1", hashlib.sha256(large).hexdigest(), len(large))
    source = images.put(tmp_path / "large.sif", large)
    if not early:
        plenty = os.statvfs_result((4096, 4096, 10**6, 10**6, 10**6, 9, 9, 9, 0, 255))
        monkeypatch.setattr(image_store.os, "fstatvfs", lambda _: plenty)
    refuses(small_disk, source, "can't be published: No space left on device", image)
    (small_disk / "filler").unlink()
    assert not list(small_disk.iterdir())
    assert store(small_disk).publish(image, str(source)) is True


# --- file systems without hard links ------------------------------------------------------------------------


@pytest.fixture
def no_links(monkeypatch):
    def link(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(image_store.os, "link", link)


def test_without_hard_links_it_is_renamed(folder, source, no_links):
    assert store(folder).publish(HELLO, source) is True
    assert contents(folder) == PUBLISHED


def test_a_rename_replaces_nothing_either(folder, source, no_links, monkeypatch):
    def taken(self, *_):
        (folder / "hello_1.0.sif").write_bytes(OTHER)

    monkeypatch.setattr(Store, "_remove_abandoned", taken)
    with pytest.raises(StoreError, match="is there, and it is another image"):
        store(folder).publish(HELLO, source)
    assert contents(folder) == {"hello_1.0.sif": OTHER}


def test_a_link_whose_answer_was_lost_is_a_link(folder, source, monkeypatch):
    """As over NFS: it was done, and the second try says that the name is taken."""
    real = os.link

    def link(*arguments, **options):
        real(*arguments, **options)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(image_store.os, "link", link)
    assert store(folder).publish(HELLO, source) is True
    assert contents(folder) == PUBLISHED


# --- many at once, and those that were killed ---------------------------------------------------------------


def _publish(folder, source, digest, queue, barrier):
    image = Locked("hello", "1.0", digest, 1)
    mine = store(folder)
    barrier.wait()
    try:
        queue.put("published" if mine.publish(image, source) else "there")
    except StoreError as error:
        queue.put("refused" if "is there, and it is another image" in str(error) else str(error))


@pytest.mark.parametrize("contenders", [1, 3])
def test_of_many_publishers_one_wins(folder, tmp_path, contenders):
    """Twelve processes, with one content or with three for the same name."""
    made = [images.image(labels={"n": str(n)}) for n in range(contenders)]
    sources = [images.put(tmp_path / f"{n}.sif", content) for n, content in enumerate(made)]
    digests = [hashlib.sha256(content).hexdigest() for content in made]
    context = multiprocessing.get_context("fork")
    queue, barrier = context.Queue(), context.Barrier(12)
    processes = [
        context.Process(
            target=_publish,
            args=(folder, str(sources[n % contenders]), digests[n % contenders], queue, barrier),
        )
        for n in range(12)
    ]
    for process in processes:
        process.start()
    ended = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    found = contents(folder)
    assert set(found) == {"hello_1.0.sif", "hello_1.0.sif.sha256"}
    winner = hashlib.sha256(found["hello_1.0.sif"]).hexdigest()
    assert found["hello_1.0.sif.sha256"] == f"{winner}  hello_1.0.sif\n".encode()
    assert set(ended) <= {"published", "there", "refused"} and "published" in ended
    assert ended.count("refused") == 12 - 12 // contenders


@pytest.mark.parametrize("moment", ["_copy", "_must_be_good"])
def test_a_publisher_that_is_killed_leaves_no_image_and_is_swept_up_later(
    folder, source, monkeypatch, moment
):
    pid = os.fork()
    if pid == 0:
        calls = []

        def die(*_):
            calls.append(1)
            if moment == "_copy" or len(calls) == 2:
                os.kill(os.getpid(), 9)

        setattr(Store, moment, die)
        store(folder).publish(HELLO, source)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 9
    left = list(folder.iterdir())
    assert len(left) == 2 and all(path.name.startswith(".hello_1.0.sif.") for path in left)
    assert not any(path.name.endswith(".sif") for path in left)
    old = time.time() - 2 * 86400
    os.utime(left[0], (old, old))
    store(folder).publish(HELLO, source)
    # What is not old may be somebody's who is at work.
    assert set(contents(folder)) == {*PUBLISHED, left[1].name}


# --- quarantine ---------------------------------------------------------------------------------------------


def quarantine(folder, **options):
    return store(folder).quarantine("hello", "1.0", "a key in it", **options)


def test_an_image_goes_into_quarantine_with_the_reason(folder, source):
    store(folder).publish(HELLO, source)
    with (folder / "hello_1.0.sif").open("rb") as running:
        record = quarantine(folder)
        assert running.read() == IMAGE
    assert (record.sha256, record.reason) == (DIGEST, "a key in it")
    assert store(folder).quarantined() == [record]
    place = f".quarantine/hello_1.0.sif.{DIGEST[:16]}.{record.when}"
    found = contents(folder)
    assert set(found) == {place, f"{place}.json"} and found[place] == IMAGE
    assert json.loads(found[f"{place}.json"]) == {
        "name": "hello",
        "version": "1.0",
        "sha256": DIGEST,
        "reason": "a key in it",
        "when": record.when,
    }
    assert (folder / ".quarantine").stat().st_mode & 0o7777 == 0o700


def test_what_is_in_quarantine_does_not_come_back_by_itself(folder, source):
    store(folder).publish(HELLO, source)
    record = quarantine(folder)
    refuses(
        folder, source, "this content is in quarantine: a key in it. If it is good again, remove .*json first"
    )
    refuses(folder, source, "is in quarantine", Locked("hello", "1.1", DIGEST, 1))
    (json_file,) = (folder / ".quarantine").glob("*.json")
    json_file.unlink()
    assert store(folder).publish(HELLO, source) is True
    again = quarantine(folder)
    assert again.sha256 == record.sha256


def test_what_is_not_there_cannot_be_taken_out(folder):
    assert quarantine(folder) is None
    assert contents(folder) == {}


def test_dry_run_of_quarantine(folder, source):
    store(folder).publish(HELLO, source)
    assert quarantine(folder, dry_run=True).sha256 == DIGEST
    assert contents(folder) == PUBLISHED


def test_a_broken_image_can_be_taken_out_too(folder):
    (folder / "hello_1.0.sif").write_bytes(b"broken")
    assert quarantine(folder).sha256 == "unknown"
    assert not (folder / "hello_1.0.sif").exists()


def test_a_record_that_is_none_stops_publication(folder, source):
    (folder / ".quarantine").mkdir(mode=0o700)
    (folder / ".quarantine/x.json").write_text("{}")
    refuses(folder, source, "x.json is no record: .*; mend or remove it")


def test_quarantine_of_one_that_was_killed_in_between_goes_on(folder, source, monkeypatch):
    store(folder).publish(HELLO, source)

    real = os.rename

    def fail(source, target):
        if str(source).endswith("hello_1.0.sif"):
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(image_store.os, "rename", fail)
    with pytest.raises(StoreError, match="can't be taken out of the store: Input/output error"):
        quarantine(folder)
    assert (folder / "hello_1.0.sif").exists() and len(store(folder).quarantined()) == 1
    monkeypatch.undo()
    assert quarantine(folder).sha256 == DIGEST
    assert not (folder / "hello_1.0.sif").exists()


# --- the digest beside it -----------------------------------------------------------------------------------


def test_a_digest_that_sha256sum_wrote_is_read():
    assert image_store.read_digest(f"{DIGEST}  a_1.sif\n".encode(), "a_1.sif") == DIGEST
    assert image_store.read_digest(f"{DIGEST} *a_1.sif".encode(), "a_1.sif") == DIGEST


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not what sha256sum writes"),
        (b"\xff", "no text"),
        (DIGEST.encode(), "not what sha256sum writes"),
        (f"{DIGEST.upper()}  a_1.sif\n".encode(), "not what sha256sum writes"),
        (f"{DIGEST[1:]}  a_1.sif\n".encode(), "not what sha256sum writes"),
        (f"{DIGEST}  b_1.sif\n".encode(), "it is for 'b_1.sif', not 'a_1.sif'"),
        (f"{DIGEST}  a_1.sif\n{DIGEST}  b\n".encode(), "it is for"),
    ],
)
def test_another_file_is_no_digest(content, message):
    with pytest.raises(ValueError, match=message):
        image_store.read_digest(content, "a_1.sif")
