"""The lab's stand-in for Lustre's client, and what the roles' reader makes of it: neither knows the other."""

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest

from module_utils import lustre

PROGRAM = Path(__file__).parents[2] / "fleet/lab/lustre_client_sim/lustre_client_sim"
INTERFACES = {"eth0": "10.0.0.11", "ib0": "10.1.0.11", "ib1": "10.1.1.11"}
WANTED = lustre.read(
    [
        {"net": "tcp", "interfaces": ["eth0"]},
        {"net": "o2ib", "interfaces": ["ib0", "ib1"], "tunables": {"peer_credits": 16, "credits": 512}},
    ],
    [{"net": "o2ib1", "gateway": "10.1.0.9@o2ib", "hop": 2}],
)


@pytest.fixture
def sim(tmp_path, monkeypatch):
    loader = importlib.machinery.SourceFileLoader("lustre_client_sim", str(PROGRAM))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    loader.exec_module(module)
    module.STATE, module.FAULTS = str(tmp_path / "state/lnet.json"), str(tmp_path / "faults")
    module.address = INTERFACES.get
    module.mounted = lambda: []
    return module


@pytest.fixture
def imported(sim, tmp_path):
    """LNet with the file that the roles write."""
    (tmp_path / "lnet.conf").write_text(lustre.render(WANTED))
    assert sim.lnetctl(["lnet", "configure"]) == 0
    assert sim.lnetctl(["import", str(tmp_path / "lnet.conf")]) == 0
    return sim


def test_it_says_in_its_first_line_what_it_is():
    assert "stand-in" in PROGRAM.read_text().splitlines()[1]


@pytest.mark.parametrize("flags", [["--backup"], []])
def test_what_is_imported_is_exported_equal(imported, capsys, flags):
    assert imported.lnetctl(["export", *flags]) == 0
    running = lustre.parse(capsys.readouterr().out)
    assert lustre.differences(WANTED, running) == [] and lustre.differences(lustre.Lnet(), running) != []


def test_an_export_is_imported_again_as_it_was(imported, capsys, tmp_path):
    imported.lnetctl(["export", "--backup", str(tmp_path / "exported")])
    first = (tmp_path / "exported").read_text()
    imported.lustre_rmmod([])
    imported.lnetctl(["lnet", "configure"])
    assert imported.lnetctl(["import", str(tmp_path / "exported")]) == 0
    imported.lnetctl(["export", "--backup"])
    assert capsys.readouterr().out == first


def test_what_is_down_is_shown(imported, capsys, tmp_path):
    (tmp_path / "faults/ni_down").mkdir(parents=True)
    (tmp_path / "faults/ni_down/ib1").touch()
    imported.lnetctl(["net", "show"])
    assert lustre.down(capsys.readouterr().out, ["tcp", "o2ib"]) == ["LNet's 10.1.1.11@o2ib is down"]


def test_lnet_is_asked_in_vain_before_it_is_configured_and_ends_only_without_mounts(sim, capsys):
    assert sim.lnetctl(["export"]) != 0
    sim.lnetctl(["lnet", "configure"])
    sim.mounted = lambda: [("/lustre/scratch", "10.0.0.1@tcp:/scratch")]
    assert sim.lustre_rmmod([]) != 0 and sim.lnetctl(["lnet", "unconfigure"]) != 0
    assert "in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("10.0.0.1@tcp5:/scratch", "rw", "Is the MGS running?"),
        ("10.0.0.1@tcp:/scratch", "rw,flocks", "Are the mount options correct?"),
        (
            "10.0.0.1@tcp0,10.1.0.1@o2ib:/away",
            "rw,flock,nosuid,nodev,_netdev",
            "Is the filesystem name correct?",
        ),
    ],
)
def test_what_can_not_be_mounted_is_refused_as_documented(imported, capsys, source, options, said):
    assert imported.mount_lustre([source, "/lustre/scratch", "-o", options]) != 0
    assert said in capsys.readouterr().err


def test_without_a_network_there_is_no_lustre(sim, capsys):
    assert sim.mount_lustre(["10.0.0.1@tcp:/scratch", "/lustre/scratch", "-o", "rw"]) != 0
    assert "Are the lustre modules loaded?" in capsys.readouterr().err


def test_it_says_that_it_is_unhealthy(sim, capsys, tmp_path):
    sim.lctl(["get_param", "-n", "health_check"])
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults/unhealthy").touch()
    sim.lctl(["get_param", "-n", "health_check"])
    assert capsys.readouterr().out == "healthy\nNOT HEALTHY\n"
