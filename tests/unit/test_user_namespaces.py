"""The module that does in one call what three do: each part is reached, and in their order."""

from pathlib import Path

import pytest

MAX = "user.max_user_namespaces"
RESTRICTION = "kernel.apparmor_restrict_unprivileged_userns"


@pytest.fixture
def module(ansible_module, tmp_path, monkeypatch):
    """The module with the kernel's files in a folder, as `proc_sys`."""
    runner = ansible_module("user_namespaces")
    plugin, proc_sys = runner.plugin, tmp_path / "sys"
    for name, value in {MAX: "0", RESTRICTION: "1"}.items():
        file = proc_sys / name.replace(".", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
    monkeypatch.setattr(plugin.kernel_parameters, "PROC_SYS", str(proc_sys))
    monkeypatch.setattr(plugin.kernel_parameters.sysctl_files, "FOLDERS", ())
    monkeypatch.setattr(plugin.kernel_parameters.sysctl_files, "SYSCTL_CONF", str(tmp_path / "none"))
    (tmp_path / "enabled").write_text("Y\n")
    (tmp_path / "profiles").write_text("")
    monkeypatch.setattr(plugin.apparmor, "MODULE", str(tmp_path / "enabled"))
    monkeypatch.setattr(plugin.apparmor, "PROFILES", str(tmp_path / "profiles"))
    parser = tmp_path / "apparmor_parser"
    parser.write_text("#!/bin/sh\n")
    parser.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    runner.proc_sys = proc_sys
    return runner


@pytest.fixture
def wanted(tmp_path):
    return {
        "kernel": {"path": str(tmp_path / "60.conf"), "parameters": {MAX: 15000}},
        "apparmor": {"path": str(tmp_path / "profile"), "programs": ["/usr/bin/apptainer"]},
        "subordinate_ids": {
            "users": ["60001"],
            "subuid": str(tmp_path / "subuid"),
            "subgid": str(tmp_path / "subgid"),
        },
    }


def files(wanted):
    paths = (*(wanted[part]["path"] for part in ("kernel", "apparmor")), wanted["subordinate_ids"]["subuid"])
    return [path for path in paths if Path(path).exists()]


def test_all_parts_are_done_as_predicted_and_then_nothing(module, wanted):
    predicted = module(check=True, **wanted)
    assert files(wanted) == []
    done = module(**wanted)
    assert predicted == done and done["changed"] and len(files(wanted)) == 3
    assert len(done["diff"]) == 5
    assert done["kernel"]["changes"][0]["after"] == "15000"
    assert done["subordinate_ids"]["assigned"] == 1 and done["apparmor"]["loaded"] == ["/usr/bin/apptainer"]
    (module.proc_sys.parent / "profiles").write_text("/usr/bin/apptainer (unconfined)\n")
    assert not module(**wanted)["changed"]


def test_what_is_not_given_is_left_alone(module, wanted):
    result = module(kernel=wanted["kernel"])
    assert len(files(wanted)) == 1 and "apparmor" not in result and "subordinate_ids" not in result


def test_a_kernel_that_withholds_nothing_gets_no_profile(module, wanted):
    (module.proc_sys / RESTRICTION.replace(".", "/")).unlink()
    assert "apparmor" not in module(**wanted) and not Path(wanted["apparmor"]["path"]).exists()


def test_what_was_done_before_a_part_failed_is_told(module, wanted):
    wanted["subordinate_ids"]["users"] = ["a b"]
    result = module(**wanted)
    assert result["failed"] and result["changed"] and "'a b' is no name of a user" in result["msg"]
    assert result["kernel"]["changed"] and len(files(wanted)) == 2


def test_an_option_that_a_part_does_not_have_is_refused(module, wanted):
    wanted["kernel"]["parameter"] = {}
    message = module(**wanted)["msg"]
    assert message.startswith("kernel: parameter. Supported parameters include") and files(wanted) == []
