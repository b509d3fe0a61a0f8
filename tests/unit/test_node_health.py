"""The health program: what it finds, what it tells Slurm, and what it leaves alone."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_sim import Cluster

from module_utils import (
    apptainer_smoke_test,
    bounded,
    health_checks,
    node_health,
    program_bundle,
    slurm_nodes,
)
from module_utils.node_health import HealthError, Settings

GOOD = {"node": "c1", "manager": "slurm", "checks": {"writable": ["/"]}}
SEALED = slurm_nodes.sealed("node_health", "disk: /tmp has 1 % free")


def look(name, entry, state=None, **options):
    """Return what is wrong, or nothing, by one check."""
    settings = node_health.read({"node": "c1", "checks": {name: entry}})
    report = node_health.examine(settings, {} if state is None else state, **options)
    return report.checks[name]["message"]


@pytest.fixture
def cluster():
    return Cluster.of("c[1-2]")


@pytest.fixture
def manager(cluster):
    slurm = node_health.SlurmManager("c1")
    slurm._slurm = slurm_nodes.SlurmNodes(cluster.run)
    return slurm


def report(**messages):
    """Return a report of one node; checks without a message are well."""
    checks = {
        name: {"ok": not message, "message": message, "seconds": 0} for name, message in messages.items()
    }
    return node_health.Report("c1", checks)


def settings(**values):
    return Settings(node="c1", checks={}, manager="slurm", **values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checks": {"disks": []}}, "checks.disks: there is no such key; did you mean disk?"),
        ({"checks": {"disk": [{"free_mib": 5}]}}, r"checks.disk\[1\].path: is missing"),
        ({"checks": {"disk": [{"path": "tmp"}]}}, "must be an absolute path"),
        ({"checks": {"mounts": [{"path": "/a", "timeout": 100}]}}, "from 1 to 40"),
        ({"checks": {"clock": {"offset": -1}}}, "at least 0"),
        ({"checks": {"clock": {"offset": float("nan")}}}, "at least 0"),
        ({"checks": {"apptainer": {"version": "1.4"}}}, "a release such as 1.4.5"),
        ({"manager": "torqe"}, "manager: must be one of"),
        ({"node": None}, "node: is missing"),
    ],
)
def test_settings_that_are_wrong_are_named(change, message):
    with pytest.raises(HealthError, match=message):
        node_health.read({**GOOD, **change})


def test_every_check_is_read_and_has_a_probe():
    entries = {
        "writable": ["/"],
        "disk": [{"path": "/", "free_mib": 1, "free_percent": 0.001, "free_inodes_percent": 0}],
        "clock": {"offset": 1},
        "mounts": [{"path": "/proc", "type": "proc"}],
        "devices": [{"path": "/dev/null"}],
        "hardware": {"infiniband": {"ports": 1, "gigabits": 100}, "gpus": {"vendor": "nvidia", "count": 4}},
        "user_namespaces": {"available": True},
        "apptainer": {"version": "1.4.5", "setuid": False},
        "container": {"user": "nobody", "interval": 60},
        "lustre": {"networks": ["tcp"]},
        "commands": [{"name": "nhc", "argv": ["true"]}],
    }
    assert set(entries) == set(health_checks.CHECKS)
    checks = node_health.read({"node": "c1", "checks": entries}).checks
    for name, entry in checks.items():
        for label, probe in health_checks.CHECKS[name].probes(entry).items():
            assert label and probe.seconds <= health_checks.LONGEST


def test_a_file_system_that_is_full_has_no_inodes_or_is_read_only(monkeypatch, tmp_path):
    path = str(tmp_path)
    assert look("disk", [{"path": path, "free_mib": 1}]) == ""
    assert "MiB free, less than 1e+12" in look("disk", [{"path": path, "free_mib": 1e12}])
    assert "% free, less than 100.5" in look("disk", [{"path": path, "free_percent": 100.5}])
    assert look("disk", [{"path": "/no/such"}]) == "/no/such: No such file or directory"
    full = os.statvfs_result((4096, 4096, 100, 50, 50, 1000, 10, 10, os.ST_RDONLY, 255))
    monkeypatch.setattr(health_checks.os, "statvfs", lambda _: full)
    assert "1.0 % of its inodes free" in look("disk", [{"path": path, "free_inodes_percent": 5}])
    assert look("writable", [path]) == f"{path} is read-only"


NETS = "net:\n    - net type: tcp\n      local NI(s):\n        - nid: a@tcp\n          status: up\n"


@pytest.mark.parametrize(
    ("health", "shown", "wrong"),
    [
        (
            (0, "healthy\n"),
            (
                0,
                "net:\n    - net type: tcp\n      local NI(s):\n        - nid: a@tcp\n          status: up\n",
            ),
            "",
        ),
        # While nothing is mounted there is no such parameter.
        ((2, ""), (0, "net:\n    - net type: lo\n"), "LNet has no network tcp"),
        ((0, "NOT HEALTHY\n"), (0, ""), "lustre says of itself: NOT HEALTHY"),
        ((0, "healthy\n"), (255, ""), "LNet is not there: "),
    ],
)
def test_lustre_and_lnet_say_how_they_are(monkeypatch, health, shown, wrong):
    answers = {"lctl": health, "lnetctl": shown}
    monkeypatch.setattr(health_checks, "command", lambda argv: (*answers[argv[0]], ""))
    assert look("lustre", {"networks": ["tcp"]}) == wrong


def test_several_things_that_are_wrong_are_all_said(tmp_path):
    said = look("mounts", [{"path": str(tmp_path)}, {"path": "/proc"}, {"path": "/no/such"}])
    assert said == f"{tmp_path} is not mounted; /no/such is not mounted"


def test_mounts_are_found_by_their_last_entry_and_type(monkeypatch, tmp_path):
    table = tmp_path / "mountinfo"
    table.write_text(
        "21 1 0:1 / /proc rw - proc proc rw\n"
        "22 1 0:2 / /scratch\\040two rw,relatime shared:1 - autofs systemd-1 rw\n"
        "23 1 0:3 / /scratch\\040two rw - lustre 10.0.0.1@tcp:/s rw\n"
    )
    monkeypatch.setattr(health_checks.mounts, "MOUNTINFO", str(table))
    assert health_checks.mounted("/scratch two") == "lustre" and health_checks.mounted("/scratch") is None
    assert look("mounts", [{"path": "/proc", "type": "lustre"}]) == "/proc is of type proc, not lustre"
    assert look("mounts", [{"path": "/proc", "type": "proc"}]) == ""


def test_a_mount_that_hangs_costs_its_timeout_and_names_itself(monkeypatch):
    monkeypatch.setattr(health_checks.os, "statvfs", lambda _: time.sleep(600))
    began = time.monotonic()
    assert look("mounts", [{"path": "/proc", "timeout": 1}]) == "/proc did not answer within 1 seconds"
    assert time.monotonic() - began < 300


def test_a_mount_that_still_hangs_is_not_looked_at_again(monkeypatch):
    monkeypatch.setattr(health_checks.os, "statvfs", lambda _: time.sleep(600))
    monkeypatch.setattr(bounded, "_REAPING", 0.1)
    monkeypatch.setattr(bounded.signal, "SIGKILL", 0)  # as in a wait that nothing interrupts
    state = {}
    look("mounts", [{"path": "/proc", "timeout": 1}], state)
    pid = int(state["left"]["mounts:/proc"].split()[0])
    try:
        assert "/proc has not answered since an earlier look" in look("mounts", [{"path": "/proc"}], state)
        # Another check alone does not forget it.
        look("commands", [{"name": "a", "argv": ["true"]}], state)
        assert "mounts:/proc" in state["left"]
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    monkeypatch.undo()
    assert look("mounts", [{"path": "/proc"}], state) == "" and state["left"] == {}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("0.01\n", ""),
        ("-0.2", "the clock is off by -0.200 s, more than 0.1"),
        ("nan", "the clock is off by nan s"),
        ("", "the clock is off by nan s"),
    ],
)
def test_the_clock_by_a_file(tmp_path, text, wrong):
    (tmp_path / "offset").write_text(text)
    said = look("clock", {"offset": 0.1, "file": str(tmp_path / "offset")})
    assert said.startswith(wrong) and bool(said) == bool(wrong)


@pytest.mark.parametrize(
    ("chrony", "systemd", "wrong"),
    [
        ((0, "A9FEA97B,t,4,1795528660.1,0.000012,0.0,0.0,-1.0,0.0,0.1,0.0,0.0,64.5,Normal\n", ""), None, ""),
        (
            (0, "A9FEA97B,t,4,1795528660.1,-1.5,0.0,0.0,-1.0,0.0,0.1,0.0,0.0,64.5,Normal\n", ""),
            None,
            "off by -1.5",
        ),
        ((0, ",,0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,1.0,0.0,Not synchronised\n", ""), None, "chrony is not"),
        ((127, "", ""), (0, "yes\n", ""), ""),
        ((1, "506 Cannot talk to daemon\n", ""), (0, "no\n", ""), "nothing keeps the clock right"),
        ((127, "", ""), (127, "", ""), "nothing keeps the clock right"),
    ],
)
def test_the_clock_by_chrony_or_systemd(monkeypatch, chrony, systemd, wrong):
    answers = {"chronyc": chrony, "timedatectl": systemd}
    monkeypatch.setattr(health_checks, "command", lambda argv: answers[argv[0]])
    said = look("clock", {"offset": 0.1})
    assert wrong in said and bool(said) == bool(wrong)


def test_devices_are_counted_and_opened(tmp_path):
    assert look("devices", [{"path": "/dev/nul[l]", "open": True}]) == ""
    assert (
        look("devices", [{"path": "/dev/nvidia[0-9]", "count": 4}])
        == "/dev/nvidia[0-9]: there are 0 devices, not 4"
    )
    (tmp_path / "nvidia0").touch()
    assert "there are 0 devices" in look("devices", [{"path": f"{tmp_path}/nvidia0"}])


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a device")
def test_a_device_without_a_driver_can_not_be_opened(tmp_path):
    os.mknod(tmp_path / "nvidia0", stat.S_IFCHR | 0o666, os.makedev(195, 0))
    assert look("devices", [{"path": f"{tmp_path}/nvidia0"}]) == ""
    said = look("devices", [{"path": f"{tmp_path}/nvidia0", "open": True}])
    assert said.startswith(f"{tmp_path}/nvidia0 can't be opened: ")


def test_the_hardware_of_the_class(monkeypatch):
    port = {"port": 1, "state": "ACTIVE", "rate": "100 Gb/sec (2X HDR)", "gigabits": 100}
    facts = {"infiniband": [{"name": "mlx5_0", "ports": [port]}], "gpus": {}, "pci": [], "mounts": []}
    monkeypatch.setattr(health_checks.hardware, "read", lambda: {**facts, "device_nodes": {}, "modules": {}})
    assert look("hardware", {"infiniband": {"ports": 1, "gigabits": 100}}) == ""
    assert "RDMA port mlx5_0/1 runs at 100 Gb/sec" in look("hardware", {"infiniband": {"gigabits": 200}})
    said = look("hardware", {"gpus": {"vendor": "nvidia", "count": 4}, "device_nodes": ["/dev/nvidia0"]})
    assert said == "4 x nvidia in its class, 0 there; the device node /dev/nvidia0 is not there"


def test_user_namespaces_as_the_profile_demands():
    possible = subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode == 0
    assert look("user_namespaces", {"available": possible}) == ""
    said = look("user_namespaces", {"available": not possible})
    assert said.startswith("users can create" if possible else "users can't create")
    if os.geteuid() == 0:
        assert look("user_namespaces", {"available": possible, "user": "no-such"}).endswith(
            "there is no user no-such"
        )


def test_commands_of_the_site(tmp_path):
    count = tmp_path / "count"
    script = ["sh", "-c", f"echo x >> {count}; echo all is well"]
    entry, state = [{"name": "nhc", "argv": script, "interval": 1000}], {}
    assert look("commands", entry, state) == look("commands", entry, state) == ""
    assert count.read_text() == "x\n"
    look("commands", entry, state, fresh=True)
    assert count.read_text() == "x\nx\n"
    bad = [
        {
            "name": "nhc",
            "argv": ["sh", "-c", "echo start; echo 'ERROR: nhc: check_x: no'; exit 1"],
            "interval": 1000,
        }
    ]
    for _ in range(2):  # a failure is not believed for an hour
        assert look("commands", bad, state) == "nhc failed (1): ERROR: nhc: check_x: no"
    assert "nhc failed (127)" in look("commands", [{"name": "nhc", "argv": ["/no/such"]}])
    assert (
        look("commands", [{"name": "a", "argv": ["sleep", "60"], "timeout": 1}])
        == "a did not answer within 1 seconds"
    )


def test_a_container_is_run_again_when_what_it_depends_on_is_another(monkeypatch, tmp_path):
    ran = tmp_path / "ran"
    monkeypatch.setattr(health_checks, "SCRATCH", str(tmp_path / "scratch"))
    image = tmp_path / "image.sif"
    image.write_text("one")

    def prove(test, run, scratch):
        assert test == ("nobody", str(image), True, "/etc/apptainer")
        assert scratch.stat().st_mode & 0o777 == 0o755
        with ran.open("a") as file:
            file.write("x")
        return True

    monkeypatch.setattr(apptainer_smoke_test, "prove", prove)
    entry, state = {"image": str(image), "enforced": True}, {}
    for wanted in ("x", "x"):
        assert look("container", entry, state) == "" and ran.read_text() == wanted
    image.write_text("two!")
    assert look("container", entry, state) == "" and ran.read_text() == "xx"
    state["kept"]["container:container"]["at"] -= 3601
    assert look("container", entry, state) == "" and ran.read_text() == "xxx"
    # A clock that was put back makes nothing true for longer.
    state["kept"]["container:container"]["at"] += 10000
    assert look("container", entry, state) == "" and ran.read_text() == "xxxx"
    # What a look has left that was killed is gone, too.
    (tmp_path / "scratch/1-0/root").mkdir(parents=True)
    look("container", entry, state, fresh=True)
    assert not list((tmp_path / "scratch").iterdir())

    def fails(test, run, scratch):
        raise apptainer_smoke_test.SmokeTestError("no container runs on this node")

    monkeypatch.setattr(apptainer_smoke_test, "prove", fails)
    assert look("container", entry, state, fresh=True) == "no container runs on this node"
    assert look("container", entry, state) == "no container runs on this node"


def test_an_unhealthy_node_is_drained_with_the_name_of_the_check_and_once(cluster, manager):
    state = {}
    bad = report(disk="/tmp has 1 % free", mounts="", clock="off")
    assert node_health.act(bad, settings(), state, manager).startswith(
        "is drained for 'node_health: disk, clock: /tmp"
    )
    assert cluster.nodes["c1"].reason == bad.reason and not cluster.nodes["c2"].drain
    assert node_health.act(bad, settings(), state, manager) == "" and len(cluster.updates) == 1
    # Another figure changes nothing, another check does.
    assert node_health.act(report(disk="/tmp has 2 % free", clock="off"), settings(), state, manager) == ""
    node_health.act(report(mounts="/scratch did not answer"), settings(), state, manager)
    assert cluster.nodes["c1"].reason.startswith("node_health: mounts: /scratch did not answer (")
    assert len(cluster.updates) == 2 and cluster.nodes["c1"].drain


def test_a_node_that_is_well_again_is_resumed_and_slurm_is_left_in_peace(cluster, manager):
    state = {}
    node_health.act(report(disk="full"), settings(), state, manager)
    assert node_health.act(report(disk=""), settings(), state, manager).startswith("is resumed")
    assert cluster.nodes["c1"].available
    calls = len(cluster.calls)
    for _ in range(3):
        assert node_health.act(report(disk=""), settings(), state, manager) == ""
    assert len(cluster.calls) == calls


def test_a_drain_from_before_the_boot_is_ended(cluster, manager):
    cluster.drain("c1", SEALED)
    assert node_health.act(report(disk=""), settings(), {}, manager).startswith("is resumed")


@pytest.mark.parametrize(
    ("reason", "user"),
    [
        ("bad DIMM in slot A1 [ticket 42]", "root"),
        (f"{SEALED} Bob looks at it", "root"),
        (SEALED.replace("1 %", "0 %"), "root"),
        (SEALED, "bob"),
        ("node_health: disk: /tmp has 1 % free", "root"),
    ],
)
@pytest.mark.parametrize("message", ["", "full"])
def test_a_drain_of_somebody_else_stays_as_it_is(cluster, manager, reason, user, message):
    cluster.drain("c1", reason, user)
    before = cluster.nodes["c1"]
    for state in ({}, {"drained": True}, {"drained": False}):
        node_health.act(report(disk=message), settings(), state, manager)
    assert cluster.nodes["c1"] == before and not cluster.updates


def test_who_drains_in_the_moment_before_is_seen(cluster, manager):
    cluster.drain("c1", SEALED)

    def meanwhile(argv):
        if len(cluster.calls) == 1:  # it has been seen as ours
            cluster.drain("c1", "disk dies", "bob")

    cluster.meanwhile = meanwhile
    node_health.act(report(disk=""), settings(), {}, manager)
    assert cluster.nodes["c1"].reason == "disk dies" and cluster.nodes["c1"].drain


def test_a_node_that_comes_and_goes_stays_drained_in_the_end(cluster, manager):
    state = {}
    for _ in range(3):
        node_health.act(report(disk="full"), settings(heals=3), state, manager)
        assert node_health.act(report(disk=""), settings(heals=3), state, manager).startswith("is resumed")
    node_health.act(report(disk="full"), settings(heals=3), state, manager)
    assert "stays drained: it was resumed 3 times within a day" in node_health.act(
        report(disk=""), settings(), state, manager
    )
    assert cluster.nodes["c1"].drain
    state["heals"] = [when - 90000 for when in state["heals"]]
    assert node_health.act(report(disk=""), settings(), state, manager).startswith("is resumed")


@pytest.mark.parametrize(("values", "message"), [({"drain": False}, "full"), ({"resume": False}, "")])
def test_what_is_switched_off_is_not_done(cluster, manager, values, message):
    if values.get("resume") is False:
        cluster.drain("c1", SEALED)
    node_health.act(report(disk=message), settings(**values), {}, manager)
    assert not cluster.updates


@pytest.fixture
def node(tmp_path, monkeypatch):
    """Files of a node in a folder; `write(checks)` makes its settings."""
    for name in ("SETTINGS", "STATE", "GATE"):
        monkeypatch.setattr(node_health, name, str(tmp_path / name.lower()))

    def write(**checks):
        (tmp_path / "settings").write_text(json.dumps({"node": "c1", "checks": checks}))
        return tmp_path

    return write


def test_the_program_says_what_it_found(node, capsys, tmp_path):
    node(disk=[{"path": str(tmp_path), "free_mib": 10**12}], writable=[str(tmp_path)])
    arguments = ["--settings", node_health.SETTINGS]
    assert node_health.main([*arguments, "--json"]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["node"], found["healthy"], found["failed"]) == ("c1", False, ["disk"])
    assert found["checks"]["writable"]["ok"] and "MiB free" in found["checks"]["disk"]["message"]
    assert err.startswith("error: node_health: disk: ")
    assert node_health.main([*arguments, "writable"]) == 0
    assert node_health.main([*arguments, "nothing"]) == 2


def test_settings_that_can_not_be_read_are_said_and_are_no_health(node, capsys, tmp_path):
    for text in ("{", "[]", '{"node": "c1", "checks": {"x": 1}}'):
        (tmp_path / "settings").write_text(text)
        assert node_health.main(["--settings", node_health.SETTINGS]) == 2
        assert capsys.readouterr().err.startswith(f"error: node_health: {tmp_path}/settings: ")
    assert node_health.main(["--settings", "/no/such"]) == 2


def test_the_gate_opens_once_for_each_boot(node, tmp_path):
    arguments = ["--settings", node_health.SETTINGS, "--gate"]
    node(disk=[{"path": str(tmp_path), "free_mib": 10**12}])
    assert node_health.main(arguments) == 1 and not Path(node_health.GATE).exists()
    node(writable=[str(tmp_path)])
    assert node_health.main(arguments) == 0 and Path(node_health.GATE).exists()
    # slurmd may be restarted on a node that has become unhealthy: it is drained, not lost.
    node(disk=[{"path": str(tmp_path), "free_mib": 10**12}])
    assert node_health.main(arguments) == 0


def test_what_was_remembered_and_is_no_memory_is_forgotten(node, tmp_path):
    node(writable=[str(tmp_path)])
    for text in ("", "{", "[1]"):
        Path(node_health.STATE).write_text(text)
        assert node_health.main(["--settings", node_health.SETTINGS]) == 0
    assert json.loads(Path(node_health.STATE).read_text()) == {"kept": {}, "left": {}}


def test_it_is_one_file_that_needs_nothing_but_python(tmp_path):
    program = tmp_path / "node-health.pyz"
    program.write_bytes(program_bundle.bundle("node_health"))
    (tmp_path / "settings").write_text(json.dumps({"node": "c1", "checks": {"writable": ["/"]}}))
    ended = subprocess.run(
        [sys.executable, "-I", "-B", program, "--settings", tmp_path / "settings", "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert json.loads(ended.stdout)["node"] == "c1", ended.stderr
