"""An inventory becomes a lab, or one error that names the variable and the mend."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fleet.errors import FleetError
from fleet.lab.distribution_sim import DISTRIBUTION_SIMS
from fleet.lab.host import Mirror
from fleet.lab.image import ESSENTIALS, BaseImage
from fleet.lab.model import FUSE, Device, bridge_name, check_folders, lab_home, load_lab

ALL = {"lab_name": "t", "lab_network": "10.77.90.0/24"}


def inventory(tmp_path: Path, hosts: dict, **variables: object) -> Path:
    path = tmp_path / "hosts.yml"
    path.write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": {**ALL, **variables}}}))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(FleetError) as refused:
        load_lab(path)
    assert refused.value.message
    return str(refused.value)


def test_reads_nodes_with_their_defaults(tmp_path: Path) -> None:
    lab = load_lab(inventory(tmp_path, {"a": {"lab_address": "10.77.90.2"}}, lab_packages=["munge", "munge"]))
    (node,) = lab.nodes
    assert (node.name, node.address, node.backend, node.release) == ("a", "10.77.90.2", "nspawn", "trixie")
    assert node.packages == ("munge",)
    assert node.devices == (FUSE,)
    assert (lab.gateway, lab.bridge) == ("10.77.90.1", "lab-t")
    assert lab.repository_server is None


def test_devices_and_repository_server(tmp_path: Path) -> None:
    path = tmp_path / "hosts.yml"
    device = {"path": "/dev/nvidia0", "major": 195, "minor": 0}
    hosts = {"a": {"lab_address": "10.77.90.2", "lab_devices": [device]}}
    group = {"lab_repository": {"hosts": {"a": None}}}
    path.write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": ALL, "children": group}}))
    lab = load_lab(path)
    assert lab.nodes[0].devices == (FUSE, Device("/dev/nvidia0", 195, 0))
    assert lab.repository_server is lab.nodes[0]


A = {"a": {"lab_address": "10.77.90.2"}}


def test_a_node_taken_for_another_distribution_has_its_package_manager(tmp_path: Path) -> None:
    sims = {"lab_distribution_sim": "el9", "lab_packages": ["munge"]}
    (node,) = load_lab(inventory(tmp_path, A, **sims)).nodes
    assert node.packages == ("dnf", "dnf-plugins-core", "munge", "rpm")
    (plain,) = load_lab(inventory(tmp_path, A, lab_packages=["munge"])).nodes
    assert plain.packages == ("munge",) and plain.spec() != node.spec()


@pytest.mark.parametrize("sim", DISTRIBUTION_SIMS)
def test_what_a_node_is_taken_for_says_that_it_is_none(sim: str) -> None:
    text = DISTRIBUTION_SIMS[sim].node_files()["/etc/os-release"]
    fields = dict(line.split("=", 1) for line in text.splitlines())
    assert fields["PRETTY_NAME"].startswith('"Debian taken for ') and "lab_distribution_sim" in fields["NAME"]
    assert fields["ID"] == '"lab-distribution-sim"'


@pytest.mark.parametrize(
    ("hosts", "variables", "said"),
    [
        ({"a": {}}, {}, "lab_address of host a: is not set"),
        ({"a": {"lab_address": "10.77.91.2"}}, {}, "is outside lab_network"),
        ({"a": {"lab_address": "10.77.90.1"}}, {}, "is the address of the lab's bridge"),
        ({**A, "b": {"lab_address": "10.77.90.2"}}, {}, "belongs to a"),
        ({"a": {"lab_address": "10.77.90"}}, {}, "lab_address of host a"),
        ({"A_b": {"lab_address": "10.77.90.2"}}, {}, "no valid host name"),
        ({**A, "b": {"lab_address": "10.77.90.3", "lab_name": "u"}}, {}, "lab_name: 't' on a but 'u' on b"),
        (A, {"lab_distribution_sim": "rocky9"}, "'rocky9' is no distribution that the lab has a stand-in"),
        (A, {"lab_network": "8.8.8.0/24"}, "not a private network"),
        (A, {"lab_network": "10.77.90.3/24"}, "lab_network"),
        (A, {"lab_network": "10.77.90.0/30"}, "lab_network: 10.77.90.0/30 is not a private network of /29"),
        (A, {"lab_name": "../../etc"}, "lab_name: '../../etc'"),
        (A, {"lab_name": "longer-than-11"}, "lab_name"),
        (A, {"lab_backend": "vagrant"}, "lab_backend of host a"),
        (A, {"lab_release": "trixie; rm"}, "lab_release of host a"),
        (A, {"lab_packages": ["$(id)"]}, "lab_packages of host a"),
        (A, {"lab_users": "alice"}, "lab_users of host a"),
        (A, {"lab_users": ["alice", "root"]}, "'root' is a user or group of the system"),
        (A, {"lab_users": ["w", "www-data"]}, "lab_users of host a: 'www-data'"),
        (A, {"lab_shared_folders": ["shared"]}, "lab_shared_folders of host a: 'shared'"),
        (A, {"lab_shared_folders": ["/a/../etc"]}, "lab_shared_folders of host a: '/a/../etc'"),
        (A, {"lab_shared_folders": ["/a"], "lab_backend": "qemu"}, "a virtual machine has none"),
        (A, {"lab_users": ["_chrony"]}, "lab_users of host a: '_chrony'"),
        (A, {"lab_users": ["systemd-network"]}, "lab_users of host a: 'systemd-network'"),
        (A, {"lab_users": ["Alice"]}, "'Alice' is no valid name"),
        (A, {"lab_cpus": True}, "lab_cpus of host a"),
        (A, {"lab_memory": 0}, "lab_memory of host a"),
        (A, {"lab_adress": "x"}, "lab_adress of host a: no variable of the lab"),
        (A, {"lab_devices": [{"path": "/etc/passwd", "major": 1, "minor": 3}]}, "lab_devices"),
        (A, {"lab_devices": [{"path": "/dev/../etc/x", "major": 1, "minor": 3}]}, "lab_devices"),
        (A, {"lab_devices": [{"path": "/dev/x", "major": 1, "minor": 3, "mode": "0999"}]}, "lab_devices"),
        (A, {"lab_devices": [{"path": "/dev/x", "major": 1}]}, "lab_devices"),
    ],
)
def test_refuses_impossible_labs(tmp_path: Path, hosts: dict, variables: dict, said: str) -> None:
    assert said in refusal(inventory(tmp_path, hosts, **variables))


def test_missing_and_broken_inventories(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.yml")
    broken = tmp_path / "broken.yml"
    broken.write_text("all: [")
    assert "broken.yml" in refusal(broken)


def test_names_fit_the_kernels_limit_and_stay_below_the_state_folder() -> None:
    assert len(bridge_name("a" * 11)) <= 15
    assert lab_home("demo").name == "demo"
    with pytest.raises(FleetError):
        lab_home("..")


def test_an_image_is_another_one_when_anything_in_it_changes() -> None:
    base = BaseImage("trixie", ("munge",), ("alice",), Mirror("http://mirror.example/debian"))
    others = [
        BaseImage("sid", ("munge",), ("alice",), base.mirror),
        BaseImage("trixie", (), ("alice",), base.mirror),
        BaseImage("trixie", ("munge",), ("bob",), base.mirror),
        BaseImage("trixie", ("munge",), ("alice",), Mirror("http://other.example/debian")),
    ]
    assert len({image.folder for image in (base, *others)}) == 5
    assert base.folder == BaseImage("trixie", ("munge",), ("alice",), base.mirror).folder
    assert "apptainer" not in " ".join(ESSENTIALS)


@pytest.mark.parametrize("folder", ["/tmp/a,b", "/tmp/a:b", "/tmp/a b", "/tmp/a\\b", '/tmp/a"b', "/tmp/a%b"])
@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "XDG_STATE_HOME"])
def test_folders_that_other_programs_would_misread(
    monkeypatch: pytest.MonkeyPatch, variable: str, folder: str
) -> None:
    monkeypatch.setenv(variable, folder)
    with pytest.raises(FleetError, match=variable):
        check_folders()


def test_ordinary_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/some.user/.cache")
    monkeypatch.setenv("XDG_STATE_HOME", "/scratch/u_1/state")
    check_folders()
