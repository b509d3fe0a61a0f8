"""apptainer.conf between two releases: what is left of it, both can read."""

import apptainer_conf_upstream as upstream
import pytest

from module_utils import apptainer_conf, apptainer_packages, apptainer_transition, apptainer_version

NEW = apptainer_conf.render({"mount tmp": False, "enable underlay": "preferred"}, "1.5.0")


def test_a_downgrade_takes_out_what_would_stop_the_older_release():
    with pytest.raises(upstream.FatalError):
        upstream.read(NEW.encode(), "1.2.5")
    eased = apptainer_transition.eased(NEW, "1.2.5")
    before, after = NEW.split("\n"), eased.split("\n")
    changed = [old for old, new in zip(before, after, strict=True) if old != new]
    assert changed == ["enable underlay = preferred", "allow setuid-mount squashfs = iflimited"]
    # Everything else is in force before and after.
    assert upstream.read(eased.encode(), "1.2.5")["mount tmp"] == "no"
    assert upstream.read(eased.encode(), "1.5.0")["mount tmp"] == "no"


@pytest.mark.parametrize("release", list(upstream.MATRIX))
def test_files_of_all_releases_can_be_read_by_all_others(release):
    for other in apptainer_conf.expand():
        config = {name: d.choices[-1] for name, d in apptainer_conf.schema(other).items() if d.choices}
        text = apptainer_conf.render(config, other)
        upstream.read(apptainer_transition.eased(text, release).encode(), release)


def test_what_is_left_of_files_that_are_almost_right_can_be_read():
    for release, content in upstream.mutants(11, 2000):
        eased = apptainer_transition.eased(upstream.text_of(content), release)
        truth = upstream.read(eased.encode(errors="surrogateescape"), release)
        try:
            assert truth == upstream.read(content, release) and eased == upstream.text_of(content)
        except upstream.FatalError:
            assert eased != upstream.text_of(content)


class Manager:
    """A package manager that looks at the file while it works, and may fail."""

    def __init__(self, file):
        self.file, self.seen, self.fails = file, "", False

    def apply(self, *_):
        self.seen = self.file.read_text()
        if self.fails:
            raise apptainer_packages.PackageError("no")


@pytest.fixture
def exchange(tmp_path, monkeypatch):
    """What exchanges the packages for a release, with the file on that node; nothing after it."""
    file = tmp_path / "apptainer.conf"
    file.write_text(NEW)
    monkeypatch.setattr(apptainer_transition, "CONFIGURATION", str(file))
    monkeypatch.setattr(apptainer_transition.atomic_file.os, "fchown", lambda *_: None)
    manager = Manager(file)

    def run(release):
        request = apptainer_packages.Request(apptainer_version.parse(release))
        packages = apptainer_packages.Packages(request, lambda _: (0, "", ""), manager)
        monkeypatch.setattr(packages, "_broken", lambda _: False)
        monkeypatch.setattr(packages, "wanted_files", lambda _: {})
        monkeypatch.setattr(packages, "wrong", lambda _: [])
        monkeypatch.setattr(
            packages, "state", lambda: apptainer_packages.State(packages={}, program=None, files={})
        )
        packages.apply(None, apptainer_packages.Plan(version=release, steps=[]))

    return manager, run


def test_the_file_is_readable_before_the_packages_are_exchanged(exchange):
    manager, run = exchange
    run("1.2.5")
    upstream.read(manager.seen.encode(), "1.2.5")
    assert manager.file.read_text() == manager.seen != NEW


def test_a_transaction_that_fails_gets_the_file_back(exchange):
    manager, run = exchange
    manager.fails = True
    with pytest.raises(apptainer_packages.PackageError):
        run("1.2.5")
    assert manager.seen != NEW and manager.file.read_text() == NEW


def test_a_file_that_both_read_is_not_touched(exchange):
    manager, run = exchange
    before = manager.file.stat().st_ino
    for release in ("1.5.3", "1.4.5", "1.3.6", "9.9.9"):
        run(release)
        assert manager.seen == NEW and manager.file.stat().st_ino == before
    manager.file.unlink()
    manager.apply = lambda *_: None
    run("1.2.5")
    assert not manager.file.exists()
