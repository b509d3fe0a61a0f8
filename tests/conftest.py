"""What unit tests share: Ansible modules and filters run as Ansible runs them, without a node."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ansible.module_utils
import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from plugin_files import PROJECT, load

# Modules import `ansible.module_utils.NAME`, which Ansible collects from here when it sends them to a node.
ansible.module_utils.__path__.append(str(PROJECT / "module_utils"))


class Runner:
    """One module of library/: `plugin` is its namespace, calling it runs it and returns the result."""

    def __init__(self, name: str) -> None:
        self.plugin = load(PROJECT / "library" / f"{name}.py")

    def __call__(self, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        output = io.StringIO()
        arguments |= {"_ansible_check_mode": check, "_ansible_diff": True}
        with patch_module_args(arguments), contextlib.redirect_stdout(output), pytest.raises(SystemExit):
            self.plugin.main()
        return json.loads(output.getvalue())


@pytest.fixture
def ansible_module() -> Callable[[str], Runner]:
    """Return what makes a Runner: ``ansible_module("munge")(key="...")["changed"]``."""
    return Runner


@pytest.fixture
def package_runner(
    ansible_module: Callable[[str], Runner],
    apptainer_distributions: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Any, str], Callable[..., dict[str, Any]]]:
    """Return what makes the module apptainer_package run on a model of a node.

    Takes the model, which has ``run(argv)``, ``packages``, ``sleep`` and, if a program's file matters,
    ``programs``, and the name of its os-release in
    ``tests/unit/data/os-release``. The distributions are those of the role's variable files.
    """

    def make(node: Any, distribution: str) -> Callable[..., dict[str, Any]]:
        runner = ansible_module("apptainer_package")
        plugin, count = runner.plugin, iter(range(100))
        os_release = PROJECT / "tests/unit/data/os-release" / distribution
        monkeypatch.setattr(plugin.node_distribution, "OS_RELEASE", str(os_release))
        monkeypatch.setattr(plugin.platform, "machine", lambda: "x86_64")
        packages = plugin.apptainer_packages
        monkeypatch.setattr(packages.time, "sleep", node.sleep)

        def which(name: str, **_: str) -> str | None:
            if name == "apptainer" and name not in node.packages:
                return None
            return getattr(node, "programs", {}).get(name, f"/usr/bin/{name}")

        def scratch(_: object) -> str:
            folder = tmp_path / f"scratch{next(count)}"
            folder.mkdir()
            return str(folder)

        monkeypatch.setattr(packages.shutil, "which", which)
        monkeypatch.setattr(packages.atomic_file.os, "fchown", lambda *_: None)
        monkeypatch.setattr(plugin.AnsibleModule, "run_command", lambda _, argv, **__: node.run(argv))
        monkeypatch.setattr(plugin.AnsibleModule, "tmpdir", property(scratch))

        def call(**arguments: Any) -> dict[str, Any]:
            given = {"distributions": apptainer_distributions, **arguments}
            return runner(**{name: value for name, value in given.items() if value is not None})

        call.plugin = plugin  # type: ignore[attr-defined]
        return call

    return make


@pytest.fixture
def apptainer_distributions() -> list[dict[str, Any]]:
    """Return what the variable files of the role apptainer say of distributions."""
    folder = PROJECT / "roles/apptainer/vars/main"
    files = [file for file in sorted(folder.glob("*.yml")) if file.name != "main.yml"]
    return [value for file in files for value in yaml.safe_load(file.read_text()).values()]


@pytest.fixture
def program() -> Callable[[str], ModuleType]:
    """Return what loads a program that a role ships, by its path in the project."""
    return lambda path: load(PROJECT / path)


@pytest.fixture
def filter_plugin() -> Callable[[str], ModuleType]:
    """Return what loads a file of plugins/filter."""
    return lambda name: load(PROJECT / "plugins" / "filter" / f"{name}.py")


@pytest.fixture
def check_play(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Return what runs a play in check mode on this machine.

    Takes an inventory (YAML text), a play (dict), and extra variables. Returns the exit code and the
    output in one line, so that where a message was wrapped doesn't matter.
    """

    def run(inventory: str, play: dict[str, Any], **variables: Any) -> tuple[int, str]:
        (tmp_path / "hosts.yml").write_text(inventory)
        (tmp_path / "play.yml").write_text(json.dumps([play]))
        variables |= {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "ansible", "playbook", "--check", "--diff"),
                *("--inventory", str(tmp_path / "hosts.yml"), "--extra-vars", json.dumps(variables)),
                str(tmp_path / "play.yml"),
            ],
            env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return ended.returncode, " ".join(ended.stdout.split())

    return run
