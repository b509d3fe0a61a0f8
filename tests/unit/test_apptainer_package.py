"""Apptainer's packages on a Debian node: a small model of dpkg, apt and apptainer stands for the programs."""

import hashlib
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from module_utils import apptainer_apt

KEY = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDME\n=ts/W\n-----END PGP PUBLIC KEY BLOCK-----\n"
REPOSITORY = {"url": "http://repo/", "suite": "lab", "component": "main", "key": KEY}


class FakeNode:
    """A node with apt. Tests set the attributes; `done` are the commands that would change a real node."""

    def __init__(self, folder):
        self.packages = {}  # what dpkg has
        self.running = None  # what the program says, if it differs from what dpkg has
        self.offered = ["1.4.6-2", "1.4.5-2"]
        self.known = False  # whether apt has the repository's lists
        self.broken_mirror = 0  # downloads that fail before one succeeds
        self.locked = 0  # calls of apt that find the lists or the archives locked
        self.waited, self.after_wait = 0, lambda: None
        self.lock = "/var/lib/apt/lists/lock"
        self.holds = []  # what the site has on hold
        self.conflicts = {}  # what apt would remove for it
        self.done = []
        self.starter = folder / "lib" / "apptainer" / "bin" / "starter-suid"
        self.starter.parent.mkdir(parents=True)

    def run(self, argv, **_):
        name = argv[0].rsplit("/", 1)[-1]
        return getattr(self, "run_" + name.replace("-", "_"))(argv)

    def run_dpkg_query(self, argv):
        names = argv[argv.index("--") + 1 :]
        shown = [f"{name} installed {self.packages[name]}" for name in names if name in self.packages]
        return int(len(shown) < len(names)), "".join(f"{row}\n" for row in shown), ""

    def run_apptainer(self, argv):
        if argv[1] == "--version":
            said = self.running or self.packages["apptainer"].split("-")[0]
            return 0, f"apptainer version {said}\n", ""
        return 0, f"{self.starter.parents[2]}\n", ""

    def run_dpkg_deb(self, argv):
        """A package file has nothing but its fields here."""
        said = Path(argv[-1]).read_text()
        return (0, said, "") if len(said.split()) == 3 else (2, "", "no Debian format")

    def run_apt_mark(self, argv):
        if argv[1] == "showhold":
            return 0, "".join(f"{name}\n" for name in self.holds), ""
        self.done.append(" ".join(argv))
        if argv[1] == "hold":
            self.holds += argv[2:]
        else:
            self.holds = [name for name in self.holds if name not in argv[2:]]
        return 0, "", ""

    def run_apt_cache(self, _):
        rows = [f" apptainer | {version} | http://repo lab/main amd64 Packages" for version in self.offered]
        rows.append(" apptainer | 9.9.9-1 | http://elsewhere lab/main amd64 Packages")
        return 0, "\n".join(rows if self.known else rows[-1:]), ""

    def run_apt_get(self, argv):
        own_lists = any(word.startswith("Dir::State::Lists=") for word in argv)
        if self.locked and not own_lists and "--simulate" not in argv:
            self.locked -= 1
            return 100, "", f"E: Could not get lock {self.lock}. It is held by process 7 (apt-get)\n"
        if argv[1] == "update":
            self.known = True
            return 0, "", ""
        changes = argv[argv.index("--") + 1 :]
        # apt takes names that it doesn't know for regular expressions.
        changes = ["fuse2fs" if word == "fuse.fs" else word for word in changes]
        after = dict(self.packages)
        lines = []
        for word in changes:
            given = "=".join(Path(word).read_text().split()[:2]) if word.startswith("/") else word
            package, _, version = given.partition("=")
            if word.endswith("-"):
                if after.pop(word[:-1], None):
                    lines.append(f"Remv {word[:-1]} [{self.packages[word[:-1]]}]")
            elif after.get(package) != (version or after.get(package, "")) or "--reinstall" in argv:
                old = f" [{self.packages[package]}]" if package in self.packages else ""
                lines.append(f"Inst {package}{old} ({version or '1.0'} Lab:1 [amd64])")
                after[package] = version or "1.0"
        lines += [f"Remv {name} [{version}]" for name, version in self.conflicts.items()]
        if "--simulate" not in argv:
            if self.broken_mirror:
                self.broken_mirror -= 1
                return 100, "", "E: Failed to fetch\n"
            self.done.append(" ".join(argv))
            self.packages = after
            if "--reinstall" in argv:
                self.running = None
            if "apptainer-suid" in after:
                self.set_starter(0o4755)
            elif any(line.startswith("Remv") for line in lines):
                self.starter.unlink(missing_ok=True)
        return 0, "\n".join(lines), ""

    def sleep(self, _):
        """What the module does where it waits."""
        self.waited += 1
        self.after_wait()

    def set_starter(self, mode):
        self.starter.touch()
        self.starter.chmod(mode)


@pytest.fixture
def node(tmp_path):
    return FakeNode(tmp_path)


@pytest.fixture
def package(package_runner, node, tmp_path, monkeypatch):
    """The module, on that node, with the files of apt below tmp_path."""
    runner = package_runner(node, "debian-13")
    apt = runner.plugin.apptainer_apt
    for name in ("SOURCES", "PREFERENCES"):
        monkeypatch.setattr(apt, name, str(tmp_path / name.lower() / f"apptainer.{name.lower()}"))
    monkeypatch.setattr(apt, "LISTS", str(tmp_path / "lists"))
    monkeypatch.setattr(apt, "UPDATES", str(tmp_path / "updates"))
    monkeypatch.setattr(apt, "DPKG_LOCK", str(tmp_path / "lock-frontend"))

    def call(check=False, **arguments):
        given = {"version": "1.4.5", "repository": REPOSITORY, "helpers": [], **arguments}
        return runner(check=check, **given)

    call.plugin = runner.plugin
    call.preferences = tmp_path / "preferences" / "apptainer.preferences"
    call.sources = tmp_path / "sources" / "apptainer.sources"
    call.updates, call.dpkg_lock = tmp_path / "updates", tmp_path / "lock-frontend"
    return call


def test_a_bare_node_gets_the_version_and_the_pin_and_then_nothing_more(package, node):
    result = package(helpers=["squashfuse"])
    assert result["changed"] and result["version"] == "1.4.5-2" and result["previous_version"] == ""
    assert node.packages == {"apptainer": "1.4.5-2", "squashfuse": "1.0"}
    assert "Pin: version 1.4.5-2\nPin-Priority: 1001" in package.preferences.read_text()
    assert "Package: apptainer-suid\nPin: version *\nPin-Priority: -1" in package.preferences.read_text()
    node.done.clear()
    again = package(helpers=["squashfuse"])
    assert not again["changed"] and again["version"] == "1.4.5-2" and not node.done and "diff" not in again


def test_check_mode_on_a_bare_node_predicts_and_leaves_it_bare(package, node):
    predicted = package(check=True)
    assert not node.packages and not node.done and not package.sources.exists()
    real = package()
    assert {**predicted, "invocation": 0} == {**real, "invocation": 0}
    assert real["transaction"] == ["install apptainer 1.4.5-2"]


@pytest.mark.parametrize(
    ("first", "second"), [("1.4.5", "1.4.6"), ("1.4.6", "1.4.5"), ("1.4.5-2", "1.4.6-2")]
)
def test_up_and_down_with_the_setuid_package_in_the_same_transaction(package, node, first, second):
    package(version=first, suid=True)
    node.done.clear()
    result = package(version=second, suid=True)
    assert node.packages == {"apptainer": result["version"], "apptainer-suid": result["version"]}
    assert len(node.done) == 1 and "--allow-downgrades" in node.done[0]


def test_without_setuid_the_package_goes_in_the_same_transaction(package, node):
    package(suid=True)
    assert node.starter.stat().st_mode & stat.S_ISUID
    node.done.clear()
    result = package(version="1.4.6", suid=False)
    assert result["transaction"] == ["install apptainer 1.4.6-2", "remove apptainer-suid 1.4.5-2"]
    assert len(node.done) == 1 and not node.starter.exists()


def test_a_setuid_starter_that_belongs_to_no_package_is_found_and_removed(package, node):
    package()
    node.set_starter(0o4755)
    assert package(check=True)["changed"] and node.starter.exists()
    assert package()["changed"] and not node.starter.exists()
    assert not package()["changed"]


def test_a_setuid_starter_that_lost_its_bit_is_installed_again(package, node):
    package(suid=True)
    node.set_starter(0o755)
    assert package(suid=True)["changed"]
    assert "--reinstall" in node.done[-1] and node.starter.stat().st_mode & stat.S_ISUID


def test_a_program_that_says_another_version_is_installed_again(package, node):
    package()
    node.running = "1.4.4"
    assert package()["changed"] and "--reinstall" in node.done[-1] and node.running is None


def test_an_upgrade_that_changed_nothing_but_the_package_database_fails(package, node, monkeypatch):
    package()
    monkeypatch.setattr(node, "run_apptainer", lambda argv: (0, "apptainer version 1.4.5\n", ""))
    result = package(version="1.4.6")
    assert result["failed"] and "`apptainer --version` says 1.4.5" in result["msg"]


@pytest.mark.parametrize("check", [True, False])
def test_a_version_that_nobody_has_is_refused_before_anything_is_touched(package, node, check):
    result = package(version="1.4.99", check=check)
    assert result["failed"] and "apptainer_version" in result["msg"] and "1.4.6-2, 1.4.5-2" in result["msg"]
    assert not node.done and not package.sources.exists() and not package.preferences.exists()


def test_a_version_of_another_source_than_the_repository_does_not_count(package):
    assert "can't be had" in package(version="9.9.9")["msg"]
    assert package(version="9.9.9", repository=None)["version"] == "9.9.9-1"


def test_another_build_of_the_wanted_release_is_no_reason_to_move(package, node):
    package()
    node.offered = ["1.4.5-3", "1.4.5-2"]
    assert not package()["changed"]
    package.preferences.unlink()
    assert package()["version"] == "1.4.5-2"
    assert package(version="1.4.5-3")["version"] == "1.4.5-3"


def test_lists_that_are_out_of_date_are_fetched_again(package, node):
    node.broken_mirror = 1
    assert package()["changed"] and node.packages["apptainer"] == "1.4.5-2"
    node.broken_mirror = 2
    result = package(version="1.4.6")
    assert result["failed"] and "Failed to fetch" in result["msg"]
    assert package.sources.exists()
    # A pin to a version that could not be installed would let the next upgrade try it.
    assert "1.4.5-2" in package.preferences.read_text()


@pytest.mark.parametrize("lock", ["/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock"])
def test_locks_that_apt_does_not_wait_for_are_waited_for(package, node, lock):
    node.locked, node.lock = 3, lock
    assert package()["changed"] and node.waited == 3 and node.packages["apptainer"] == "1.4.5-2"


@pytest.mark.parametrize("lock", ["/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock"])
def test_a_lock_that_is_never_freed_is_an_error_and_nothing_is_written(package, node, lock):
    node.locked, node.lock = 1000, lock
    result = package()
    assert result["failed"] and f"{lock}. It is held by process 7" in result["msg"]
    assert node.waited == 60 and not node.done
    assert not package.sources.exists() and not package.preferences.exists()


def test_dpkgs_own_lock_is_not_waited_for_twice(package, node):
    node.locked, node.lock = 2, "/var/lib/dpkg/lock-frontend"
    assert "lock-frontend. It is held" in package()["msg"] and not node.waited


def test_nothing_is_written_when_apt_fails_on_a_bare_node(package, node):
    node.broken_mirror = 2
    assert package()["failed"] and not package.sources.exists() and not package.preferences.exists()


@pytest.mark.parametrize("check", [True, False])
def test_an_interrupted_dpkg_is_refused_with_the_mend(package, node, check):
    package.updates.mkdir()
    (package.updates / "tmp.i").touch()
    assert package(check=True)["changed"]
    (package.updates / "0001").touch()
    result = package(check=check)
    assert result["failed"] and "dpkg --configure -a" in result["msg"] and "0001" in result["msg"]
    assert not node.done and not node.waited and not package.sources.exists()


@pytest.fixture
def dpkg_at_work(package):
    """Another process that has dpkg's lock, until it is told to end."""
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"
    command = [sys.executable, "-c", hold, str(package.dpkg_lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_a_dpkg_at_work_is_waited_for_and_not_taken_for_an_interrupted_one(package, node, dpkg_at_work):
    package.updates.mkdir()
    (package.updates / "0001").touch()
    node.after_wait = (package.updates / "0001").unlink
    assert package()["changed"] and node.waited == 1


def test_a_dpkg_that_never_ends_is_an_error(package, node, dpkg_at_work):
    package.updates.mkdir()
    (package.updates / "0001").touch()
    result = package()
    assert result["failed"] and str(package.dpkg_lock) in result["msg"] and node.waited == 60


@pytest.mark.parametrize(
    "name",
    [
        *(
            "fuse2fs:amd64",
            "fuse2fs-",
            "fuse2fs=1",
            "fuse2fs/sid",
            "fuse^",
            "-oDPkg::Pre-Invoke::=x",
            "--purge",
        ),
        *("a*", "x", "../x.deb", "", "a b", "fuse2fs\n", "apptainer", "apptainer-suid"),
    ],
)
def test_a_helper_that_is_no_name_of_a_package_is_refused_before_the_node_is_looked_at(
    package, node, name, monkeypatch
):
    monkeypatch.setattr(node, "run", lambda *_, **__: pytest.fail("a program ran"))
    result = package(helpers=["squashfuse", name])
    assert result["failed"] and result["msg"].startswith("apptainer_helper_packages: ")
    assert name in result["msg"] or repr(name) in result["msg"]


def test_names_of_packages_with_signs_in_them_are_helpers_and_never_options(package, node):
    assert package(helpers=["g++", "libfuse3-4", "python3.13"])["changed"]
    assert {"g++", "libfuse3-4", "python3.13"} < set(node.packages)
    assert " -- apptainer=1.4.5-2 " in node.done[0] and node.done[0].endswith(" g++ libfuse3-4 python3.13")


def test_a_helper_that_apt_takes_for_something_else_is_refused_before_anything_is_touched(package, node):
    result = package(helpers=["fuse.fs"])
    assert result["failed"] and "apptainer_helper_packages: there is no package fuse.fs" in result["msg"]
    assert not node.done and not package.sources.exists()


def test_the_source_goes_when_no_repository_is_wanted_any_more(package):
    package()
    assert package.sources.exists()
    package(repository=None)
    assert not package.sources.exists()


def test_a_key_that_is_none_is_refused(package, node):
    result = package(repository={**REPOSITORY, "key": "binary"})
    assert (
        result["failed"]
        and "apptainer_repository: the file with the key is no ASCII-armored" in result["msg"]
    )
    assert not node.done


@pytest.mark.parametrize("name", ["apptainer", "apptainer-suid"])
def test_what_the_site_holds_is_not_moved(package, node, name):
    package(suid=True)
    node.holds = [name]
    node.done.clear()
    for check in (True, False):
        result = package(version="1.4.6", suid=True, check=check)
        assert result["failed"] and f"`apt-mark showhold` names {name}" in result["msg"]
        assert f"`apt-mark unhold {name}`" in result["msg"] and not node.done
    # Nor is it in the way where it is.
    assert not package(suid=True)["changed"]
    assert ("failed" in package(suid=False)) is (name == "apptainer-suid")


def test_a_hold_is_released_where_the_site_says_so_and_only_of_what_moves(package, node):
    package(suid=True)
    node.holds = ["apptainer", "kernel"]
    node.done.clear()
    assert not package(suid=True, release_hold=True)["changed"] and "apptainer" in node.holds
    predicted = package(version="1.4.6", suid=True, release_hold=True, check=True)
    assert predicted["changed"] and node.holds == ["apptainer", "kernel"] and not node.done
    done = package(version="1.4.6", suid=True, release_hold=True)
    assert done["transaction"] == predicted["transaction"] and node.holds == ["kernel"]
    assert node.done[0] == "apt-mark unhold apptainer"


def test_a_hold_is_there_again_if_nothing_could_be_installed(package, node):
    package()
    node.holds, node.broken_mirror = ["apptainer"], 9
    assert package(version="1.4.6", release_hold=True)["failed"]
    assert node.holds == ["apptainer"]


def test_what_else_is_on_hold_does_not_move_with_it(package, node):
    package()
    node.holds, node.conflicts = ["apptainer", "fuse3"], {"fuse3": "1.0"}
    node.done.clear()
    result = package(version="1.4.6", release_hold=True)
    assert result["failed"] and "without fuse3, which this node holds" in result["msg"] and not node.done


def test_nothing_but_apptainer_is_removed_for_it(package, node):
    node.conflicts = {"singularity-container": "3.11-1"}
    result = package()
    assert result["failed"] and "beside singularity-container 3.11-1" in result["msg"]
    assert not node.done and not package.sources.exists()


def test_without_helpers_those_of_the_distribution_are_there(package, node):
    package(helpers=None)
    assert {"fuse-overlayfs", "fuse2fs", "gocryptfs", "squashfuse"} < set(node.packages)


def test_a_repository_of_another_package_manager_is_refused(package, node):
    result = package(repository={"url": "http://repo/", "key": KEY})
    assert (
        result["failed"]
        and "apptainer_repository: Debian 12 and 13 has apt: give it its suite" in result["msg"]
    )
    assert not node.done


def test_the_key_stands_inside_the_source_without_an_empty_line():
    text = apptainer_apt.sources(apptainer_apt.Repository(**REPOSITORY))
    assert "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDME\n" in text
    assert all(line.startswith(" ") or ": " in line or line.endswith(":") for line in text.splitlines())


def test_what_apt_says_is_read():
    assert apptainer_apt.installed("apptainer installed 1.4.5-2\nfoo config-files 1\n") == {
        "apptainer": "1.4.5-2"
    }
    simulation = (
        "NOTE: This is only a simulation!\nInst libfuse3 (3.17 Debian:13 [amd64]) []\n"
        "Inst apptainer [1.4.6-2] (1.4.5-2 Lab:1 [amd64])\nRemv apptainer-suid [1.4.6-2]\n"
        "Conf apptainer (1.4.5-2)\n"
    )
    assert apptainer_apt.planned(simulation) == [
        ("install", "libfuse3", "3.17", ""),
        ("install", "apptainer", "1.4.5-2", "1.4.6-2"),
        ("remove", "apptainer-suid", "", "1.4.6-2"),
    ]


# Package files


@pytest.fixture
def file(tmp_path):
    """Return what makes a package file that a URL leads to, as an entry of the option."""

    def make(name, version="1.4.5-2", architecture="amd64", **change):
        path = tmp_path / f"{name}_{version}_{architecture}.deb"
        path.write_text(f"{name} {version} {architecture}")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return {"url": f"file://{path}", "sha256": digest, **change}

    return make


def both(file, version="1.4.5-2"):
    return [file("apptainer", version), file("apptainer-suid", version)]


def test_files_are_installed_in_one_transaction_and_not_looked_at_again(package, node, file):
    result = package(repository=None, suid=True, files=both(file))
    assert result["changed"] and node.packages == {"apptainer": "1.4.5-2", "apptainer-suid": "1.4.5-2"}
    assert len(node.done) == 1 and not package.sources.exists() and not node.known
    assert "Pin: version 1.4.5-2" in package.preferences.read_text()
    nowhere = [{"url": "file:///nowhere.deb", "sha256": "0" * 64}]
    assert not package(repository=None, suid=True, files=nowhere)["changed"]


@pytest.mark.parametrize(("first", "second"), [("1.4.5", "1.4.6"), ("1.4.6", "1.4.5")])
def test_files_bring_both_packages_up_and_down(package, node, file, first, second):
    for version in (first, second):
        package(repository=None, version=version, suid=True, files=both(file, f"{version}-2"))
    assert node.packages == {"apptainer": f"{second}-2", "apptainer-suid": f"{second}-2"}


def test_a_setuid_starter_that_nobody_wants_stays_out(package, node, file):
    result = package(repository=None, files=both(file))
    assert result["transaction"] == ["install apptainer 1.4.5-2"]
    assert package(repository=None, files=both(file), check=True)["changed"] is False


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, f"and {'0' * 64} was promised"),
        ({"sha256": "ABC"}, "has no sha256 of 64 hexadecimal digits in small letters"),
        ({"url": "ftp://x/a.deb"}, "is no URL that begins with https://"),
        ({"url": "https://x/a.zip"}, "is no package by its name"),
        ({"url": "file:///nowhere/a.deb"}, "can't be had"),
        ({"url": None}, "has to have one of file (on the controller) and url"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_is_touched(package, file, change, message, check):
    result = package(repository=None, files=[file("apptainer", **change)], check=check)
    assert result["failed"] and message in result["msg"] and "apptainer_package_files" in result["msg"]
    assert not package.preferences.exists() and not package(check=True)["previous_version"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("apptainer-suid", "1.4.5-2")], "apptainer is missing"),
        ([("apptainer", "1.4.5-2")], "apptainer-suid is missing"),
        (
            [("apptainer", "1.4.6-2"), ("apptainer-suid", "1.4.6-2")],
            "apptainer is 1.4.6-2, and apptainer_version",
        ),
        (
            [("apptainer", "1.4.5-2"), ("apptainer-suid", "1.4.5-3")],
            "apptainer-suid is 1.4.5-3, and apptainer is",
        ),
        (
            [("apptainer", "1.4.5-2"), ("apptainer", "1.4.5-3"), ("apptainer-suid", "1.4.5-2")],
            "apptainer is there twice",
        ),
        (
            [("apptainer", "1.4.5-2", "arm64"), ("apptainer-suid", "1.4.5-2")],
            "is for arm64, and this node takes amd64",
        ),
        ([("nothing", "", "")], "dpkg can't read nothing__.deb"),
    ],
)
def test_files_that_do_not_fit_are_refused(package, node, file, files, message):
    result = package(repository=None, suid=True, files=[file(*one) for one in files])
    assert result["failed"] and message in result["msg"] and not node.done


def test_files_of_the_controller_are_asked_for_only_when_they_are_needed(package, node, file, tmp_path):
    given = file("apptainer")
    path = given.pop("url")[7:]
    asked = package(repository=None, files=[{**given, "file": path}])
    assert asked["missing_files"] == [given["sha256"]] and not asked["changed"] and not node.done
    brought = tmp_path / "brought"
    brought.write_bytes(Path(path).read_bytes())
    assert package(repository=None, files=[{**given, "file": path, "path": str(brought)}])["changed"]
    assert "missing_files" not in package(repository=None, files=[{**given, "file": path}])


# Singularity


@pytest.fixture
def singularity(package, node, tmp_path, monkeypatch):
    """A node with SingularityCE; returns where its configuration is kept."""
    node.packages["singularity-ce"] = "4.1.5-1"
    (tmp_path / "singularity.conf").write_text("max loop devices = 64\n")
    kept = tmp_path / "kept" / "singularity.conf"
    module = package.plugin.apptainer_packages.singularity_conf
    keep = module.keep
    monkeypatch.setattr(module, "keep", lambda: keep(str(tmp_path / "singularity.conf"), str(kept)))
    return kept


def test_singularity_goes_in_the_same_transaction_and_its_settings_are_kept(package, node, singularity):
    predicted = package(replace_singularity=True, check=True)
    assert "remove singularity-ce 4.1.5-1" in predicted["transaction"] and not singularity.exists()
    result = package(replace_singularity=True)
    assert result["transaction"] == predicted["transaction"] and len(node.done) == 1
    assert node.packages == {"apptainer": "1.4.5-2"} and singularity.read_text() == "max loop devices = 64\n"
    assert not package(replace_singularity=True)["changed"]


def test_singularity_that_is_not_to_be_replaced_stays_or_is_in_the_way(package, node, singularity):
    assert package()["transaction"] == ["install apptainer 1.4.5-2"] and not singularity.exists()
    node.conflicts = {"singularity-ce": "4.1.5-1"}
    result = package(version="1.4.6")
    assert result["failed"] and "set apptainer_replace_singularity to true" in result["msg"]
