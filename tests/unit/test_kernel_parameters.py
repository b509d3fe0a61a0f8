"""Kernel parameters, in a /proc/sys that is a folder."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from module_utils import kernel_parameters
from module_utils.kernel_parameters import KernelParameterError, Limit

MAX = "user.max_user_namespaces"


@pytest.fixture
def proc_sys(tmp_path):
    root = tmp_path / "sys"
    for name, value in {
        MAX: "0\n",
        "kernel.pid_max": "4194304\n",
        "net.ipv4.tcp_rmem": "4096\t131072\t6291456\n",
    }.items():
        file = root / name.replace(".", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value)
    return str(root)


def test_plan_changes_only_what_differs_and_skips_what_the_kernel_lacks(proc_sys):
    wanted = {MAX: 15000, "kernel.pid_max": "4194304", "kernel.unprivileged_userns_clone": True}
    plan = kernel_parameters.plan(wanted, proc_sys=proc_sys)
    assert [(c.name, c.running, c.wanted) for c in plan.changes] == [(MAX, "0", "15000")]
    assert plan.skipped == ("kernel.unprivileged_userns_clone",)
    assert plan.text.splitlines()[1:] == [
        "kernel.pid_max = 4194304",
        "-kernel.unprivileged_userns_clone = 1",
        "user.max_user_namespaces = 15000",
    ]


def test_fields_are_equal_whatever_separates_them(proc_sys):
    assert not kernel_parameters.plan({"net.ipv4.tcp_rmem": "4096 131072 6291456"}, proc_sys=proc_sys).changes


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("kernel.pid_max", "kernel/pid_max"),
        ("net.ipv4.conf.eth0/7.forwarding", "net/ipv4/conf/eth0.7/forwarding"),
        ("net/ipv4/conf/eth0.7/forwarding", "net/ipv4/conf/eth0.7/forwarding"),
    ],
)
def test_the_first_separator_decides(name, path):
    assert str(kernel_parameters.parameter_path(name, "/p")) == f"/p/{path}"


@pytest.mark.parametrize(
    "name", ["", "pid_max", "../etc/passwd", "kernel..pid_max", "a/../../b", "/etc/x", "a.b\nc.d", "a.b "]
)
def test_other_names_are_refused(name):
    with pytest.raises(KernelParameterError, match="not the name of a parameter"):
        kernel_parameters.parameter_path(name)


@pytest.mark.parametrize("value", ["", " ", "1\n2", None, 1.5, ["1"]])
def test_other_values_are_refused_with_the_name(value, proc_sys):
    with pytest.raises(KernelParameterError, match=r"^kernel\.pid_max: "):
        kernel_parameters.plan({"kernel.pid_max": value}, proc_sys=proc_sys)


def test_limit_holds_for_a_running_value_that_nobody_sets(proc_sys):
    with pytest.raises(
        KernelParameterError, match=r"is 0 in the running kernel and must be at least 1: set it"
    ):
        kernel_parameters.plan({}, [Limit(MAX, 1, None, "set it")], proc_sys)


def test_limit_holds_for_a_wanted_value_before_the_running_one(proc_sys):
    assert kernel_parameters.plan({MAX: 5}, [Limit(MAX, 1, None, "")], proc_sys).changes
    with pytest.raises(
        KernelParameterError, match=r"is 5 in what is asked for and must be at most 0: unset it"
    ):
        kernel_parameters.plan({MAX: 5}, [Limit(MAX, None, 0, "unset it")], proc_sys)


def test_limit_of_a_parameter_that_the_kernel_lacks_is_kept(proc_sys):
    assert kernel_parameters.plan({}, [Limit("kernel.none", 1, None, "")], proc_sys).changes == ()


def test_read_only_proc_sys_is_an_error_only_where_a_value_must_change(proc_sys, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))
    assert not kernel_parameters.plan({MAX: 0}, proc_sys=proc_sys).changes
    with pytest.raises(KernelParameterError) as error:
        kernel_parameters.plan({MAX: 15000}, proc_sys=proc_sys)
    assert all(
        word in str(error.value) for word in (MAX, " 0 ", "15000", "read-only", "the machine that this node")
    )


def test_a_value_that_the_kernel_alters_is_an_error(proc_sys, monkeypatch):
    change = kernel_parameters.Change(MAX, "0", "7")
    monkeypatch.setattr(kernel_parameters, "running_value", lambda name, proc_sys: "4")
    with pytest.raises(KernelParameterError, match="the kernel made it 4"):
        kernel_parameters.apply(change, proc_sys)


# The module


@pytest.fixture
def module(ansible_module, proc_sys, monkeypatch, tmp_path):
    runner = ansible_module("kernel_parameters")
    monkeypatch.setattr(runner.plugin.kernel_parameters, "PROC_SYS", proc_sys)
    sysctl_files = runner.plugin.kernel_parameters.sysctl_files
    monkeypatch.setattr(sysctl_files, "FOLDERS", (str(tmp_path / "etc"), str(tmp_path / "lib")))
    monkeypatch.setattr(sysctl_files, "SYSCTL_CONF", str(tmp_path / "sysctl.conf"))
    return runner


def test_module_sets_both_and_the_second_time_nothing(module, proc_sys, tmp_path):
    file = tmp_path / "60-test.conf"
    arguments = {"path": str(file), "parameters": {MAX: 15000, "kernel.none": 1}}

    result = module(**arguments)
    assert result["changed"] and result["skipped_parameters"] == ["kernel.none"]
    assert result["changes"] == [{"name": MAX, "before": "0", "after": "15000"}]
    assert Path(proc_sys, "user/max_user_namespaces").read_text() == "15000\n"
    assert "user.max_user_namespaces = 15000\n" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o644

    before = Path(proc_sys, "user/max_user_namespaces").stat().st_mtime_ns, file.stat().st_mtime_ns
    assert not module(**arguments)["changed"]
    assert before == (Path(proc_sys, "user/max_user_namespaces").stat().st_mtime_ns, file.stat().st_mtime_ns)


def test_check_mode_predicts_what_the_run_does_and_does_nothing(module, proc_sys, tmp_path):
    file = tmp_path / "60-test.conf"
    arguments = {"path": str(file), "parameters": {MAX: 15000}}
    predicted = module(check=True, **arguments)
    assert not file.exists() and Path(proc_sys, "user/max_user_namespaces").read_text() == "0\n"
    done = module(**arguments)
    assert (predicted["changed"], predicted["diff"]) == (done["changed"], done["diff"])


@pytest.mark.parametrize("check", [True, False])
def test_module_refuses_before_it_writes(module, proc_sys, tmp_path, check):
    file = tmp_path / "60-test.conf"
    limit = {"name": MAX, "maximum": 0, "reason": "namespaces are off"}
    result = module(check=check, path=str(file), parameters={MAX: 5}, limits=[limit])
    assert result["failed"] and "namespaces are off" in result["msg"]
    assert not file.exists() and Path(proc_sys, "user/max_user_namespaces").read_text() == "0\n"


def test_a_value_that_the_kernel_refuses_never_gets_into_the_file(module, tmp_path, monkeypatch):
    def refuse(*_):
        raise module.plugin.kernel_parameters.KernelParameterError("the kernel refuses it")

    monkeypatch.setattr(module.plugin.kernel_parameters, "apply", refuse)
    file = tmp_path / "60-test.conf"
    assert module(path=str(file), parameters={MAX: 5})["failed"]
    assert not file.exists()


def test_missing_folder_names_the_file(module, tmp_path):
    result = module(path=str(tmp_path / "none" / "x.conf"), parameters={"kernel.pid_max": 4194304})
    assert result["failed"] and "x.conf can't be written" in result["msg"]


# Other files


@pytest.fixture
def warned(monkeypatch):
    """The warnings of modules; what Ansible makes of them depends on what else runs in this process."""
    warnings = []
    monkeypatch.setattr(
        "ansible.module_utils.basic.AnsibleModule.warn", lambda _, text: warnings.append(text)
    )
    return warnings


@pytest.fixture
def etc(tmp_path):
    """Return what writes a file of this name, and the file that the module owns."""
    for folder in ("etc", "lib"):
        (tmp_path / folder).mkdir()

    def write(name, text):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    write.own = str(tmp_path / "etc" / "60-ours.conf")
    return write


@pytest.mark.parametrize("check", [True, False])
def test_a_later_file_that_undoes_a_value_is_named_before_anything_changes(module, proc_sys, etc, check):
    stig = etc("etc/99-user_max_user_namespaces.conf", f"# STIG\n\n{MAX} = 0\n")
    result = module(check=check, path=etc.own, parameters={MAX: 15000})
    assert result["failed"] and not Path(etc.own).exists()
    assert f"{MAX} = 0 in {stig}, line 3 (DISA STIG: RHEL-08-040284, RHEL-09-213105" in result["msg"]
    assert Path(proc_sys, "user/max_user_namespaces").read_text() == "0\n"


def test_conflicts_can_be_reported_only(module, etc, warned):
    etc("etc/99-stig.conf", f"{MAX} = 0\n")
    result = module(path=etc.own, parameters={MAX: 15000}, conflicts="report")
    assert result["changed"] and "undoes user.max_user_namespaces = 15000" in result["lost"][0]
    assert warned == result["lost"] and "99-stig.conf, line 1" in warned[0]


def test_a_later_file_that_agrees_is_no_conflict(module, etc, warned):
    etc("etc/99-same.conf", f"{MAX}=15000")
    result = module(path=etc.own, parameters={MAX: 15000})
    assert result["changed"] and result["lost"] == [] and warned == []


def test_the_last_of_several_later_files_decides(module, etc):
    etc("etc/98-no.conf", f"{MAX}=0")
    etc("lib/99-yes.conf", f"{MAX}=15000")
    assert module(path=etc.own, parameters={MAX: 15000})["lost"] == []


def test_an_earlier_file_that_contradicts_is_warned_of_and_overruled(module, etc, warned):
    devsec = etc("etc/10-hardening.conf", "kernel/unprivileged_userns_clone = 0\n")
    result = module(path=etc.own, parameters={"kernel.unprivileged_userns_clone": True})
    assert result["lost"] == []
    expected = f"kernel.unprivileged_userns_clone = 0 in {devsec}, line 1 (dev-sec os_hardening)"
    assert result["overruled"] == [expected] and len(warned) == 1 and expected in warned[0]


def test_an_earlier_file_of_the_distribution_is_no_warning(module, etc, warned, monkeypatch, tmp_path):
    monkeypatch.setattr(module.plugin.kernel_parameters, "VENDOR", (str(tmp_path / "lib"),))
    etc("lib/10-apparmor.conf", "kernel.apparmor_restrict_unprivileged_userns = 1\n")
    result = module(path=etc.own, parameters={"kernel.apparmor_restrict_unprivileged_userns": False})
    assert len(result["overruled"]) == 1 and warned == []


def test_masked_files_say_nothing(module, etc):
    etc("lib/99-stig.conf", f"{MAX}=0")
    assert module(path=etc.own, parameters={MAX: 15000})["failed"]
    etc("etc/99-stig.conf", "")
    assert not module(path=etc.own, parameters={MAX: 15000}).get("failed")


@pytest.mark.parametrize("linked", [True, False])
def test_sysctl_conf_is_read_last_and_once(module, etc, tmp_path, linked):
    conf = etc("sysctl.conf", f"{MAX}=0")
    if linked:
        (tmp_path / "etc" / "99-sysctl.conf").symlink_to(conf)
    message = module(path=etc.own, parameters={MAX: 15000})["msg"]
    assert message.count("undoes") == 1 and "sysctl.conf, line 1" in message


def test_a_pattern_touches_only_what_no_file_names(module, etc):
    etc("etc/99-all.conf", "user.*=0")
    assert module(path=etc.own, parameters={MAX: 15000})["lost"] == []
    limit = {"name": MAX, "minimum": 1, "reason": "namespaces are on"}
    result = module(path=etc.own, parameters={}, limits=[limit])
    assert result["failed"] and "99-all.conf, line 1" in result["msg"]


def test_a_limit_holds_for_the_next_boot_too(module, etc):
    etc("etc/99-stig.conf", f"{MAX}=0")
    limit = {"name": MAX, "minimum": 1, "reason": "namespaces are on"}
    module(path=etc.own, parameters={MAX: 5}, conflicts="report")
    result = module(path=etc.own, parameters={}, limits=[limit])
    assert (
        result["failed"]
        and "is 0 in the next boot and must be at least 1: namespaces are on" in result["msg"]
    )
    assert "99-stig.conf, line 1 (DISA STIG" in result["msg"]


def test_who_made_the_running_value_what_it_is_is_named(module, etc):
    etc("etc/10-stig.conf", f"{MAX}=0")
    limit = {"name": MAX, "minimum": 1, "reason": "namespaces are on"}
    message = module(path=etc.own, parameters={}, limits=[limit])["msg"]
    assert "is 0 in the running kernel" in message and "10-stig.conf, line 1 (DISA STIG" in message


def test_further_values_are_reported(module, etc):
    result = module(path=etc.own, parameters={}, report=["kernel.pid_max", "kernel.none"])
    assert result["running"] == {"kernel.pid_max": "4194304", "kernel.none": None}
