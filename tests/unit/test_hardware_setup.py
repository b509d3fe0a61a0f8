"""Module hardware_setup, through its real argument specification; programs are a model."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


class Programs:
    """What systemctl, modprobe and the others would do: calls that change something, and what is so."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.true: set[str] = set()
        self.fails: dict[str, str] = {}

    def __call__(self, argv, **_):
        line = " ".join(argv)
        if "--quiet" in argv:
            state = line.removeprefix("systemctl --quiet ")
            return subprocess.CompletedProcess(argv, 0 if state in self.true else 1, "", "")
        self.calls.append(line)
        said = self.fails.get(line, "")
        return subprocess.CompletedProcess(argv, bool(said), "", said)


@pytest.fixture
def module(ansible_module, tmp_path, monkeypatch):
    runner = ansible_module("hardware_setup")
    runner.programs = Programs()
    monkeypatch.setattr(runner.plugin.subprocess, "run", runner.programs)
    for name in ("LOADED", "KERNELS", "UDEV_CONTROL"):
        monkeypatch.setattr(runner.plugin, name, str(tmp_path / name))
    (tmp_path / "LOADED").mkdir()
    runner.path = tmp_path
    return runner


UNITS = [{"name": "gpu.service"}, {"name": "nvidia-persistenced.service", "needs": "nvidia"}]


def test_a_new_node_is_set_up_in_order(module):
    (module.path / "UDEV_CONTROL").touch()
    written = ["/etc/udev/rules.d/70-x.rules", "/etc/systemd/system/gpu.service"]
    result = module(modules=["nvidia"], written=written, units=UNITS)
    assert result["changed"] and module.programs.calls == [
        "systemctl daemon-reload",
        "udevadm control --reload",
        "udevadm trigger --action=change",
        "udevadm settle --timeout=120",
        "modprobe nvidia",
        "systemctl enable gpu.service",
        "systemctl start gpu.service",
        # Its module is not there: at the next boot perhaps.
        "systemctl enable nvidia-persistenced.service",
    ]


def test_a_node_that_is_as_wanted_is_left_alone(module):
    (module.path / "LOADED/nvidia").mkdir()
    module.programs.true = {
        f"{state} {unit['name']}" for state in ("is-enabled", "is-active") for unit in UNITS
    }
    result = module(modules=["nvidia"], units=UNITS, restart=["slurmd.service"])
    assert not result["changed"] and result["actions"] == [] and module.programs.calls == []


def test_what_was_written_is_used(module):
    module.programs.true = {"is-enabled gpu.service", "is-active gpu.service", "is-active slurmd.service"}
    written = [
        "/etc/systemd/system/gpu.service", "/etc/systemd/system/slurmd.service.d/apptainer-fleet-limits.conf"
    ]  # fmt: skip
    result = module(written=written, units=UNITS[:1], restart=["slurmd.service"])
    assert result["actions"] == ["reload systemd", "restart gpu.service", "restart slurmd.service"]


def test_check_mode_predicts_and_does_nothing(module):
    result = module(check=True, modules=["nvidia"], units=UNITS[:1], memberships={"no-such-group": ["alice"]})
    assert result["actions"] == [
        "make group no-such-group", "add alice to no-such-group", "load nvidia",
        "enable gpu.service", "start gpu.service",
    ]  # fmt: skip
    assert result["changed"] and module.programs.calls == []


def test_a_module_that_the_kernel_has_not_got_is_named(module):
    module.programs.fails = {"modprobe nvidia": "modprobe: FATAL: Module nvidia not found"}
    result = module(modules=["nvidia"])
    assert result["failed"]
    assert result["msg"].startswith(
        "modprobe nvidia fails: modprobe: FATAL: Module nvidia not found: install"
    )


def test_a_program_that_hangs_is_named(module, monkeypatch):
    def hang(argv, timeout, **_):
        raise subprocess.TimeoutExpired(argv, timeout)

    monkeypatch.setattr(module.plugin.subprocess, "run", hang)
    assert module(modules=["nvidia"], deadline=1)["msg"] == "modprobe nvidia did not end within 1 s"


def test_a_built_in_module_is_loaded(module):
    release = Path("/proc/sys/kernel/osrelease").read_text().strip()
    folder = module.path / "KERNELS" / release
    folder.mkdir(parents=True)
    (folder / "modules.builtin").write_text("kernel/drivers/infiniband/core/ib-core.ko\n")
    assert not module(modules=["ib_core"])["changed"]


def test_what_the_node_lacks_is_said_and_an_error_where_it_has_to_be(module):
    expect = {"gpus": {"vendor": "habana", "count": 1000}}
    assert module(expect=expect)["mismatches"] == ["1000 x habana in its class, 0 there"]
    failed = module(expect=expect, required=True)
    assert failed["failed"] and failed["msg"] == "1000 x habana in its class, 0 there"
    assert not module(check=True, expect=expect, required=True).get("failed")
    wrong = module(expect={"gpus": {"vendor": "voodoo", "count": 1}})
    assert wrong["failed"] and wrong["msg"].startswith("expect.gpus.vendor: must be one of")
