"""What Slurm is given for container jobs, and what is refused before any node is touched."""

from __future__ import annotations

import base64
import os
import subprocess
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError

from module_utils import job_cleanup, slurm_containers

Error = slurm_containers.SlurmContainersError
SETTINGS = {
    "native": True,
    "environment": {},
    "openmp": True,
    "mpi": "transport",
    "hooks": True,
    "jobs_folder": "/jobs",
    "hook_seconds": 30,
    "python": "/usr/bin/python3",
    "oci": False,
    "oci_parameters": {},
    "slurm_version": "",
    "spank": [],
    "apptainer_version": "1.4.5",
    "site_folder": "",
}


@pytest.fixture
def filters(filter_plugin):
    return filter_plugin("slurm_containers")


# --- oci.conf ---


def test_oci_conf_runs_apptainer_with_the_environment_of_the_task():
    lines = slurm_containers.render_oci_conf({}).splitlines()
    assert 'RunTimeRun="/usr/lib/apptainer-fleet/oci_run %e %r %@"' in lines
    assert "CreateEnvFile=true" in lines and "IgnoreFileConfigJson=true" in lines


def test_parameters_of_the_site_win_whatever_their_case():
    text = slurm_containers.render_oci_conf(
        {"runtimerun": "crun %b", "FileDebug": "debug", "EnvExclude": None}
    )
    assert 'RunTimeRun="crun %b"\n' in text and "FileDebug=debug\n" in text
    assert "oci_run" not in text and "\nEnvExclude" not in text


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"RunTimeRnu": "x"}, "has no RunTimeRnu"),
        ({"RunTimeRun": ""}, "must not be empty"),
        ({"RunTimeRun": "a\nb"}, "must not be empty"),
        ({"RunTimeRun": "a # b"}, "must not be empty"),
    ],
)
def test_what_would_keep_slurmd_from_starting_is_refused(parameters, said):
    with pytest.raises(Error, match=said):
        slurm_containers.render_oci_conf(parameters)


@pytest.mark.parametrize("release", ["22.05.8", "21.08"])
def test_an_old_slurm_is_refused(release):
    with pytest.raises(Error, match=r"23\.02 can"):
        slurm_containers.render_oci_conf({}, release)


@pytest.mark.parametrize("release", ["", "23.02", "24.11.5", "26.05"])
def test_other_releases_are_taken(release):
    assert slurm_containers.render_oci_conf({}, release)


@pytest.fixture
def oci_run(program):
    return program("roles/slurm_containers/files/oci_run.py")


@pytest.mark.parametrize(
    ("config", "root"), [('{"root": {"path": "fs"}}', "fs"), ("{}", "rootfs"), ('{"root": null}', "rootfs")]
)
def test_of_a_bundle_its_root_is_run(oci_run, tmp_path, config, root):
    (tmp_path / "config.json").write_text(config)
    assert oci_run.root_of(str(tmp_path)) == str(tmp_path / root)


def test_what_is_no_bundle_is_run_as_it_is(oci_run, tmp_path):
    assert oci_run.root_of(str(tmp_path)) == str(tmp_path)
    assert oci_run.root_of("/images/a.sif") == "/images/a.sif"


def test_variables_are_read_whatever_is_in_them(oci_run):
    assert oci_run.read_environment(b"A=1\0B=x\ny=z\0C=\0=hidden\0rest\0") == {
        b"A": b"1",
        b"B": b"x\ny=z",
        b"C": b"",
    }


# --- plugstack.conf ---


def test_plugins_in_their_order_with_their_arguments():
    text = slurm_containers.render_plugstack_conf(
        [
            {"src": "files/b.so", "required": False, "arguments": ["x=1", "y"]},
            {"path": "/usr/lib64/slurm/a.so", "required": True},
        ],
        "/lib/spank",
    )
    assert text.splitlines()[1:] == ["optional /lib/spank/b.so x=1 y", "required /usr/lib64/slurm/a.so"]


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        ({}, "either src"),
        ({"src": "a.so", "path": "/a.so"}, "either src"),
        ({"path": "a.so"}, "either src"),
        ({"path": "/a.py"}, "either src"),
        ({"path": "/a b.so"}, "either src"),
        ({"path": "/a.so", "arguments": ["a b"]}, "one word"),
        ({"path": "/a.so", "arguments": [""]}, "one word"),
        ({"path": "/a.so", "arguments": ["a#b"]}, "one word"),
    ],
)
def test_plugins_that_can_not_be_are_refused(plugin, said):
    with pytest.raises(Error, match=said):
        slurm_containers.check_plugins([plugin])


def test_two_plugins_with_one_name_are_refused():
    with pytest.raises(Error, match=r"two plugins would be /plugins/a\.so"):
        slurm_containers.check_plugins([{"src": "x/a.so"}, {"src": "y/a.so"}])


# --- TaskProlog: run as Slurm runs it ---


@pytest.fixture
def task_prolog(tmp_path):
    """Return what runs the TaskProlog for job 7 and returns its exports."""
    base = tmp_path / "jobs"
    (base / "7/tmp").mkdir(parents=True)
    (base / "7/cache").mkdir()

    def run(given=None, **settings):
        wanted = {"native": True, "hooks": True, "environment": {}, "mpi": {}, "openmp": True, **settings}
        script = tmp_path / "task_prolog"
        script.write_text(slurm_containers.render_task_prolog(base=str(base), **wanted))
        environment = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "c1", **(given or {})}
        ended = subprocess.run(
            ["/bin/sh", script], env=environment, capture_output=True, text=True, check=True
        )
        assert ended.stderr == ""
        exports = [line.removeprefix("export ").partition("=") for line in ended.stdout.splitlines()]
        return {name: value for name, _, value in exports}

    run.base = base
    return run


def test_a_task_is_told_of_the_folders_of_its_job(task_prolog):
    said, own = task_prolog(), f"{task_prolog.base}/7"
    assert (said["APPTAINER_TMPDIR"], said["APPTAINER_CACHEDIR"]) == (f"{own}/tmp", f"{own}/cache")
    assert said["APPTAINERENV_SLURM_JOB_ID"] == "7"


def test_what_the_user_has_set_stays_and_what_another_job_left_does_not(task_prolog):
    said = task_prolog({"APPTAINER_TMPDIR": "/mine", "APPTAINER_CACHEDIR": f"{task_prolog.base}/6/cache"})
    assert "APPTAINER_TMPDIR" not in said
    assert said["APPTAINER_CACHEDIR"] == f"{task_prolog.base}/7/cache"


@pytest.mark.parametrize("trouble", ["missing", "link"])
def test_without_safe_folders_a_task_is_told_so(task_prolog, trouble):
    tmp = task_prolog.base / "7/tmp"
    tmp.rmdir()
    if trouble == "link":
        tmp.symlink_to(os.environ["HOME"])
    said = task_prolog()
    assert "APPTAINER_TMPDIR" not in said and "APPTAINER_CACHEDIR" not in said
    assert any(line.startswith("print no private folders") for line in said)


def test_threads_are_those_of_the_task(task_prolog):
    said = task_prolog({"SLURM_CPUS_PER_TASK": "4"})
    assert said["OMP_NUM_THREADS"] == said["APPTAINERENV_OMP_NUM_THREADS"] == "4"
    assert "OMP_NUM_THREADS" not in task_prolog()
    assert "OMP_NUM_THREADS" not in task_prolog({"SLURM_CPUS_PER_TASK": "4", "OMP_NUM_THREADS": "2"})
    assert "OMP_NUM_THREADS" not in task_prolog({"SLURM_CPUS_PER_TASK": "4"}, openmp=False)
    # Set here for the batch script, whose steps have other numbers.
    inherited = {"OMP_NUM_THREADS": "4", "FLEET_OMP_NUM_THREADS": "4", "SLURM_CPUS_PER_TASK": "2"}
    assert task_prolog(inherited)["OMP_NUM_THREADS"] == "2"


def test_only_ranks_that_share_a_node_are_told_how_to(task_prolog):
    mpi = {"UCX_TLS": "^cma"}
    together = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}
    assert task_prolog(together, mpi=mpi)["UCX_TLS"] == "^cma"
    assert "UCX_TLS" not in task_prolog({**together, "UCX_TLS": "rc"}, mpi=mpi)
    assert "UCX_TLS" not in task_prolog({**together, "SLURM_STEP_NUM_TASKS": "2"}, mpi=mpi)
    assert "UCX_TLS" not in task_prolog(mpi=mpi)


def test_the_environment_of_the_site_comes_as_it_is(task_prolog):
    value = "/a:/b $HOME `id` 'x' \"y\" \\n"
    assert task_prolog(environment={"SITE": value})["SITE"] == value
    assert "SITE" not in task_prolog({"SITE": ""}, environment={"SITE": value})
    assert "SITE" not in task_prolog(environment={"SITE": value}, native=False)


def test_without_hooks_there_is_no_word_of_folders(task_prolog):
    assert task_prolog(hooks=False) == {}


@pytest.mark.parametrize("environment", [{"A B": "1"}, {"1A": "x"}, {"A": "x\ny"}, {"A;id": "x"}])
def test_what_is_no_environment_is_refused(environment):
    with pytest.raises(Error, match="is no variable"):
        slurm_containers.check_environment(environment)


def test_sharens_needs_a_release_that_has_it():
    assert slurm_containers.mpi_environment("sharens", "1.3.0") == {"APPTAINER_SHARENS": "1"}
    with pytest.raises(Error, match=r"1\.2\.5 does not have"):
        slurm_containers.mpi_environment("sharens", "1.2.5")
    assert slurm_containers.mpi_environment("none", "1.2.5") == {}


@pytest.mark.parametrize("folder", ["jobs", "/", "/tmp", "/tmp/", "/a/../b"])
def test_folders_that_are_not_for_jobs_alone_are_refused(folder):
    with pytest.raises(Error, match="for jobs alone"):
        slurm_containers.check_jobs_folder(folder)


# --- The filters ---


def test_hooks_are_programs_without_a_folder(filters):
    wanted = filters.fragment(SETTINGS)
    assert wanted["parameters"] == {
        "Prolog": ["apptainer_prolog"],
        "Epilog": ["apptainer_epilog"],
        "PrologEpilogTimeout": 60,
        "TaskProlog": "/usr/lib/apptainer-fleet/task_prolog",
    }
    assert [(file["name"], file["mode"]) for file in wanted["files"]] == [
        ("apptainer_prolog", "0755"),
        ("apptainer_epilog", "0755"),
    ]


@pytest.mark.parametrize(("name", "action"), [("apptainer_prolog", "prepare"), ("apptainer_epilog", "clean")])
def test_a_hook_runs_as_slurm_runs_it(filters, tmp_path, name, action):
    """Without a PATH; exit code 0 whatever happens, here that the folder is no folder for it."""
    settings = {**SETTINGS, "jobs_folder": str(tmp_path / "jobs")}
    content = next(file["content"] for file in filters.fragment(settings)["files"] if file["name"] == name)
    assert content.startswith("#!/usr/bin/python3 -IS\n") and f'program("{action}"' in content
    assert Path(job_cleanup.__file__).read_text() in content
    hook = tmp_path / name
    hook.write_text(content)
    hook.chmod(0o755)
    (tmp_path / "jobs").symlink_to("/")
    ended = subprocess.run(
        [hook], env={"SLURM_JOB_ID": "7", "SLURM_JOB_UID": "54321"}, capture_output=True, check=False
    )
    assert ended.returncode == 0 and b"symbolic link" in ended.stderr


@pytest.mark.parametrize(
    ("switches", "names", "parameters"),
    [
        ({"hooks": False, "native": False}, [], []),
        ({"hooks": False}, [], ["TaskProlog"]),
        ({"hooks": False, "native": False, "oci": True}, ["oci.conf"], []),
        ({"hooks": False, "native": False, "spank": [{"path": "/a.so"}]}, ["plugstack.conf"], []),
    ],
)
def test_each_flavour_has_a_switch(filters, switches, names, parameters):
    wanted = filters.fragment({**SETTINGS, **switches})
    assert [file["name"] for file in wanted.get("files", [])] == names
    assert list(wanted.get("parameters", [])) == parameters


def test_a_plugin_is_put_on_the_nodes_as_it_is(filters, tmp_path):
    (tmp_path / "a.so").write_bytes(b"\x7fELF\0\xff")
    settings = {**SETTINGS, "native": False, "hooks": False, "spank": [{"src": str(tmp_path / "a.so")}]}
    (file,) = filters.node_files(settings)
    assert file["path"] == "/usr/lib/apptainer-fleet/spank/a.so" and file["encoding"] == "base64"
    assert base64.b64decode(file["content"]) == b"\x7fELF\0\xff"
    assert filters.node_files({**settings, "spank": []}) == []
    assert "/usr/lib/apptainer-fleet/spank/*.so" in filters.absent(SETTINGS)


def test_a_plugin_that_is_not_there_is_named(filters):
    with pytest.raises(AnsibleFilterError, match=r"slurm_containers_spank: src /none/a\.so: No such file"):
        filters.node_files({**SETTINGS, "spank": [{"src": "/none/a.so"}]})


def test_what_is_wrong_is_said_by_the_filter(filters):
    for settings in ({"oci": True, "oci_parameters": {"X": 1}}, {"spank": [{}]}):
        with pytest.raises(AnsibleFilterError, match="slurm_containers_"):
            filters.fragment({**SETTINGS, **settings})
    with pytest.raises(AnsibleFilterError, match="is no variable"):
        filters.node_files({**SETTINGS, "environment": {"A B": 1}})


def test_a_site_with_its_own_slurm_gets_files_and_lines(filters):
    settings = {**SETTINGS, "site_folder": "/etc/slurm", "oci": True, "spank": [{"path": "/a.so"}]}
    files = {file["path"]: file["content"] for file in filters.node_files(settings)}
    assert "Prolog=apptainer_prolog\n" in files["/etc/slurm/apptainer-fleet.conf"]
    assert {"/etc/slurm/oci.conf", "/etc/slurm/apptainer_epilog"} < set(files)
    assert "/etc/slurm/plugstack.conf.d/apptainer-fleet.conf" in files
    # These may be the site's own.
    assert not {"/etc/slurm/slurm.conf", "/etc/slurm/plugstack.conf"} & set(files)
    assert "/etc/slurm/oci.conf" not in filters.absent(settings)
