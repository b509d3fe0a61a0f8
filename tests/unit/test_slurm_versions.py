"""Which Slurm is on a node, from dpkg and from RPM."""

import pytest

DPKG = """
case "$*" in *slurmd*) echo "slurmd 24.11.5-4 installed"; echo "slurmctld  not-installed"; exit 1;; esac
"""
RPM = """
case "$*" in *slurmd*) echo "slurm 24.11.5-1 installed"; echo "package slurmd is not installed"; exit 1;; esac
"""


@pytest.fixture
def versions(ansible_module, tmp_path, monkeypatch):
    def run(**programs):
        for name, script in {**programs, "systemctl": 'test "$3" = slurmd'}.items():
            program = tmp_path / name
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        runner = ansible_module("slurm_versions")
        find = runner.plugin.AnsibleModule.get_bin_path

        def which(module, name, *more):
            return find(module, name, *more) if name in programs else None

        monkeypatch.setattr(runner.plugin.AnsibleModule, "get_bin_path", which)
        return runner()

    return run


def test_of_debian(versions):
    result = versions(**{"dpkg-query": DPKG})
    assert result["versions"] == {"slurmd": "24.11.5-4"} and result["running"] == ["slurmd"]


def test_of_rpm(versions):
    assert versions(rpm=RPM)["versions"] == {"slurm": "24.11.5-1"}
