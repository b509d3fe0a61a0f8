"""Module image_scanner; systemctl is a script that keeps in files what systemd would know.

That systemd runs the scanner is for molecule/images and molecule/audit.
"""

import json
import os
import sys

import image_store
import pytest

SYSTEMCTL = """#!/bin/sh
echo "$*" >>"$NODE/calls"
case "$*" in
    *is-enabled*) [ -e "$NODE/enabled" ] ;;
    *is-active*) [ -e "$NODE/active" ] ;;
    "enable "*) touch "$NODE/enabled" ;;
    "restart "*) touch "$NODE/active" ;;
    "start "*) [ ! -e "$NODE/broken" ] || exit 1; "$NODE/start" ;;
    "disable --now "*) rm -f "$NODE/enabled" "$NODE/active" ;;
esac
"""


@pytest.fixture
def node(tmp_path, monkeypatch):
    program = tmp_path / "bin/systemctl"
    program.parent.mkdir()
    program.write_text(SYSTEMCTL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("NODE", str(tmp_path))
    (tmp_path / "units").mkdir()
    return tmp_path


@pytest.fixture
def module(ansible_module, node, monkeypatch):
    run = ansible_module("image_scanner")
    for name, path in {"PROGRAM": "lib/scan.pyz", "SETTINGS": "etc/scan.json", "UNITS": "units"}.items():
        monkeypatch.setattr(run.plugin, name, str(node / path))
    monkeypatch.setattr(run.plugin, "OWNER", (os.geteuid(), os.getegid()))

    def call(**arguments):
        places = {name: str(node / f"out/{name}") for name in ("results", "metrics", "cache")}
        wanted = {"paths": ["/srv"], "policy": {}, "lock": {"images": []}, **places, **arguments}
        return run(**{key: value for key, value in wanted.items() if value is not None})

    return call


def calls(node):
    file = node / "calls"
    text = file.read_text() if file.exists() else ""
    file.unlink(missing_ok=True)
    return text


FILES = ["lib/scan.pyz", "etc/scan.json"]
UNITS = ["units/apptainer-fleet-image-scan.service", "units/apptainer-fleet-image-scan.timer"]


def test_a_scanner_is_installed_and_its_timer_started(module, node):
    result = module(paths=["/srv", "/scratch/*/images"], quarantine=["/srv"], quarantine_limit=5)
    assert result["changed"] and result["paths"] == [str(node / name) for name in (*FILES, *UNITS)]
    settings = json.loads((node / "etc/scan.json").read_text())
    assert settings["paths"] == ["/srv", "/scratch/*/images"]
    assert settings["quarantine"] == {"stores": ["/srv"], "limit": 5}
    assert "-/srv" in (node / UNITS[0]).read_text() and "OnCalendar=daily" in (node / UNITS[1]).read_text()
    said = calls(node)
    assert said.index("daemon-reload") < said.index("enable ") < said.index("restart ")
    assert (node / "out").is_dir()


def test_the_second_time_nothing_happens(module, node):
    module()
    calls(node)
    result = module()
    assert not result["changed"] and result["diff"] == []
    assert "restart" not in calls(node) and "daemon-reload" not in calls(node)


def test_what_changes_is_written_alone(module, node):
    module()
    calls(node)
    result = module(calendar="weekly")
    assert result["paths"] == [str(node / UNITS[1])] and "daemon-reload" in calls(node)
    assert module(lock={"images": [{"name": "a", "version": "1", "sha256": "0" * 64, "size": 1}]})["changed"]


def test_check_mode_predicts_and_writes_nothing(module, node):
    predicted = module(check=True)
    assert predicted["changed"] and not (node / "lib").exists() and not (node / "out").exists()
    assert "enable " not in calls(node)
    done = module()
    assert predicted["diff"] == done["diff"] and done["diff"][0]["after"].startswith("sha256 ")


def test_a_timer_that_somebody_stopped_is_started(module, node):
    module()
    (node / "active").unlink()
    assert module(check=True)["changed"] and module()["changed"] and (node / "active").exists()


def test_it_can_be_taken_away(module, node):
    module()
    predicted = module(state="absent", paths=None, policy=None, lock=None, check=True)
    assert predicted["changed"] and (node / FILES[0]).exists()
    result = module(state="absent", paths=None, policy=None, lock=None)
    assert result["changed"] and not any((node / name).exists() for name in (*FILES, *UNITS))
    assert not (node / "active").exists()
    again = module(state="absent")
    assert not again["changed"]


@pytest.fixture
def store(node):
    """A store with an image that the policy takes and one that it does not, and a service that scans."""
    image_store.put(node / "store/good_1.sif", image_store.image(labels={"team": "a"}))
    image_store.put(node / "store/bad_1.sif", image_store.image())
    start = f"#!/bin/sh\nexec {sys.executable} -I {node}/lib/scan.pyz {node}/etc/scan.json\n"
    (node / "start").write_text(start)
    (node / "start").chmod(0o755)
    return node / "store"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


SCAN = {"scan": True, "policy": {"rules": {"labels": {"team": "*"}}}}


def test_a_scan_puts_into_quarantine_what_check_mode_has_foreseen(module, store):
    wanted = {**SCAN, "paths": [str(store)], "quarantine": [str(store)]}
    # A node that has had no converge has nothing to judge with.
    assert module(**wanted, check=True)["quarantined"] == []
    module(**{**wanted, "scan": False})
    assert names(store) == ["bad_1.sif", "good_1.sif"]
    predicted = module(**wanted, check=True)
    assert predicted["changed"] and predicted["quarantined"] == [str(store / "bad_1.sif")]
    assert (store / "bad_1.sif").exists()
    done = module(**wanted)
    assert done["quarantined"] == predicted["quarantined"] and done["diff"] == predicted["diff"]
    assert names(store) == [".quarantine", "good_1.sif"]
    again = module(**wanted)
    assert not again["changed"] and again["diff"] == []


def test_a_scan_takes_nothing_where_too_much_is_refused_and_says_so(module, store, monkeypatch):
    warnings = []
    monkeypatch.setattr(
        "ansible.module_utils.basic.AnsibleModule.warn", lambda _, text: warnings.append(text)
    )
    image_store.put(store / "bad_2.sif", image_store.image())
    wanted = {**SCAN, "paths": [str(store)], "quarantine": [str(store)], "quarantine_limit": 1}
    module(**{**wanted, "scan": False})
    for check in (True, False):
        result = module(**wanted, check=check)
        assert not result["changed"] and result["quarantined"] == [] and len(names(store)) == 3
        assert "2 images of stores are refused and left where they are" in warnings.pop() and not warnings


def test_a_scan_that_fails_is_no_success(module, store, node):
    (node / "broken").touch()
    result = module(**SCAN, paths=[str(store)])
    assert result["failed"] and result["msg"].startswith("the images could not be judged")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": {"rule": {}}}, "policy: rule: there is no such key"),
        ({"lock": {"images": [{}]}}, "lock: images[1].name: is missing"),
        ({"paths": []}, "paths: must not be empty"),
        ({"calendar": "x\ny"}, "calendar: "),
        ({"results": "/a b/x"}, "/a b: must be an absolute path"),
        ({"jobs": 0}, "jobs: must be"),
        ({"lock": None}, "state is present but all of the following are missing: lock"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_written(module, node, arguments, message):
    result = module(**arguments)
    assert result["failed"] and result["msg"].startswith(message), result["msg"]
    assert not (node / "lib").exists() and not list((node / "units").iterdir())
