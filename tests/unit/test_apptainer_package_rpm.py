"""Apptainer's packages on nodes with dnf and with zypper: a small model stands for the programs.

What the two have in common is tested for both; the real ones are in the scenario apptainer_rpm.
"""

import hashlib
import json
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest

from module_utils import apptainer_dnf, apptainer_packages, apptainer_zypper

KEY = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDME\n=ts/W\n-----END PGP PUBLIC KEY BLOCK-----\n"
REPOSITORY = {"url": "http://repo/", "key": KEY}


class FakeNode:
    """A node with rpm. Tests set the attributes; `done` are the transactions that change a real node."""

    def __init__(self, folder):
        self.packages = {}  # what rpm has
        self.running = None  # what the program says, if it differs from what rpm has
        self.offered = ["1.4.6-1.el9", "1.4.5-1.el9"]
        self.fresh = []  # versions that are offered once all repositories have been asked for what is new
        self.hidden, self.holders = [], []  # versions that the site's settings hide, and which
        self.signatures = "digests signatures OK"
        self.conflicts = {}  # what would be removed for it
        self.locked = 0  # calls that find another at work
        self.problem = ""  # what the package manager says is wrong
        self.waited = 0
        self.done = []
        self.starter = folder / "libexec/apptainer/bin/starter-suid"
        self.starter.parent.mkdir(parents=True)
        self.programs = {"dnf": str(folder / "dnf")}
        Path(self.programs["dnf"]).write_text("#!/usr/libexec/platform-python -s\n")

    def run(self, argv, **_):
        words = argv[2:] if argv[0] == "env" else argv
        return getattr(self, "run_" + words[0].rpartition("/")[2].replace("-", "_"))(words)

    def sleep(self, _):
        self.waited += 1

    def run_apptainer(self, argv):
        if argv[1] == "--version":
            said = self.running or self.packages["apptainer"].split("-")[0]
            return 0, f"apptainer version {said}\n", ""
        return 0, f"{self.starter.parents[2]}\n", ""

    def run_rpm(self, argv):
        if argv[1] == "--import":
            return 0, "", ""
        if argv[2] == "--package":
            said = Path(argv[-1]).read_text()
            return (0, f"{said}\n", "") if len(said.split()) == 3 else (1, "", "not an rpm package")
        names = argv[3:]
        rows = [
            f"{name} {self.packages[name]}" if name in self.packages else f"package {name} is not installed"
            for name in names
        ]
        return int(not set(names) <= set(self.packages)), "\n".join(rows), ""

    def run_rpmkeys(self, argv):
        if argv[3] == "--import":
            return 0, "", ""
        return 0, f"{argv[4]}: {self.signatures}\n", ""

    def transaction(self, wanted, remove, helpers, again, dry):
        """What dnf and zypper do: return the steps."""
        after = {name: version for name, version in self.packages.items() if name not in remove}
        after.update({**wanted, **dict.fromkeys(helpers, "1.0-1")})
        steps = [("remove", name, "", version) for name, version in self.conflicts.items()]
        steps += [("remove", name, "", self.packages[name]) for name in remove]
        steps += [
            ("install", name, version, self.packages.get(name, ""))
            for name, version in after.items()
            if self.packages.get(name) != version or (again and name in wanted)
        ]
        if not dry:
            self.done.append([f"{action} {name} {new or old}" for action, name, new, old in steps])
            self.packages = after
            self.running = None if again else self.running
            if "apptainer-suid" in after:
                self.starter.touch()
                self.starter.chmod(0o4755)
            elif self.starter.exists() and remove:
                self.starter.unlink()
        return steps

    def run_platform_python(self, argv):
        request = json.loads(Path(argv[-1]).read_text())
        assert argv[1] == "-s" and Path(argv[2]).read_text().startswith("# SPDX")
        if self.locked:
            self.locked -= 1
            answer = {"locked": "process 7"}
        elif self.problem:
            answer = {"problem": self.problem}
        elif request["action"] == "offer":
            offered = self.fresh if request["refresh"] and self.fresh else self.offered
            answer = {"offered": offered, "hidden": self.hidden, "holders": self.holders}
        else:
            wanted = dict(map(_split, request["install"]))
            wanted.update(Path(path).read_text().split()[:2] for path in request["files"])
            dry = request["action"] == "plan"
            change = (wanted, request["remove"], request["helpers"], request["again"], dry)
            downloads = [f"/x/{spec}.rpm" for spec in request["install"]]
            answer = {"steps": self.transaction(*change), "downloads": downloads, "holders": self.holders}
        return 0, json.dumps(answer), ""

    def run_zypper(self, argv):
        if self.locked:
            self.locked -= 1
            return 7, "<stream></stream>", ""
        if self.problem:
            return 4, f"<stream><message type='error'>{self.problem}</message></stream>", ""
        command = next(word for word in argv if word in ("search", "refresh", "install", "download"))
        words = argv[argv.index(command) + 1 :]
        if command == "search":
            own = Path(argv[argv.index("--reposd-dir") + 1], "apptainer.repo")
            if own.exists() and "plaindir" in own.read_text():
                folder = Path(own.read_text().partition("dir://")[2].split("\n")[0])
                self.offered = [file.read_text().split()[1] for file in folder.glob("apptainer-1*")]
            rows = [
                f'<solvable name="apptainer" edition="{version}" repository="x"/>' for version in self.offered
            ]
            return 0 if rows else 104, _stream(*rows), ""
        if command == "refresh":
            self.offered = self.fresh or self.offered
            return 0, _stream(), ""
        if command == "download":
            return 0, _stream(*(f"<localfile path={quoteattr(f'/x/{word}.rpm')}/>" for word in words)), ""
        names = words[words.index("--") + 1 :]
        wanted = dict(word.rpartition(":")[2].split("=") for word in names if "=" in word)
        remove = [word[1:] for word in names if word.startswith("!")]
        helpers = [word for word in names if "=" not in word and not word.startswith("!")]
        steps = self.transaction(wanted, remove, helpers, "--force" in words, "--dry-run" in words)
        kinds = {"install": "to-install", "remove": "to-remove"}
        return 0, "scriptlet output\n" + _stream(*(_summary(kinds[step[0]], *step[1:]) for step in steps)), ""


def _split(spec):
    name, version, release = spec.rsplit("-", 2)
    return name, f"{version}-{release}"


def _stream(*rows):
    return f"<?xml version='1.0'?>\n<stream>\n{''.join(rows)}\n</stream>\n"


def _summary(kind, name, new, old):
    edition = f'edition="{new}" edition-old="{old}"' if new else f'edition="{old}"'
    return f'<{kind}><solvable name="{name}" {edition}/></{kind}>'


@pytest.fixture
def node(tmp_path):
    return FakeNode(tmp_path)


@pytest.fixture(params=["dnf", "zypper"])
def manager(request):
    return request.param


@pytest.fixture
def package(package_runner, node, tmp_path, monkeypatch, manager):
    """The module, on that node, with the files of the package manager below tmp_path."""
    runner = package_runner(node, {"dnf": "rocky-9.4", "zypper": "sles-15.6"}[manager])
    plugin = runner.plugin
    module = {"dnf": plugin.apptainer_dnf, "zypper": plugin.apptainer_zypper}[manager]
    monkeypatch.setattr(module, "REPOSITORY", str(tmp_path / "repos.d/apptainer.repo"))
    monkeypatch.setattr(module.apptainer_rpm, "KEY", str(tmp_path / "keys/KEY"))
    hold = {"dnf": "CONF", "zypper": "LOCKS"}[manager]
    monkeypatch.setattr(module, hold, str(tmp_path / "hold"))
    (tmp_path / "hold").write_text({"dnf": "[main]\ngpgcheck=1\n", "zypper": ""}[manager])
    if manager == "zypper":
        monkeypatch.setattr(module, "CONF", str(tmp_path / "zypp.conf"))

    def call(check=False, **arguments):
        return runner(check=check, **{"version": "1.4.5", "repository": REPOSITORY, **arguments})

    call.repository, call.key, call.hold = (
        tmp_path / "repos.d/apptainer.repo",
        tmp_path / "keys/KEY",
        tmp_path / "hold",
    )
    return call


def test_a_bare_node_gets_the_version_its_repository_and_the_hold_and_then_nothing_more(package, node):
    result = package()
    assert (result["changed"], result["version"], result["previous_version"]) == (True, "1.4.5-1.el9", "")
    assert node.done == [["install apptainer 1.4.5-1.el9"]]
    text = package.repository.read_text()
    assert "baseurl=http://repo/\n" in text and f"gpgcheck=1\ngpgkey=file://{package.key}\n" in text
    assert package.key.read_text() == KEY
    assert "apptainer" in package.hold.read_text() and "apptainer-suid" in package.hold.read_text()
    node.done.clear()
    again = package()
    assert not again["changed"] and not node.done and "diff" not in again


def test_check_mode_on_a_bare_node_predicts_and_leaves_it_bare(package, node):
    held = package.hold.read_text()
    predicted = package(check=True)
    assert not node.packages and not node.done
    assert not package.repository.exists() and not package.key.exists() and package.hold.read_text() == held
    real = package()
    assert {**predicted, "invocation": 0} == {**real, "invocation": 0}
    assert real["transaction"] == ["install apptainer 1.4.5-1.el9"]


@pytest.mark.parametrize(
    ("first", "second"), [("1.4.5", "1.4.6"), ("1.4.6", "1.4.5"), ("1.4.5-1.el9", "1.4.6-1.el9")]
)
def test_up_and_down_with_the_setuid_package_in_the_same_transaction(package, node, first, second):
    package(version=first, suid=True)
    node.done.clear()
    result = package(version=second, suid=True)
    assert node.packages == {"apptainer": result["version"], "apptainer-suid": result["version"]}
    assert len(node.done) == 1


def test_without_setuid_the_package_goes_in_the_same_transaction(package, node):
    package(suid=True)
    node.done.clear()
    result = package(version="1.4.6")
    assert sorted(result["transaction"]) == [
        "install apptainer 1.4.6-1.el9",
        "remove apptainer-suid 1.4.5-1.el9",
    ]
    assert len(node.done) == 1 and not node.starter.exists()


def test_a_program_that_says_another_version_is_installed_again(package, node):
    package()
    node.running = "1.4.4"
    assert package()["transaction"] == ["install apptainer 1.4.5-1.el9"] and node.running is None


@pytest.mark.parametrize("check", [True, False])
def test_a_version_that_the_repository_has_not_is_refused_before_anything_is_touched(package, node, check):
    result = package(version="1.4.99", check=check)
    assert result["failed"] and "1.4.99 (apptainer_version) can't be had" in result["msg"]
    assert "http://repo/ (apptainer_repository): 1.4.6-1.el9, 1.4.5-1.el9" in result["msg"]
    assert not node.done and not package.repository.exists()


def test_what_other_distributions_need_to_know_is_said_where_the_node_s_own_sources_lack_it(package):
    result = package(version="1.4.99", repository=None)
    assert (
        "the package sources of this node: 1.4.6-1.el9" in result["msg"]
        and "apptainer_repository)" in result["msg"]
    )


def test_metadata_that_is_out_of_date_is_fetched_again(package, node):
    node.fresh = ["1.4.7-1.el9"]
    assert package(version="1.4.7")["version"] == "1.4.7-1.el9"


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("said", ["digests OK", "digests SIGNATURES NOT OK"])
def test_packages_that_the_repository_s_key_has_not_signed_are_refused(package, node, said, check):
    node.signatures = said
    result = package(check=check)
    assert (
        result["failed"]
        and "apptainer_repository: its key has not signed" in result["msg"]
        and said in result["msg"]
    )
    assert not node.done and not package.repository.exists()


def test_where_the_node_s_own_sources_are_used_their_signatures_are_theirs_to_check(package, node):
    node.signatures = "digests OK"
    assert package(repository=None)["changed"] and not package.repository.exists()


def test_another_at_work_is_waited_for_and_in_the_end_named(package, node):
    node.locked = 3
    assert package()["changed"] and node.waited == 3
    node.locked = 10_000
    result = package(version="1.4.6")
    assert result["failed"] and "at work on this node's packages for 120 seconds" in result["msg"]


def test_what_the_package_manager_says_is_wrong_is_told(package, node):
    node.problem = "nothing provides libseccomp.so.2"
    result = package()
    assert result["failed"] and "nothing provides libseccomp.so.2" in result["msg"] and not node.done


def test_nothing_but_apptainer_is_removed_for_it(package, node):
    node.conflicts = {"singularity-ce": "4.1.0-1"}
    result = package()
    assert result["failed"] and "beside singularity-ce 4.1.0-1" in result["msg"] and not node.done


def test_the_repository_goes_when_none_is_wanted_any_more(package):
    package()
    assert package(repository=None)["changed"]
    assert not package.repository.exists() and not package.key.exists()


def test_an_apt_repository_is_refused(package, node):
    result = package(repository={**REPOSITORY, "suite": "stable", "component": "main"})
    assert result["failed"] and "leave suite and component out" in result["msg"] and not node.done


def test_a_key_that_is_none_is_refused(package, node):
    result = package(repository={**REPOSITORY, "key": "binary"})
    assert result["failed"] and "no ASCII-armored public key" in result["msg"] and not node.done


# --- what a site holds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("manager", ["dnf"], indirect=True)
def test_a_version_that_the_site_s_settings_hide_from_dnf_is_refused_with_their_names(package, node):
    package()
    node.offered, node.hidden, node.holders = [], ["1.4.6-1.el9"], ["excludepkgs in /etc/dnf/dnf.conf"]
    node.done.clear()
    result = package(version="1.4.6")
    assert result["failed"] and "this node holds it: excludepkgs in /etc/dnf/dnf.conf" in result["msg"]
    # Where it is, it may stay; and one that isn't there at all is not said to be held.
    assert not package()["changed"] and not node.done
    assert "can't be had" in package(version="1.4.99")["msg"]


@pytest.mark.parametrize("manager", ["zypper"], indirect=True)
@pytest.mark.parametrize("pattern", ["apptainer", "appt*"])
def test_what_the_site_has_locked_with_zypper_is_refused_with_the_lock(package, node, pattern):
    package()
    node.done.clear()
    with package.hold.open("a") as locks:
        locks.write(f"\ntype: package\nmatch_type: glob\ncase_sensitive: on\nsolvable_name: {pattern}\n")
    result = package(version="1.4.6")
    assert result["failed"] and f"`zypper removelock {pattern}`" in result["msg"] and not node.done
    assert not package()["changed"]


@pytest.mark.parametrize(
    ("conf", "line"),
    [
        ("[main]\ngpgcheck=1\n", "excludepkgs"),
        ("# comment\n[main]\nexcludepkgs=kernel*\n", "exclude"),
        ("[main]\nexclude = kernel*\n", "excludepkgs"),
        ("", "excludepkgs"),
        ("[main]", "excludepkgs"),
    ],
)
def test_the_hold_in_dnf_conf_leaves_the_site_its_own(conf, line):
    held = apptainer_dnf.hold(conf)
    assert f"\n{line}=apptainer,apptainer-suid\n" in held
    assert apptainer_dnf.hold(held) == held and apptainer_dnf.held_words(held) == [
        "apptainer",
        "apptainer-suid",
    ]
    assert not apptainer_dnf.held_words(conf)
    assert apptainer_dnf.release(held).rstrip() == (conf.rstrip() or "[main]")


def test_a_dnf_conf_without_room_for_the_hold_is_refused():
    with pytest.raises(apptainer_packages.PackageError, match="both excludepkgs and exclude"):
        apptainer_dnf.hold("[main]\nexclude=a\nexcludepkgs=b\n")


def test_locks_of_zypper_are_found_in_whatever_order_zypper_leaves_them():
    site = "\ntype: package\nmatch_type: glob\ncase_sensitive: on\nsolvable_name: apptainer\n\n"
    held = apptainer_zypper.hold(site)
    stanzas = held.split("\n\n")
    turned = "\n\n".join(reversed([stanza.strip("\n") for stanza in stanzas if stanza.strip()])) + "\n"
    assert apptainer_zypper.hold(turned) == turned and apptainer_zypper.hold(held) == held
    for text in (held, turned):
        assert apptainer_zypper.release(text).count("solvable_name: apptainer\n") == 1
        assert "apptainer-suid" not in apptainer_zypper.release(text)


# --- dnf's own Python ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first_line", "command"),
    [
        ("#!/usr/bin/python3\n", ["/usr/bin/python3"]),
        ("#!/usr/libexec/platform-python -s\n", ["/usr/libexec/platform-python", "-s"]),
        ("#! /usr/bin/python3\n", ["/usr/bin/python3"]),
    ],
)
def test_the_python_of_dnf_is_that_of_its_first_line(tmp_path, monkeypatch, first_line, command):
    (tmp_path / "dnf").write_text(first_line)
    monkeypatch.setattr(apptainer_dnf.shutil, "which", lambda *_, **__: str(tmp_path / "dnf"))
    assert apptainer_dnf.interpreter() == command


@pytest.mark.parametrize("content", [b"\x7fELF\x02\x01", None, b"#!/bin/sh\n"])
def test_a_node_without_dnf_4_is_refused(tmp_path, monkeypatch, content):
    if content is not None:
        (tmp_path / "dnf").write_bytes(content)
    which = None if content is None else str(tmp_path / "dnf")
    monkeypatch.setattr(apptainer_dnf.shutil, "which", lambda *_, **__: which)
    with pytest.raises(apptainer_packages.PackageError, match="no dnf of version 4"):
        apptainer_dnf.interpreter()


def test_a_dnf_library_that_cannot_be_used_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(apptainer_dnf, "interpreter", lambda: ["/usr/bin/python3"])

    def run(argv):
        return 1, "", "ModuleNotFoundError: No module named 'dnf'"

    dnf = apptainer_dnf.Dnf(run, tmp_path)
    state = apptainer_packages.State({}, None, {})
    version = apptainer_packages.apptainer_version.parse("1.4.5")
    with pytest.raises(apptainer_packages.PackageError, match="No module named 'dnf'"):
        dnf.plan(apptainer_packages.Request(version), state, broken=False)


# Package files


@pytest.fixture
def file(tmp_path):
    """Return what makes a package file that a URL leads to, as an entry of the option."""

    def make(name, version="1.4.5-1.el9", architecture="x86_64"):
        path = tmp_path / f"{name}-{version}.{architecture}.rpm"
        path.write_text(f"{name} {version} {architecture}")
        return {"url": f"file://{path}", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}

    return make


@pytest.mark.parametrize(("first", "second"), [("1.4.5", "1.4.6"), ("1.4.6", "1.4.5")])
def test_files_bring_both_packages_up_and_down_in_one_transaction(package, node, file, first, second):
    for version in (first, second):
        files = [file("apptainer", f"{version}-1.el9"), file("apptainer-suid", f"{version}-1.el9")]
        node.done.clear()
        result = package(repository=None, version=version, suid=True, files=files)
        assert result["changed"] and len(node.done) == 1, result
    assert node.packages == {"apptainer": f"{second}-1.el9", "apptainer-suid": f"{second}-1.el9"}
    assert not package.repository.exists() and "apptainer" in package.hold.read_text()
    assert not package(repository=None, version=second, suid=True, files=[])["changed"]


def test_files_are_for_the_node_s_processor(package, node, file):
    result = package(repository=None, files=[file("apptainer", architecture="aarch64")])
    assert result["failed"] and "is for aarch64, and this node takes x86_64" in result["msg"]
    assert not node.done


def test_a_file_that_is_no_package_is_refused(package, node, file):
    result = package(repository=None, files=[file("nothing", "", "")])
    assert result["failed"] and "rpm can't read nothing-..rpm" in result["msg"]


@pytest.mark.parametrize("manager", ["dnf"], indirect=True)
def test_files_do_not_move_what_the_site_holds(package, node, file):
    node.holders = ["versionlock.list: apptainer"]
    result = package(repository=None, files=[file("apptainer")])
    assert result["failed"] and "this node holds it: versionlock.list" in result["msg"] and not node.done


def test_singularity_goes_in_the_same_transaction(package, node):
    node.packages["singularity-ce"] = "4.1.5-1"
    result = package(replace_singularity=True)
    assert "remove singularity-ce 4.1.5-1" in result["transaction"] and len(node.done) == 1
    assert node.packages == {"apptainer": "1.4.5-1.el9"}


def test_singularity_that_may_be_in_the_way_is_named(package, node):
    node.problem = "nothing provides what conflicts"
    assert "apptainer_replace_singularity" not in package()["msg"]
    node.packages["singularity-ce"] = "4.1.5-1"
    message = package()["msg"]
    assert node.problem in message and "this node has singularity-ce" in message
    assert "set apptainer_replace_singularity to true" in message
    assert "this node has" not in package(replace_singularity=True)["msg"]
