"""The program of role pull, with real git, real signatures of SSH and a real ansible-pull."""

from __future__ import annotations

import fcntl
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from module_utils import pull

PROJECT = Path(__file__).parents[2]
NAME = socket.gethostname()
HOST = NAME.split(".")[0]
PLAYBOOK = [
    {
        "hosts": "pull",
        "gather_facts": False,
        "tasks": [
            {"name": "Look", "ansible.builtin.debug": {"msg": "hello"}},
            {"name": "Write", "ansible.builtin.copy": {"content": "{{ word }}", "dest": "{{ target }}"}},
        ],
    }
]


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """Two keys of SSH by name, each a pair of files."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("alice", "mallory"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name]
        subprocess.run(command, check=True)
    return folder


class Site:
    """The site's repository: what is in its working tree, and commits."""

    def __init__(self, folder: Path, keys: Path, target: Path) -> None:
        self.folder, self.keys = folder, keys
        self.git("init", "--quiet", "--initial-branch=main", str(folder), cwd="/")
        shutil.copy(PROJECT / "ansible.cfg", folder)
        for part in ("plugins/inventory", "fleet", "module_utils"):
            shutil.copytree(PROJECT / part, folder / part)
        self.target = target
        self.inventory(NAME)
        self.play(PLAYBOOK)

    def git(self, *arguments, cwd=None):
        who = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
        argv = ["git", *who, *arguments]
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        ended = subprocess.run(
            argv, cwd=cwd or self.folder, env=environment, check=True, capture_output=True, text=True
        )
        return ended.stdout.strip()

    def inventory(self, host, word="one"):
        # As others reach the node: none of it may count.
        reach = {"ansible_connection": "ssh", "ansible_host": "192.0.2.1", "ansible_become": True}
        variables = {**reach, "word": word, "target": str(self.target)}
        variables["ansible_python_interpreter"] = sys.executable
        groups = {"pull": {"hosts": {host: None, "other": None}, "vars": variables}}
        (self.folder / "hosts.yml").write_text(json.dumps({"all": {"children": groups}}))

    def play(self, content):
        (self.folder / "play.yml").write_text(json.dumps(content))

    def commit(self, *options):
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message=change", *options)
        return self.git("rev-parse", "HEAD")

    def sign(self, who="alice"):
        ssh = ["-c", "gpg.format=ssh", "-c", f"user.signingKey={self.keys / who}"]
        self.git("add", "--all")
        self.git(*ssh, "commit", "--quiet", "--allow-empty", "--message=change", "--gpg-sign")
        return self.git("rev-parse", "HEAD")


class Node:
    """A node: its file system below a folder, and runs of the program there."""

    def __init__(self, root: Path, site: Site, program, monkeypatch) -> None:
        self.program = program
        self.places = self.program.Places.below(root)
        self.site = site
        for place in (self.places.settings, self.places.converged, self.places.policy):
            place.parent.mkdir(parents=True)
        self.settings()
        self.trust("alice")
        self.log = root / "systemctl.log"
        tools = root / "tools"
        tools.mkdir()
        # One unit is enabled, and the tests start nothing on this machine; dpkg says what is in its file.
        self.tool(
            "systemctl",
            f'echo "$*" >> {self.log}; case "$*" in *is-enabled*wanted*|start*);; *) exit 1;; esac',
        )
        self.tool(
            "dpkg", f'echo "dpkg $*" >> {self.log}; [ "$1" != --audit ] || cat {root}/audit 2>/dev/null; true'
        )
        # ansible-pull looks for its fellows beside itself, as it is called.
        for name in ("ansible", "ansible-pull", "ansible-playbook"):
            self.tool(name, f'exec {Path(sys.executable).with_name(name)} "$@"')
        monkeypatch.setattr(self.program, "PATH", f"{tools}:{os.environ['PATH']}")
        monkeypatch.setattr(self.program, "PAUSE", 0)

    def tool(self, name, script):
        path = self.places.policy.parents[2] / "tools" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def settings(self, **different):
        values = {
            "repository": str(self.site.folder),
            "reference": "main",
            "inventory": "hosts.yml",
            "playbook": "play.yml",
            "before": ["wanted.service", "off.service"],
            "timeout": 300,
            "results": "",
        }
        self.places.settings.write_text(json.dumps({**values, **different}))

    def trust(self, *names):
        signers = [{"name": name, "key": (self.site.keys / f"{name}.pub").read_text()} for name in names]
        self.places.signers.write_text(pull.allowed_signers(signers))

    def pull(self, patience=0):
        """Run once and return the result as it is written."""
        result = self.program.one_run(self.places, patience)
        assert json.loads(self.places.result.read_text()) == result
        return result

    @property
    def started(self):
        """What was started since the last look."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line for line in lines if line.startswith("start")]


@pytest.fixture
def site(tmp_path, keys):
    return Site(tmp_path / "site", keys, tmp_path / "written")


@pytest.fixture
def node(tmp_path, site, program, monkeypatch):
    return Node(tmp_path / "node", site, program("roles/pull/files/fleet_pull.py"), monkeypatch)


def test_a_signed_commit_becomes_the_state_of_the_node(node, site):
    commit = site.sign()
    result = node.pull()
    assert result["outcome"] == "converged", result
    assert (result["commit"], result["signer"]) == (commit, "alice")
    assert (result["ok"], result["changed"], result["failed"]) == (2, 1, 0)
    assert result["converged"] == {"commit": commit, "when": result["when"]}
    assert site.target.read_text() == "one"
    assert node.places.converged.read_text().strip() == commit
    assert node.started == ["start --no-block wanted.service"]
    assert not (node.places.work / "running").exists()


def test_the_next_run_takes_the_newest_commit_and_changes_nothing_without_one(node, site):
    site.sign()
    node.pull()
    assert node.pull()["changed"] == 0
    site.inventory(NAME, word="two")
    commit = site.sign()
    assert node.pull()["commit"] == commit and site.target.read_text() == "two"


@pytest.fixture
def quick(node, monkeypatch):
    """A node on which every playbook converges at once: for what happens before and after."""
    monkeypatch.setattr(node.program, "converge", lambda *_: {"ok": 2, "changed": 0, "failed": 0})
    return node


def refused(node, commit, word):
    """What a refusal is: nothing of the commit is used, nothing starts, and it says which and why."""
    result = node.pull()
    assert result["outcome"] == "refused" and result["commit"] == commit and word in result["message"]
    assert node.started == []
    return result


def test_without_a_signature_the_node_stays_as_it_is(quick, site):
    good = site.sign()
    quick.pull()
    assert quick.started
    result = refused(quick, site.commit(), "it has no signature")
    assert result["converged"]["commit"] == good
    assert quick.places.converged.read_text().strip() == good


def test_a_node_that_has_never_converged_starts_nothing_for_an_unsigned_commit(quick, site):
    refused(quick, site.commit(), "it has no signature")
    assert not quick.places.converged.exists() and not site.target.exists()


def test_another_key_is_none(quick, site):
    refused(quick, site.sign("mallory"), "not signed by a key in")
    quick.trust("mallory")
    assert quick.pull()["outcome"] == "converged"


def test_a_key_that_is_trusted_no_more_is_refused(quick, site):
    site.sign()
    quick.pull()
    quick.trust("mallory")
    assert quick.started
    refused(quick, site.sign(), "not signed by a key in")


def test_a_signature_of_openpgp_is_none_whatever_root_has_in_its_keyring(node, site, tmp_path, monkeypatch):
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("GNUPGHOME", str(home))
    quick = [
        "gpg",
        "--batch",
        "--passphrase",
        "",
        "--quick-generate-key",
        "root@example.org",
        "ed25519",
        "sign",
    ]
    subprocess.run(quick, check=True, capture_output=True)
    commit = site.commit("--gpg-sign=root@example.org")
    site.git("verify-commit", commit)
    monkeypatch.setattr(
        node.program,
        "environment",
        lambda **more: {"PATH": node.program.PATH, "GNUPGHOME": str(home), **more},
    )
    refused(node, commit, "not signed by a key in")
    subprocess.run(["gpgconf", "--kill", "all"], check=True)


def test_a_signature_moved_to_another_commit_is_none(node, site):
    site.sign()
    signed = site.git("cat-file", "commit", "HEAD")
    forged = signed.replace("Somebody", "Nobody")
    name = subprocess.run(
        ["git", "hash-object", "-t", "commit", "-w", "--stdin"],
        input=f"{forged}\n",
        cwd=site.folder,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    site.git("update-ref", "refs/heads/main", name)
    refused(node, name, "not signed by a key in")


def test_an_old_commit_is_not_taken_back_though_it_is_signed(quick, site):
    old = site.sign()
    site.inventory(NAME, word="two")
    new = site.sign()
    quick.pull()
    assert quick.started
    site.git("reset", "--quiet", "--hard", old)
    refused(quick, old, "does not descend from")
    # Nor by a history that has been written anew.
    site.inventory(NAME, word="three")
    refused(quick, site.sign(), "does not descend from")
    site.git("reset", "--quiet", "--hard", new)
    assert quick.pull()["outcome"] == "converged"


def test_it_is_remembered_without_the_copy_of_the_repository(quick, site):
    old = site.sign()
    site.inventory(NAME, word="two")
    site.sign()
    quick.pull()
    shutil.rmtree(quick.places.work / "repository.git")
    assert quick.pull()["outcome"] == "converged" and quick.started
    shutil.rmtree(quick.places.work / "repository.git")
    site.git("reset", "--quiet", "--hard", old)
    refused(quick, old, "does not descend from")


def test_a_playbook_that_fails_says_why_and_starts_nothing(node, site):
    site.play([{**PLAYBOOK[0], "tasks": [{"name": "Give up", "ansible.builtin.fail": {"msg": "no disk"}}]}])
    commit = site.sign()
    result = node.pull()
    assert (result["outcome"], result["failed"], result["commit"]) == ("failed", 1, commit)
    assert result["message"] == "Give up: no disk"
    assert result["converged"] is None and not node.places.converged.exists() and node.started == []


def test_what_was_rescued_is_no_failure(node, site):
    rescued = {
        "block": [{"name": "Try", "ansible.builtin.fail": {"msg": "no list"}}],
        "rescue": [{"name": "Try again", "ansible.builtin.debug": {"msg": "there"}}],
    }
    last = {"name": "Give up", "ansible.builtin.fail": {"msg": "no disk"}}
    site.play([{**PLAYBOOK[0], "tasks": [rescued]}])
    site.sign()
    assert node.pull()["outcome"] == "converged"
    site.play([{**PLAYBOOK[0], "tasks": [rescued, last]}])
    site.sign()
    assert node.pull()["message"] == "Give up: no disk"


def test_what_is_secret_is_not_in_the_result(node, site):
    task = {"name": "Log in", "ansible.builtin.fail": {"msg": "password hunter2"}, "no_log": True}
    site.play([{**PLAYBOOK[0], "tasks": [task]}])
    site.sign()
    result = node.pull()
    assert result["outcome"] == "failed" and "Log in" in result["message"]
    assert "hunter2" not in node.places.result.read_text()


@pytest.mark.parametrize("host", ["somebody-else", None])
def test_a_node_that_the_inventory_does_not_know_has_not_converged(node, site, host):
    if host:
        site.inventory(host)
    else:
        site.play([{**PLAYBOOK[0], "hosts": "other"}])
    site.sign()
    result = node.pull()
    assert result["outcome"] == "failed" and result["message"]
    assert node.started == []


def test_a_playbook_that_takes_too_long_is_ended_with_all_that_it_started(node, site, tmp_path):
    sleep = {
        "name": "Wait",
        "ansible.builtin.command": {"argv": ["sh", "-c", f"sleep 60; touch {tmp_path}/end"]},
    }
    site.play([{**PLAYBOOK[0], "tasks": [sleep]}])
    site.sign()
    node.settings(timeout=1)
    result = node.pull()
    assert result["outcome"] == "error" and "did not end within 1 s" in result["message"]
    # Its traces are mended by the next run.
    assert (node.places.work / "running").exists()


def test_a_repository_that_is_not_there_is_unreachable_and_one_that_comes_is_found(quick, site, monkeypatch):
    site.sign()
    moved = site.folder.rename(site.folder.with_name("elsewhere"))
    result = quick.pull()
    assert result["outcome"] == "unreachable" and str(site.folder) in result["message"]
    # It comes while the quick tries again.
    monkeypatch.setattr(quick.program.time, "sleep", lambda _: moved.exists() and moved.rename(site.folder))
    assert quick.pull(patience=60)["outcome"] == "converged"


def test_a_branch_that_is_not_there_is_named_and_the_copy_is_kept(quick, site):
    site.sign()
    quick.pull()
    quick.settings(reference="typo")
    result = quick.pull()
    assert result["outcome"] == "unreachable" and "no branch or tag typo" in result["message"]
    assert (quick.places.work / "repository.git/refs/heads/accepted").exists()


def test_a_tag_that_names_a_signed_commit_will_do(quick, site):
    commit = site.sign()
    site.git("tag", "--annotate", "--message=first", "v1")
    quick.settings(reference="v1")
    assert quick.pull()["commit"] == commit


@pytest.mark.parametrize("damage", ["empty", "marked"])
def test_a_copy_that_a_power_cut_damaged_is_made_anew(quick, site, damage):
    site.sign()
    quick.pull()
    copy = quick.places.work / "repository.git"
    for file in copy.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
            file.write_text("")
    if damage == "marked":
        (quick.places.work / "incomplete").touch()
    site.inventory(NAME, word="two")
    commit = site.sign()
    result = quick.pull()
    assert (result["outcome"], result["commit"]) == ("converged", commit), result


def test_half_a_tree_of_an_interrupted_run_is_no_obstacle(node, site):
    site.sign()
    node.pull()
    (node.places.work / "tree/play.yml").write_text("")
    shutil.rmtree(node.places.work / "tree/.git")
    assert node.pull()["outcome"] == "converged"


def test_what_an_interrupted_run_left_of_apt_is_taken_away(quick, site):
    site.sign()
    quick.places.work.mkdir(parents=True)
    (quick.places.work / "running").write_text("no policy")
    quick.places.policy.write_bytes(quick.program.POLICY)
    assert quick.pull()["outcome"] == "converged"
    assert not quick.places.policy.exists()


@pytest.mark.parametrize(
    "running, policy",
    [
        ("policy", b"#!/bin/sh\nexit 101\n"),
        ("no policy", b"#!/bin/sh\nexit 0\n"),
        (None, b"#!/bin/sh\nexit 101\n"),
    ],
)
def test_a_policy_of_the_administrator_stays(quick, site, running, policy):
    site.sign()
    quick.places.work.mkdir(parents=True)
    if running:
        (quick.places.work / "running").write_text(running)
    quick.places.policy.write_bytes(policy)
    assert quick.pull()["outcome"] == "converged"
    assert quick.places.policy.read_bytes() == policy


@pytest.mark.parametrize("sign", ["journal", "audit", "none"])
def test_dpkg_finishes_what_it_was_interrupted_in_and_starts_no_service(quick, site, sign):
    site.sign()
    if sign == "journal":
        quick.places.dpkg_journal.mkdir(parents=True)
        (quick.places.dpkg_journal / "0001").touch()
    elif sign == "audit":
        (quick.places.policy.parents[2] / "audit").write_text("apptainer is half installed\n")
    policy = quick.places.policy
    script = (quick.places.policy.parents[2] / "tools/dpkg").read_text()
    quick.tool("dpkg", script.replace("#!/bin/sh\n", f"[ $1 = --audit ] || cp {policy} {policy}.seen\n"))
    assert quick.pull()["outcome"] == "converged"
    configured = "dpkg --configure --pending" in quick.log.read_text()
    assert configured == (sign != "none")
    assert not policy.exists()
    if configured:
        assert policy.with_name("policy-rc.d.seen").read_bytes() == quick.program.POLICY


def test_two_runs_at_once_are_one_after_the_other(node, monkeypatch):
    node.places.lock.parent.mkdir(parents=True, exist_ok=True)
    with node.places.lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with (
            pytest.raises(node.program.PullError, match="another run"),
            node.program.alone(node.places.lock, 0),
        ):
            pytest.fail("it began while the other ran")
        # The other one ends while this one waits.
        monkeypatch.setattr(node.program.time, "sleep", lambda _: fcntl.flock(held, fcntl.LOCK_UN))
        with node.program.alone(node.places.lock, 60):
            pass


@pytest.mark.parametrize(
    "text, word",
    [
        (None, "is missing"),
        ("{", "pull.json"),
        ("[]", "no JSON object"),
        ('{"repository": "/x"}', "is missing"),
    ],
)
def test_settings_that_can_not_be_read_are_named(node, text, word):
    node.places.settings.unlink()
    if text is not None:
        node.places.settings.write_text(text)
    result = node.pull()
    assert result["outcome"] == "error" and word in result["message"]


def test_the_summary_is_one_line_with_what_happened(quick, site):
    commit = site.sign()
    line = quick.program.summary(quick.pull())
    assert line.startswith(f"converged at {commit} in ") and line.endswith("2 ok, 0 changed, 0 failed")


def test_the_result_is_put_into_a_folder(quick, site, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    quick.settings(results=str(folder))
    site.sign()
    result = quick.pull()
    assert json.loads((folder / f"{HOST}.json").read_text()) == {"node": HOST, **result}
    site.commit("--no-gpg-sign")
    assert quick.pull()["outcome"] == "refused"
    assert json.loads((folder / f"{HOST}.json").read_text())["outcome"] == "refused"


def test_a_folder_that_is_not_there_changes_nothing(quick, site, tmp_path, capsys):
    quick.settings(results=str(tmp_path / "not mounted".replace(" ", "-")))
    site.sign()
    assert quick.pull()["outcome"] == "converged"
    assert not (tmp_path / "not-mounted").exists()
    assert "could not be put" in capsys.readouterr().err


def test_the_result_is_put_to_a_collector(quick, site, capsys):
    taken = {}

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_PUT(self):
            taken[self.path] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(201 if len(taken) == 1 else 500)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        quick.settings(results=f"http://127.0.0.1:{server.server_port}/pull/")
        site.sign()
        result = quick.pull()
        assert taken == {f"/pull/{HOST}.json": {"node": HOST, **result}}
        assert "could not be put" not in capsys.readouterr().err
        server.shutdown()
    assert quick.pull()["outcome"] == "converged"
    assert "could not be put" in capsys.readouterr().err
