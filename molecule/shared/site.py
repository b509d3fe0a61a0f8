"""The site's repository for nodes that pull: this project with the scenario's inventory, signed commits."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
INVENTORY = "inventories/site"

# On a node there is no lab: what its inventory looks up there is in the repository.
INSTEAD_OF_THE_LAB = """\
lab_state: "{{ inventory_dir }}/files"
lab_repository_facts: >-
  {{ lookup('ansible.builtin.file', lab_state ~ '/repository.json') | from_json
     | combine({'key': lab_state ~ '/lab-repository.asc'}) }}
"""


class Site:
    """A working copy of the site's repository.

    :param folder: where it is to be made.
    :param inventory: the scenario's.
    :param lab: the folder of the lab, with ``ssh_config`` and ``repository.json``; keys are made there.
    :param url: where commits are pushed to over SSH.
    :param package_key: the key of the lab's package repository, a file.
    """

    def __init__(self, folder: Path, inventory: Path, lab: Path, url: str, package_key: Path) -> None:
        self.folder, self._lab, self._url = folder, lab, url
        for name in ("signer", "stranger"):
            if not (lab / name).exists():
                quiet = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]
                subprocess.run([*quiet, str(lab / name)], check=True)
        self._copy_project()
        site = folder / INVENTORY
        shutil.copytree(inventory, site)
        (site / "group_vars/all/connection.yml").write_text(INSTEAD_OF_THE_LAB)
        (site / "files").mkdir()
        for file in (lab / "signer.pub", lab / "repository.json", package_key):
            shutil.copy(file, site / "files")
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        """Run git in the working copy and return what it prints."""
        ended = subprocess.run(
            ["git", "-c", "user.name=Alice", "-c", "user.email=alice@example.org", *arguments],
            cwd=self.folder,
            env={
                **os.environ,
                "GIT_SSH_COMMAND": f"ssh -F {self._lab}/ssh_config",
                "GIT_CONFIG_GLOBAL": "/dev/null",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    def publish(self, variables: str = "", *, signer: str | None = "signer") -> str:
        """Commit, with *variables* (YAML) for all hosts, and push it; return the name of the commit.

        :param signer: whose key signs it: ``signer`` is allowed, ``stranger`` is not, None does not sign.
        """
        (self.folder / INVENTORY / "group_vars/all/zz_test.yml").write_text(variables)
        self.git("add", "--all")
        commit = ["commit", "--quiet", "--allow-empty", "--message=change"]
        ssh = ["-c", "gpg.format=ssh", "-c", f"user.signingKey={self._lab}/{signer}"]
        self.git(*([*ssh, *commit, "--gpg-sign"] if signer else commit))
        self.git("push", "--quiet", "--force", self._url, "HEAD:refs/heads/main")
        return self.git("rev-parse", "HEAD")

    def withdraw(self, commit: str) -> None:
        """Let the branch end at *commit* again."""
        self.git("reset", "--quiet", "--hard", commit)
        self.git("push", "--quiet", "--force", self._url, "HEAD:refs/heads/main")

    def _copy_project(self) -> None:
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, names.split("\0")):
            if name.startswith(("molecule/", "tests/")) or not (PROJECT / name).is_file():
                continue
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, self.folder / name)
