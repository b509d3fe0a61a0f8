"""From node classes to the files of Slurm."""

import dataclasses

import pytest

from module_utils import slurm_conf
from module_utils.slurm_conf import NodeClass, Partition, SlurmConfError

HARDWARE = {
    "CPUs": 4,
    "Boards": 1,
    "SocketsPerBoard": 1,
    "CoresPerSocket": 4,
    "ThreadsPerCore": 1,
    "RealMemory": 16000,
}
FULL = {"version": 2, "controllers": ["cpu", "cpuset", "memory", "pids"]}
NONE = {"version": 0, "controllers": []}
CONFIGLESS = {"SlurmctldParameters": ["enable_configless"]}

CPU = NodeClass("cpu", "c[1-9]", HARDWARE, FULL, {}, [])
GPU = NodeClass(
    "gpu",
    "g[1-2]",
    HARDWARE,
    FULL,
    {"Weight": 10, "realmemory": 8000},
    [{"name": "gpu", "type": "h100", "count": 4, "file": "/dev/nvidia[0-3]"}, {"name": "nic", "count": 1}],
)


def without_header(text: str) -> list[str]:
    assert text.startswith(slurm_conf.HEADER)
    return text[len(slurm_conf.HEADER) :].splitlines()


def test_slurm_conf_has_one_line_per_class_and_partition():
    parameters = {
        "ClusterName": "lab",
        **CONFIGLESS,
        "DebugFlags": ["gres", "steps"],
        "DisableRootJobs": True,
    }
    partition = Partition("main", "ALL", {"Default": True, "MaxTime": "1-00:00:00"})
    assert without_header(slurm_conf.render_slurm_conf(parameters, [CPU, GPU], [partition])) == [
        "GresTypes=gpu,nic",
        "ClusterName=lab",
        "SlurmctldParameters=enable_configless",
        "DebugFlags=gres,steps",
        "DisableRootJobs=YES",
        "NodeName=c[1-9] CPUs=4 Boards=1 SocketsPerBoard=1 CoresPerSocket=4 ThreadsPerCore=1"
        " RealMemory=15872",
        "NodeName=g[1-2] CPUs=4 Boards=1 SocketsPerBoard=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=8000"
        " Gres=gpu:h100:4,nic:1 Weight=10",
        "PartitionName=main Nodes=ALL Default=YES MaxTime=1-00:00:00",
    ]


def test_gres_conf():
    assert without_header(slurm_conf.render_gres_conf([CPU, GPU])) == [
        "NodeName=g[1-2] Name=gpu Type=h100 File=/dev/nvidia[0-3]",
        "NodeName=g[1-2] Name=nic Count=1",
    ]


@pytest.mark.parametrize("key", ["NodeName", "partitionname", "Include", "NodeSet"])
def test_free_parameters_make_no_lines_of_other_kinds(key):
    with pytest.raises(SlurmConfError, match=f"slurm_parameters has {key}"):
        slurm_conf.render_slurm_conf({**CONFIGLESS, key: "x"}, [], [])


@pytest.mark.parametrize("parameters", [{}, {"slurmctldparameters": ["idle_on_node_suspend"]}])
def test_configless_mode_can_not_be_taken_away(parameters):
    with pytest.raises(SlurmConfError, match="must have enable_configless"):
        slurm_conf.render_slurm_conf(parameters, [], [])


@pytest.mark.parametrize("value", ["", "1\nNodeName=x", "x # y", 'a"b', "a\\", "\u2028", []])
def test_a_value_never_ends_its_line(value):
    with pytest.raises(SlurmConfError, match="slurm_parameters: Epilog is"):
        slurm_conf.render_slurm_conf({**CONFIGLESS, "Epilog": value}, [], [])


@pytest.mark.parametrize("key", ["", "Max Time", "A=B", "1x"])
def test_a_key_is_one_word(key):
    with pytest.raises(SlurmConfError, match="slurm_parameters has the key"):
        slurm_conf.render_slurm_conf({**CONFIGLESS, key: 1}, [], [])


def test_layers_are_merged_as_slurm_reads_keys():
    assert slurm_conf.merge(
        {"ReturnToService": 1, "MailProg": "x"}, {"returntoservice": 2, "MailProg": None}
    ) == {"ReturnToService": 2}


@pytest.mark.parametrize(
    ("cgroup", "plugin"),
    [
        (FULL, "autodetect"),
        ({"version": 1, "controllers": ["cpuset", "devices", "freezer", "memory"]}, "autodetect"),
        ({"version": 1, "controllers": ["cpuset", "devices", "memory"]}, "disabled"),
        ({"version": 2, "controllers": ["cpu", "memory"]}, "disabled"),
        (NONE, "disabled"),
    ],
)
def test_cgroup_plugin_is_what_the_nodes_can(cgroup, plugin):
    assert slurm_conf.cgroup_plugin([dataclasses.replace(CPU, cgroup=cgroup)]) == plugin


def test_classes_that_disagree_are_named_with_the_variable():
    with pytest.raises(SlurmConfError) as error:
        slurm_conf.cgroup_plugin([CPU, dataclasses.replace(GPU, cgroup=NONE)])
    for words in (
        "cpu (c[1-9]) has cgroup v2 with cpu, cpuset",
        "gpu (g[1-2]) has no controllers",
        "slurm_cgroup_plugin",
    ):
        assert words in str(error.value)


def test_a_wanted_plugin_needs_no_agreement():
    assert slurm_conf.cgroup_plugin([CPU, dataclasses.replace(GPU, cgroup=NONE)], "disabled") == "disabled"


def test_plugins_belong_together():
    assert slurm_conf.plugin_parameters("disabled")["ProctrackType"] == "proctrack/linuxproc"
    assert slurm_conf.plugin_parameters("autodetect") == {
        "ProctrackType": "proctrack/cgroup",
        "TaskPlugin": ["task/cgroup", "task/affinity"],
        "JobAcctGatherType": "jobacct_gather/cgroup",
    }


def test_cgroup_conf_constrains_only_where_there_are_cgroups():
    assert without_header(slurm_conf.render_cgroup_conf("disabled", {})) == ["CgroupPlugin=disabled"]
    lines = without_header(
        slurm_conf.render_cgroup_conf("autodetect", {"constrainswapspace": False, "AllowedRAMSpace": 98})
    )
    assert lines == [
        "CgroupPlugin=autodetect",
        "ConstrainCores=YES",
        "ConstrainDevices=YES",
        "ConstrainRAMSpace=YES",
        "ConstrainSwapSpace=NO",
        "AllowedRAMSpace=98",
    ]


@pytest.mark.parametrize(
    ("parameters", "port"),
    [({}, 6817), ({"SlurmctldPort": 7000}, 7000), ({"slurmctldport": "7000-7003"}, 7000)],
)
def test_slurmctld_is_asked_at_the_first_of_its_ports(parameters, port):
    assert slurm_conf.slurmctld_port(parameters) == port


@pytest.mark.parametrize("value", ["", "all", 0, 65536, "7000,7001", True])
def test_what_is_no_port_is_refused(value):
    with pytest.raises(SlurmConfError, match="SlurmctldPort"):
        slurm_conf.slurmctld_port({"SLURMCTLDPORT": value})


def test_settings_that_need_a_restart_are_found_in_a_file():
    assert slurm_conf.fixed_settings("#SlurmdPort=1\nSLURMDPORT = 2\nMaxJobCount=3\nNodeName=a Port=4\n") == {
        "slurmdport": "2"
    }


def test_the_environment_of_slurmd_differs_when_it_needs_a_restart():
    def render(**more):
        return slurm_conf.render_slurmd_environment(["head"], {"SlurmctldHost": "head", **more})

    assert render() == render(MaxJobCount=4711)
    for more in ({"SlurmdPort": 7001}, {"authtype": "auth/slurm"}, {"SlurmctldPort": 7000}):
        assert render(**more) != render()
