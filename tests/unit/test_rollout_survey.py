"""What a rollout asks of a node before it plans."""

import os

import pytest


@pytest.fixture
def survey(ansible_module, tmp_path, monkeypatch):
    runner = ansible_module("rollout_survey")
    release = tmp_path / "os-release"
    release.write_text('ID=debian\nVERSION_ID="13"\n')
    monkeypatch.setattr(runner.plugin.node_distribution, "OS_RELEASE", str(release))
    program = tmp_path / "apptainer"
    program.write_text("#!/bin/sh\n[ $1 = --version ] && echo apptainer version 1.4.5-2\n")
    program.chmod(0o755)
    environment = {**runner.plugin.apptainer_packages.ENVIRONMENT, "PATH": f"{tmp_path}:/bin"}
    monkeypatch.setattr(runner.plugin.apptainer_packages, "ENVIRONMENT", environment)
    return runner


def test_version_system_and_space(survey, tmp_path):
    said = survey(paths=[str(tmp_path), "/not/there"])
    assert (said["version"], said["changed"]) == ("1.4.5-2", False)
    assert said["system"] == f"debian13-{os.uname().machine}"
    assert list(said["free"]) == [str(tmp_path)]


def test_too_little_space_is_named(survey, tmp_path):
    said = survey(paths=[str(tmp_path)], space=10**9)
    assert said["failed"] and str(tmp_path) in said["msg"] and "make room" in said["msg"]


def test_without_apptainer_there_is_no_version(survey, tmp_path):
    (tmp_path / "apptainer").unlink()
    assert survey(paths=[])["version"] == ""
