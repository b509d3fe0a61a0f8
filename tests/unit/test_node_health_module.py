"""The module node_health, and the filter of its role."""

import json
import stat
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError

SETTINGS = {"node": "c1", "manager": "slurm", "checks": {"writable": ["/"]}}
ROLE = Path(__file__).parents[2] / "roles/node_health"


@pytest.fixture
def module(ansible_module, tmp_path, monkeypatch):
    runner = ansible_module("node_health")
    plugin = runner.plugin
    for name in ("PROGRAM", "WRAPPER", "SETTINGS", "UNITS"):
        monkeypatch.setattr(plugin, name, str(tmp_path / name.lower()))
    monkeypatch.setattr(plugin, "OWNER", None)
    runner.calls = []
    monkeypatch.setattr(
        plugin.AnsibleModule, "run_command", lambda _, argv, **__: runner.calls.append(argv) or (0, "", "")
    )
    return runner


def test_it_is_there_once_and_gone_again(module, tmp_path):
    first = module(settings=SETTINGS, gate=["slurmd.service"])
    assert first["changed"] and len(first["paths"]) == 4
    assert json.loads((tmp_path / "settings").read_text()) == SETTINGS
    assert (tmp_path / "wrapper").stat().st_mode & 0o777 == 0o755
    unit = (tmp_path / "units/slurmd.service.d/apptainer-fleet-node-health.conf").read_text()
    assert " --gate\n" in unit and module.calls == [["systemctl", "daemon-reload"]]
    assert not module(settings=SETTINGS, gate=["slurmd.service"])["changed"]
    # Without a gate its file goes, and systemd is told.
    assert module(settings=SETTINGS)["paths"] == [
        str(tmp_path / "units/slurmd.service.d/apptainer-fleet-node-health.conf")
    ]
    assert len(module.calls) == 2
    assert len(module(state="absent")["paths"]) == 3 and not (tmp_path / "program").exists()
    assert not module(state="absent")["changed"]


def test_check_mode_writes_nothing_and_says_the_same(module, tmp_path):
    predicted = module(check=True, settings=SETTINGS, gate=["slurmd.service"])
    assert not list(tmp_path.iterdir()) and not module.calls
    done = module(settings=SETTINGS, gate=["slurmd.service"])
    assert (predicted["paths"], predicted["diff"]) == (done["paths"], done["diff"])
    assert "PK" not in json.dumps(done["diff"])  # of the program, its digest


def test_a_mode_that_somebody_changed_is_mended(module, tmp_path):
    module(settings=SETTINGS)
    (tmp_path / "wrapper").chmod(0o644)
    assert module(settings=SETTINGS)["paths"] == [str(tmp_path / "wrapper")]
    assert stat.S_IMODE((tmp_path / "wrapper").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"settings": {**SETTINGS, "checks": {"disks": []}}}, "did you mean disk?"),
        ({"settings": SETTINGS, "gate": ["slurmd"]}, "gate: 'slurmd' is no service"),
        ({"settings": SETTINGS, "gate": ["../x.service"]}, "is no service"),
        ({}, "settings"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(module, tmp_path, arguments, message):
    result = module(**arguments)
    assert result["failed"] and message in result["msg"]
    assert not list(tmp_path.iterdir())


APPTAINER = {
    "version": "1.4.5-2",
    "profile": "rootless",
    "user": "nobody",
    "image": "",
    "interval": 3600,
    "folder": "",
}


@pytest.fixture
def make(filter_plugin):
    def call(checks=None, **options):
        given = {"node": "c1", "manager": "slurm", "drain": True, "resume": True, "heals": 3, **options}
        return filter_plugin("node_health").node_health_settings(checks or {}, **given)["checks"]

    return call


@pytest.mark.parametrize(
    ("profile", "setuid", "available", "container"),
    [("rootless", False, True, True), ("enforced", True, False, False), ("compatible", True, True, True)],
)
def test_the_profile_says_what_is_healthy(make, profile, setuid, available, container):
    checks = make(apptainer={**APPTAINER, "profile": profile})
    assert checks["apptainer"] == {"version": "1.4.5", "setuid": setuid}
    assert checks["user_namespaces"] == {"available": available}
    assert ("container" in checks) == container
    # Where a list is on, the site's own image runs, and nothing else does.
    signed = make(apptainer={**APPTAINER, "profile": profile, "image": "/opt/ok.sif"})["container"]
    assert (
        "folder" not in signed
        and signed["image"] == "/opt/ok.sif"
        and signed["enforced"] == (profile == "enforced")
    )


def test_the_site_adds_replaces_and_takes_away(make):
    assert sorted(make()) == ["disk", "writable"]
    checks = make(
        {"writable": None, "disk": [{"path": "/local"}], "mounts": [{"path": "/scratch"}]}, nhc=["/nhc"]
    )
    assert "writable" not in checks and checks["disk"] == [{"path": "/local"}]
    assert checks["commands"] == [{"name": "nhc", "argv": ["/nhc"]}] and checks["mounts"]
    assert "container" not in make(apptainer={**APPTAINER, "interval": 0})
    tree = "/opt/apptainer/1.4.5/etc/apptainer"
    assert make(apptainer={**APPTAINER, "folder": tree})["container"]["folder"] == tree
    with pytest.raises(AnsibleFilterError, match=r"node_health_checks: checks\.mount: there is no such key"):
        make({"mount": []})
    with pytest.raises(AnsibleFilterError, match="apptainer_version: "):
        make(apptainer={**APPTAINER, "version": "latest"})


def test_defaults_are_those_of_the_specification():
    options = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"][
        "options"
    ]
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    assert {name: option["default"] for name, option in options.items()} == defaults
