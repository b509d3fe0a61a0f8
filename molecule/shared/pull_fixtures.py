"""Fixtures: a controller that has been pushed to, and a compute node with only what it needs to pull."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import testinfra
from shared import pulling
from shared.site import Site

from fleet.lab.model import Lab, load_lab

SCENARIO = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
KEY = "/etc/munge/munge.key"


@pytest.fixture(scope="session")
def lab() -> Lab:
    return load_lab(SCENARIO / "inventory")


@pytest.fixture(scope="session")
def connect(lab_state):
    return lambda name: testinfra.get_host(f"ssh://{name}", ssh_config=str(lab_state / "ssh_config"))


@pytest.fixture(scope="session")
def head(connect):
    return connect("head")


@pytest.fixture(scope="session")
def slurm(head):
    return pulling.Slurm(head)


@pytest.fixture(scope="session")
def site(tmp_path_factory, lab_state, repository, head):
    """The site's repository, with a first commit that is trusted."""
    pulling.serve_repository(head)
    folder = tmp_path_factory.mktemp("site")
    url = f"ssh://head{pulling.SERVED}"
    made = Site(folder, SCENARIO / "inventory", lab_state, url, Path(repository["key"]))
    made.publish()
    return made


@pytest.fixture(scope="session")
def c1(lab, connect, site, head, playbook):
    """The node that pulls, off, with the disk that it boots from every time; the controller is ready."""
    node = pulling.Computer(lab, "c1", connect)
    pushed = playbook("converge.yml", "--limit=head")
    assert pushed.code == 0, pushed.output
    if not node.has_kept_disk:
        prepared = playbook("bootstrap.yml", "--skip-tags=pull_now")
        assert prepared.code == 0, prepared.output
        # What provisioning does: the key of the cluster, for root alone, before there is a user munge.
        key = head.check_output("base64 --wrap=0 %s", KEY)
        node.host.check_output("install -D --mode=0400 /dev/null %s", KEY)
        node.host.check_output(f"base64 --decode > {KEY} <<'END'\n{key}\nEND")
        node.shut_down()
        node.keep_disk()
    return node


@pytest.fixture
def booted(c1):
    """What boots the node with a fresh disk and waits for the end of its pull; returns the result."""

    def boot():
        c1.cut_power()
        c1.fresh_disk()
        c1.boot()
        return c1.wait_for_boot(seconds=600)

    return boot
