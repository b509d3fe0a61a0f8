"""The scanner, its bundle and its units. That systemd runs it so restricted is for molecule/images."""

import configparser
import io
import json
import os
import subprocess
import sys
import zipfile

import image_store
import pytest

from module_utils import image_scan, image_scan_units, program_bundle
from module_utils.image_scan import ScanError

GOOD, BAD = image_store.image(labels={"team": "a"}), image_store.image()
POLICY = {"rules": {"labels": {"team": "*"}}, "severities": {"remarks": "info"}}


@pytest.fixture
def node(tmp_path):
    """A store and a user's folder; `scan` returns summary, verdicts by file name, and metrics."""
    tmp_path.chmod(0o755)

    class Node:
        store, home = tmp_path / "store", tmp_path / "home"
        results, metrics = tmp_path / "out/scan.jsonl", tmp_path / "out/scan.prom"

        def settings(self, **more):
            return {
                "paths": [str(self.store), str(self.home)],
                "patterns": ["*.sif"],
                "policy": POLICY,
                "lock": {"images": []},
                "keyrings": [],
                "cache": "",
                "results": str(self.results),
                "metrics": str(self.metrics),
                "jobs": 1,
                **more,
            }

        def scan(self, limit=None, **more):
            if limit is not None:
                more["quarantine"] = {"stores": [str(self.store)], "limit": limit}
            summary = image_scan.scan(image_scan.read(self.settings(**more)))
            lines = [json.loads(line) for line in self.results.read_text().splitlines()]
            return summary, {line["path"].rpartition("/")[2]: line for line in lines}

    image_store.put(Node.store / "good_1.sif", GOOD)
    image_store.put(Node.home / "mine.sif", BAD)
    return Node()


def test_every_image_has_a_verdict(node):
    summary, verdicts = node.scan()
    assert (summary.images, summary.refused) == (2, 1)
    assert verdicts["good_1.sif"]["findings"] == [] and verdicts["good_1.sif"]["severity"] is None
    (finding,) = verdicts["mine.sif"]["findings"]
    assert finding["rule"] == "labels" and verdicts["mine.sif"]["severity"] == "error"
    assert all(line["time"] > 0 and line["quarantined"] is False for line in verdicts.values())
    assert node.results.stat().st_mode & 0o777 == 0o644


def test_metrics_are_what_prometheus_reads(node):
    image_store.put(node.home / "b.sif", BAD)
    node.scan()
    lines = node.metrics.read_text().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['apptainer_fleet_images{verdict="good"}'] == "1"
    assert values['apptainer_fleet_images{verdict="refused"}'] == "2"
    assert values['apptainer_fleet_image_findings{rule="labels",severity="error"}'] == "2"
    assert int(values["apptainer_fleet_image_scan_timestamp_seconds"]) > 0
    assert float(values["apptainer_fleet_image_scan_seconds"]) >= 0
    # Each metric is described once, before its values.
    kinds = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds)) == 6 and node.metrics.read_text().endswith("\n")


def test_what_is_waived_is_not_counted(node):
    waiver = {"rule": "labels", "reason": "old", "expires": "2999-01-01"}
    summary, verdicts = node.scan(policy={**POLICY, "waivers": [waiver]})
    assert summary.refused == 0 and summary.findings == {}
    assert verdicts["mine.sif"]["findings"][0]["waived"]


def test_refused_images_of_the_store_are_put_into_quarantine_and_no_others(node):
    image_store.put(node.store / "tool_2.sif", BAD)
    image_store.put(node.store / "by hand.sif", BAD)
    image_store.put(node.store / "below/x.sif", BAD)
    summary, verdicts = node.scan(limit=2)
    assert summary.quarantined == 2 and summary.held == 0
    assert {name for name, line in verdicts.items() if line["quarantined"]} == {"tool_2.sif", "by hand.sif"}
    assert (node.home / "mine.sif").exists() and (node.store / "below/x.sif").exists()
    assert (node.store / "good_1.sif").exists()
    records = {}
    for path in (node.store / ".quarantine").glob("*.json"):
        record = json.loads(path.read_text())
        records[record["name"]] = record
        assert path.with_suffix("").read_bytes() == BAD
    assert records["tool"]["version"] == "2" and records["by hand.sif"]["version"] == ""
    assert records["tool"]["reason"].startswith("scan: labels error: ")
    summary, verdicts = node.scan(limit=2)
    assert summary.quarantined == 0 and "tool_2.sif" not in verdicts


def test_too_many_at_once_are_left_where_they_are(node):
    for number in range(3):
        image_store.put(node.store / f"tool_{number}.sif", BAD)
    summary, verdicts = node.scan(limit=2)
    assert summary.held == 3 and summary.quarantined == 0
    assert not any(line["quarantined"] for line in verdicts.values())
    assert not (node.store / ".quarantine").exists()
    assert "apptainer_fleet_image_scan_held 3" in node.metrics.read_text()


def test_each_store_has_the_limit_for_itself(node):
    for number in range(3):
        image_store.put(node.store / f"tool_{number}.sif", BAD)
    both = {"stores": [str(node.store), str(node.home)], "limit": 2}
    summary, verdicts = node.scan(quarantine=both)
    assert (summary.held, summary.quarantined) == (3, 1) and verdicts["mine.sif"]["quarantined"]


def test_another_node_may_be_faster_in_a_store_that_nodes_share(node, monkeypatch):
    image_store.put(node.store / "tool_2.sif", BAD)
    rename, other = os.rename, node.store / ".quarantine/other"

    def faster(source, target):
        if str(source).endswith("/tool_2.sif"):
            rename(source, other)
        rename(source, target)

    monkeypatch.setattr(image_scan.os, "rename", faster)
    summary, verdicts = node.scan(limit=2)
    assert summary.quarantined == 0 and not verdicts["tool_2.sif"]["quarantined"]
    # No record of what is not there.
    assert other.exists() and not list((node.store / ".quarantine").glob("*.json"))


def test_a_folder_is_no_image_to_take_away(node):
    (node.store / "folder.sif").mkdir()
    (node.store / "gone.sif").symlink_to("nowhere")
    summary, _ = node.scan(limit=9, paths=[str(node.store), str(node.store / "none.sif")])
    assert (node.store / "folder.sif").is_dir() and summary.refused == 2
    assert not (node.store / "gone.sif").is_symlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": {"rule": {}}}, "policy: rule: there is no such key"),
        ({"lock": {}}, "lock: images: is missing"),
        ({"keyrings": ["/none"]}, "keyrings: /none: No such file"),
        (
            {"policy": {"rules": {"signatures": {"signers": ["A1" * 20]}}}},
            "keyrings: the policy has the rule",
        ),
        ({"quarantine": {"stores": ["/none"], "limit": 1}}, "/none: No such file"),
    ],
)
def test_what_keeps_it_from_its_work_leaves_the_old_results(node, change, message):
    node.scan()
    before = node.results.read_text(), node.metrics.read_text()
    with pytest.raises(ScanError, match=message):
        node.scan(**change)
    assert (node.results.read_text(), node.metrics.read_text()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paths": []}, "paths: must not be empty"),
        ({"jobs": 0}, "jobs: must be a whole number of at least 1"),
        ({"result": "/x"}, "result: there is no such key; did you mean results"),
        ({"quarantine": {"stores": ["/x"]}}, "quarantine.limit: is missing"),
    ],
)
def test_wrong_settings_are_named(node, change, message):
    with pytest.raises(ScanError, match=message):
        image_scan.read(node.settings(**change))


def test_nothing_is_left_beside_the_results(node):
    node.scan()
    node.scan()
    assert {path.name for path in node.results.parent.iterdir()} == {"scan.jsonl", "scan.prom"}


# --- as a program


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "image-scan.pyz"
    path.write_bytes(program_bundle.bundle("image_scan"))
    return path


def run(program, settings, path):
    path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    argv = [sys.executable, "-I", "-B", program, path]
    return subprocess.run(
        argv, cwd="/", env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )


def test_the_program_needs_nothing_of_the_project(node, program, tmp_path):
    ended = run(program, node.settings(), tmp_path / "settings.json")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "image scan: 2 images, 1 refused, 0 in quarantine\n"
    assert len(node.results.read_text().splitlines()) == 2


def test_the_program_says_why_it_can_not_work(node, program, tmp_path):
    ended = run(program, node.settings(policy=3), tmp_path / "settings.json")
    assert ended.returncode == 1 and ended.stderr.startswith("image scan: policy: ")
    ended = run(program, "no JSON", tmp_path / "settings.json")
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    argv = [sys.executable, "-I", "-B", program, "/none"]
    assert "No such file" in subprocess.run(argv, capture_output=True, text=True, check=False).stderr


def test_the_program_is_the_same_every_time_and_holds_what_is_imported(program):
    assert program.read_bytes() == program_bundle.bundle("image_scan")
    with zipfile.ZipFile(io.BytesIO(program.read_bytes())) as archive:
        names = set(archive.namelist())
    assert {"__main__.py", "apptainer_fleet/image_scan.py", "apptainer_fleet/sif.py"} <= names
    assert "apptainer_fleet/slurm_conf.py" not in names


# --- units

WANTED = {
    **{"results": "/var/lib/a/x", "metrics": "/srv/m/x", "cache": "/var/cache/a/x", "quarantine": []},
    **{"deadline": 60, "memory_mib": 512, "jobs": 1, "quarantine_limit": 3},
}


def unit(text):
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string(text)
    return parser


def test_the_service_may_write_its_own_files_alone():
    service = unit(image_scan_units.service("/p", "/s", WANTED))["Service"]
    assert service["ExecStart"] == "/usr/bin/python3 -I -B /p /s"
    assert service["ReadWritePaths"] == "-/var/lib/a -/srv/m -/var/cache/a"
    assert service["ProtectSystem"] == "strict" and service["TimeoutStartSec"] == "60"
    assert service["IOSchedulingClass"] == "idle" and service["Nice"] == "19"
    with_store = unit(image_scan_units.service("/p", "/s", {**WANTED, "quarantine": ["/opt/c"]}))["Service"]
    assert with_store["ReadWritePaths"].endswith(" -/opt/c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"results": "/a b/x"}, "/a b: must be an absolute path"),
        ({"metrics": "/a%h/x"}, "must be an absolute path"),
        ({"quarantine": ["/a\n[Service]"]}, "must be an absolute path"),
        ({"deadline": 0}, "deadline: must be at least 1"),
        ({"memory_mib": -1}, "memory_mib: must be at least 1"),
    ],
)
def test_what_no_unit_can_hold_is_refused(change, message):
    with pytest.raises(image_scan_units.UnitError, match=message):
        image_scan_units.service("/p", "/s", {**WANTED, **change})


def test_the_timer_comes_when_it_is_asked_to():
    timer = unit(image_scan_units.timer("*-*-* 02:00", 60))["Timer"]
    assert timer["OnCalendar"] == "*-*-* 02:00" and timer["RandomizedDelaySec"] == "60"
    for calendar, splay in (("daily\nExecStart=/x", 0), ("", 0), ("daily", -1)):
        with pytest.raises(image_scan_units.UnitError):
            image_scan_units.timer(calendar, splay)
