"""Role pbs_containers: scripts of Torque run for real, the hook of OpenPBS with a model of its module pbs.

Neither is a PBS server: what these call and when is as the manuals say.
"""

import json
import os
import runpy
import stat
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError

ROLE = Path(__file__).parents[2] / "roles/pbs_containers"
SETTINGS = {
    "flavour": "torque",
    "base": "/var/lib/apptainer-fleet/jobs",
    "seconds": 30,
    "torque_home": "/var/spool/torque",
    "health_interval": 300,
}


@pytest.fixture
def make(filter_plugin):
    plugin = filter_plugin("pbs_containers")

    def call(compute=True, server=False, **settings):
        files = plugin.pbs_containers_files({**SETTINGS, **settings}, compute=compute, server=server)
        return {file["path"]: file for file in files}

    call.plugin = plugin
    return call


def test_which_host_gets_what(make):
    torque = make()
    assert {path.rpartition("/")[2] for path in torque} == {
        *("job_cleanup", "prologue", "prologue.parallel", "epilogue", "epilogue.parallel"),
        "apptainer-fleet-pbs.sh",
    }
    # Torque runs none that others could write or that root can't run.
    assert {file["mode"] for path, file in torque.items() if "/mom_priv/" in path} == {"0500"}
    assert list(make(flavour="openpbs")) == ["/usr/lib/apptainer-fleet/job_cleanup"]
    server = make(compute=False, server=True, flavour="openpbs")
    assert {path.rpartition(".")[2] for path in server} == {"py", "json", "qmgr"}
    assert make(compute=False, server=True) == {}


@pytest.mark.parametrize("base", ["jobs", "/with blank", "/with'quote", "/$HOME", "/a\nb"])
def test_a_base_that_is_no_path_is_refused(make, base):
    with pytest.raises(AnsibleFilterError, match="pbs_containers_base is"):
        make(base=base)


def test_seconds_are_positive(make):
    with pytest.raises(AnsibleFilterError, match="pbs_containers_seconds"):
        make(seconds=0)


@pytest.fixture
def script(make, tmp_path, monkeypatch):
    """Run a script of mom_priv as Torque does; the clean-up is a program that writes down its arguments."""
    log = tmp_path / "log"
    recorder = tmp_path / "job_cleanup"
    recorder.write_text(
        f"import sys\nopen({str(log)!r}, 'a').write('|'.join(sys.argv[1:]) + '\\n')\nsys.exit(3)\n"
    )
    monkeypatch.setattr(make.plugin, "PROGRAM", str(recorder))

    def run(name, *arguments):
        files = make(base=str(tmp_path))
        program = tmp_path / name
        program.write_text(files[f"/var/spool/torque/mom_priv/{name}"]["content"])
        program.chmod(0o500)
        # Torque's environment for scripts is empty.
        ended = subprocess.run([program, *arguments], env={}, capture_output=True, text=True, check=False)
        said = log.read_text().splitlines() if log.exists() else []
        return ended, said

    return run


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("prologue", "prepare"),
        ("prologue.parallel", "prepare"),
        ("epilogue", "clean"),
        ("epilogue.parallel", "clean"),
    ],
)
def test_scripts_hand_job_and_user_on_and_abort_no_job(script, tmp_path, name, action):
    ended, said = script(name, "7[3].server", "root", "root", "a job", "walltime=1", "batch", "")
    assert ended.returncode == 0
    assert said == [f"{action}|--job|7[3].server|--uid|0|--base|{tmp_path}|--seconds|30"]


def test_a_user_that_is_not_known_is_no_reason_to_abort(script):
    ended, said = script("prologue", "7.server", "no-such-user")
    assert ended.returncode == 0 and said == [] and "no-such-user" in ended.stderr


def test_hostile_arguments_are_arguments(script):
    ended, said = script("epilogue", '7; touch /x "$(id)"', "root")
    assert ended.returncode == 0 and said[0].split("|")[2] == '7; touch /x "$(id)"'


@pytest.mark.skipif(os.geteuid() != 0, reason="makes folders for a user")
def test_the_real_program_makes_and_removes_the_folders_of_a_job(make, tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    program, base = tmp_path / "job_cleanup", Path("/run/test-pbs-jobs")
    monkeypatch.setattr(make.plugin, "PROGRAM", str(program))
    files = make(base=str(base))
    program.write_text(files[str(program)]["content"])
    scripts = {}
    for name in ("prologue", "epilogue"):
        scripts[name] = tmp_path / name
        scripts[name].write_text(files[f"/var/spool/torque/mom_priv/{name}"]["content"])
        scripts[name].chmod(0o500)
    try:
        subprocess.run([scripts["prologue"], "7.server", "nobody", "nogroup"], env={}, check=True)
        folder = base / "7.server/tmp"
        assert folder.stat().st_mode & 0o777 == 0o700 and folder.owner() == "nobody"
        (folder / "left").touch()
        # What the shell of the job gets.
        profile = tmp_path / "profile"
        profile.write_text(files["/etc/profile.d/apptainer-fleet-pbs.sh"]["content"])
        show = f'. {profile}; echo "$APPTAINER_TMPDIR|$APPTAINER_CACHEDIR|$APPTAINERENV_PBS_JOBID"'
        wanted = {
            "7.server": f"{base}/7.server/tmp|{base}/7.server/cache|7.server\n",
            "8.server": "||\n",
            "": "||\n",
        }
        for job, said in wanted.items():
            environment = {"PBS_JOBID": job} if job else {}
            shell = ["/bin/sh", "-c", show]
            assert (
                subprocess.run(shell, env=environment, capture_output=True, text=True, check=True).stdout
                == said
            )
        subprocess.run([scripts["epilogue"], "7.server", "nobody", "nogroup"], env={}, check=True)
        assert not (base / "7.server").exists()
    finally:
        subprocess.run(["rm", "-rf", base], check=True)


class Pbs(types.ModuleType):
    """The module pbs as a hook sees it: events, a job, a log."""

    LOG_WARNING = 4
    EXECJOB_BEGIN, EXECJOB_LAUNCH, EXECJOB_EPILOGUE, EXECJOB_END, EXECHOST_PERIODIC, OTHER = range(6)

    def __init__(self, kind, configuration):
        super().__init__("pbs")
        self.hook_config_filename = str(configuration)
        self.log, self.accepted, self.env = [], 0, {}
        self.type = kind
        self.job = types.SimpleNamespace(id="7.server", euser="root")

    def event(self):
        return self

    def accept(self):
        self.accepted += 1
        raise SystemExit(0)

    def logmsg(self, level, message):
        assert level == self.LOG_WARNING
        self.log.append(message)


@pytest.fixture
def hook(make, tmp_path, monkeypatch):
    """Run the hook for an event; programs write down their arguments."""
    log = tmp_path / "log"
    program = tmp_path / "program"
    program.write_text(
        f"#!/usr/bin/env python3\nimport sys\nopen({str(log)!r}, 'a').write('|'.join(sys.argv[1:]) + '\\n')\n"
        "print('said something')\nsys.exit(1)\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(make.plugin, "PROGRAM", str(program))
    monkeypatch.setattr(make.plugin, "HEALTH", str(program))

    def run(kind, break_it=None, **settings):
        base = str(tmp_path / "jobs")
        files = make(compute=False, server=True, flavour="openpbs", base=base, **settings)
        folder = "/etc/apptainer-fleet/pbs/apptainer_fleet"
        (tmp_path / "hook.json").write_text(files[f"{folder}.json"]["content"])
        (tmp_path / "hook.py").write_text(files[f"{folder}.py"]["content"])
        pbs = Pbs(getattr(Pbs, kind), tmp_path / "hook.json")
        if break_it:
            break_it(pbs)
        monkeypatch.setitem(sys.modules, "pbs", pbs)
        with pytest.raises(SystemExit):
            runpy.run_path(str(tmp_path / "hook.py"))
        assert pbs.accepted == 1
        return pbs, log.read_text().splitlines() if log.exists() else []

    return run


@pytest.mark.parametrize(
    ("kind", "action"),
    [("EXECJOB_BEGIN", "prepare"), ("EXECJOB_EPILOGUE", "clean"), ("EXECJOB_END", "clean")],
)
def test_the_hook_hands_job_and_user_on(hook, tmp_path, kind, action):
    pbs, said = hook(kind)
    assert said == [f"{action}|--job|7.server|--uid|0|--base|{tmp_path}/jobs|--seconds|30"]
    assert pbs.log == ["apptainer_fleet: said something"]


def test_the_hook_sets_the_environment_of_a_job_that_has_folders(hook, tmp_path):
    assert hook("EXECJOB_LAUNCH")[0].env == {}
    (tmp_path / "jobs/7.server").mkdir(parents=True)
    assert hook("EXECJOB_LAUNCH")[0].env == {
        "APPTAINER_TMPDIR": f"{tmp_path}/jobs/7.server/tmp",
        "APPTAINER_CACHEDIR": f"{tmp_path}/jobs/7.server/cache",
        "APPTAINERENV_PBS_JOBID": "7.server",
    }


def test_the_hook_runs_the_health_program_from_time_to_time(hook):
    assert hook("EXECHOST_PERIODIC")[1] == [""]
    assert hook("EXECHOST_PERIODIC", health_interval=0)[1] == [""]  # nothing more
    assert hook("OTHER")[1] == [""]


def _unknown_user(pbs):
    pbs.job.euser = "no-such-user"


def _no_configuration(pbs):
    pbs.hook_config_filename = "/no/such"


@pytest.mark.parametrize("break_it", [_unknown_user, _no_configuration])
def test_a_hook_that_fails_says_so_and_holds_up_no_job(hook, break_it):
    pbs, said = hook("EXECJOB_BEGIN", break_it)
    assert said == [] and len(pbs.log) == 1 and pbs.log[0].startswith("apptainer_fleet: ")


def test_the_commands_for_qmgr(make):
    files = make(compute=False, server=True, flavour="openpbs")
    lines = files["/etc/apptainer-fleet/pbs/apptainer_fleet.qmgr"]["content"].splitlines()
    assert (
        lines[0] == "create hook apptainer_fleet" and lines[-1] == "set hook apptainer_fleet enabled = True"
    )
    assert "set hook apptainer_fleet freq = 300" in lines and "set hook apptainer_fleet alarm = 90" in lines
    without = make(compute=False, server=True, flavour="openpbs", health_interval=0)
    assert "freq" not in without["/etc/apptainer-fleet/pbs/apptainer_fleet.qmgr"]["content"]
    assert json.loads(without["/etc/apptainer-fleet/pbs/apptainer_fleet.json"]["content"])["health"] == []


def test_the_clean_up_is_a_program_by_itself(make, tmp_path):
    program = tmp_path / "job_cleanup"
    program.write_text(make()["/usr/lib/apptainer-fleet/job_cleanup"]["content"])
    ended = subprocess.run(
        [sys.executable, "-IS", program, "--help"], capture_output=True, text=True, check=False, env={}
    )
    assert ended.returncode == 0 and "--job" in ended.stdout
    assert stat.S_ISREG(program.stat().st_mode)


def test_defaults_are_those_of_the_specification():
    specification = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())
    options = specification["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    assert {name: option["default"] for name, option in options.items()} == defaults
