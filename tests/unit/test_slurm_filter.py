"""From the inventory to node classes and files."""

import pytest
from ansible.errors import AnsibleFilterError

HARDWARE = {"CPUs": 4, "RealMemory": 16000}
NO_CGROUP = {"version": 0, "controllers": []}
PARAMETERS = [{"ClusterName": "lab", "SlurmctldParameters": ["enable_configless"]}]
MAIN = [{"name": "main", "nodes": "ALL", "parameters": {"Default": True}}]


@pytest.fixture
def plugin(filter_plugin):
    return filter_plugin("slurm")


def classes(plugin, hostvars, active=None, tried=None):
    hosts = list(hostvars)
    return plugin.slurm_node_classes(hosts, hostvars, hosts if active is None else active, tried or hosts)


def files(plugin, node_classes, partitions=MAIN, groups=None, **more):
    gathered = [{"item": item, "hardware": HARDWARE, "cgroup": NO_CGROUP} for item in node_classes]
    made = plugin.slurm_files(
        gathered, parameters=PARAMETERS, partitions=partitions, groups=groups or {}, **more
    )
    return {file["path"].rpartition("/")[2]: file["content"] for file in made}


def test_classes_are_folded_and_sorted(plugin):
    gpu = {"slurm_node_class": "gpu", "slurm_gres": [{"name": "nic", "count": 2}]}
    found = classes(plugin, {"g2": gpu, "c3": {}, "c1.example.org": {}, "g1": gpu, "c2": {}})
    assert [(item["name"], item["nodes"], item["representative"]) for item in found] == [
        ("compute", "c[1-3]", "c3"),
        ("gpu", "g[1-2]", "g2"),
    ]
    assert found[1]["gres"] == [{"name": "nic", "count": 2}]


def test_a_silent_node_does_not_speak_for_its_class(plugin):
    assert classes(plugin, {"c1": {}, "c2": {}}, active=["c2"])[0]["representative"] == "c2"


def test_in_a_run_for_others_a_node_that_was_not_tried_does(plugin):
    assert (
        classes(plugin, {"c1": {}, "c2": {}}, active=["head"], tried=["head", "c1"])[0]["representative"]
        == "c2"
    )


def test_a_class_without_an_answer_is_named(plugin):
    with pytest.raises(
        AnsibleFilterError, match=r"none of the 2 nodes of slurm_node_class compute .* c\[1-2\]"
    ):
        classes(plugin, {"c1": {}, "c2": {}}, active=["head"], tried=["head", "c1", "c2"])


@pytest.mark.parametrize(
    "variable", [{"slurm_node_parameters": {"Weight": 2}}, {"slurm_gres": [{"name": "nic", "count": 1}]}]
)
def test_nodes_of_one_class_are_equal(plugin, variable):
    with pytest.raises(
        AnsibleFilterError, match="c1 and c2 are both of slurm_node_class compute, but differ"
    ):
        classes(plugin, {"c1": {}, "c2": variable})


@pytest.mark.parametrize("host", ["10.1.2.3", "1c", "c_1!", ""])
def test_what_is_no_name_is_refused(plugin, host):
    with pytest.raises(AnsibleFilterError, match="ansible_host"):
        classes(plugin, {host: {}})


def test_two_hosts_with_one_name_are_refused(plugin):
    with pytest.raises(AnsibleFilterError, match=r"c1\.a and c1\.b are both c1"):
        classes(plugin, {"c1.a": {}, "c1.b": {}})


@pytest.mark.parametrize(
    ("gres", "message"),
    [
        ({"count": 1}, "needs a name"),
        ({"name": "gpu"}, "needs a count"),
        ({"name": "gpu", "count": 0}, "needs a count"),
        ({"name": "gpu", "detect": "voodoo"}, "detect of gpu is one of nvidia, amd"),
        ({"name": "gpu", "detect": "nvidia", "count": 2}, "gpu has detect, so leave count and file out"),
        ({"name": "gpu", "count": 1}, "gpu needs the device files"),
        (
            {"name": "gpu", "count": 4, "file": "/dev/nvidia[0-2]"},
            r"count 4, but file /dev/nvidia\[0-2\] names 3",
        ),
    ],
)
def test_bad_gres_names_the_class(plugin, gres, message):
    with pytest.raises(AnsibleFilterError, match=f"slurm_gres of class compute: .*{message}"):
        classes(plugin, {"c1": {"slurm_gres": [gres]}})


def test_files_of_a_small_cluster(plugin):
    made = files(plugin, classes(plugin, {"c1": {}, "c2": {}}))
    assert list(made)[-1] == "slurm.conf"
    assert made["cgroup.conf"].endswith("CgroupPlugin=disabled\n")
    assert "NodeName=c[1-2] CPUs=4 RealMemory=15872\n" in made["slurm.conf"]
    assert made["slurm.conf"].endswith("PartitionName=main Nodes=ALL Default=YES\n")


def test_partitions_take_hostlists_and_groups(plugin):
    found = classes(plugin, {"c1": {}, "c2.example.org": {}, "c3": {}, "g1": {}})
    partitions = [{"name": "batch", "nodes": "@small,g1"}, {"name": "one", "nodes": "c[1-3]!c2"}]
    groups = {"small": ["head", "c1", "c2.example.org"], "addresses": ["10.0.0.1"]}
    text = files(plugin, found, partitions, groups)["slurm.conf"]
    assert "PartitionName=batch Nodes=c[1-2],g1\n" in text
    with pytest.raises(AnsibleFilterError):
        files(plugin, found, [{"name": "one", "nodes": "c[1-"}])


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        ({"name": "p", "nodes": "c[1-3]"}, r"p has c3, not in group slurm_compute, which is c\[1-2\]"),
        ({"name": "p", "nodes": "c[1-"}, "nodes of p can't be read"),
        ({"name": "p", "nodes": "@nobody"}, "names no node"),
        ({"name": "p p", "nodes": "ALL"}, "not a name of a partition"),
        ({"name": "p", "nodes": "ALL", "parameters": {"Max Time": 1}}, "slurm_partitions: p has the key"),
    ],
)
def test_bad_partitions_are_named(plugin, partition, message):
    with pytest.raises(AnsibleFilterError, match=message):
        files(plugin, classes(plugin, {"c1": {}, "c2": {}}), [partition])


def test_five_thousand_nodes_in_four_classes_are_few_lines(plugin):
    kinds = {"compute": 4000, "fat": 500, "gpu": 400, "tpu": 100}
    hostvars = {
        f"{kind}{i:04}": {"slurm_node_class": kind} for kind, count in kinds.items() for i in range(count)
    }
    text = files(plugin, classes(plugin, hostvars))["slurm.conf"]
    lines = [line for line in text.splitlines() if line.startswith(("NodeName", "NodeSet", "PartitionName"))]
    assert len(hostvars) == 5000 and len(lines) == 5
    assert "NodeName=compute[0000-3999] " in text
    assert all(len(line) < 200 for line in lines)


def test_partitions_of_whole_groups_are_node_sets(plugin):
    hostvars = {host: {} for host in ("c1", "c7", "c9", "gpu")}
    groups = {"odd": ["c1", "c7", "c9"], "gpu": ["gpu"], "mine": ["c1", "head"]}
    partitions = [
        {"name": "all", "nodes": "@odd, @mine"},
        {"name": "less", "nodes": "@odd!c9"},
        {"name": "gpu", "nodes": "@gpu"},
    ]
    text = files(plugin, classes(plugin, hostvars), partitions, groups)["slurm.conf"]
    lines = [line for line in text.splitlines() if line.startswith(("NodeSet", "PartitionName"))]
    assert lines == [
        "NodeSet=odd Nodes=c[1,7,9]",
        "NodeSet=mine Nodes=c1",
        "PartitionName=all Nodes=odd,mine",
        "PartitionName=less Nodes=c[1,7]",
        "PartitionName=gpu Nodes=gpu",
    ]


def test_devices_are_counted_on_the_node_that_was_asked(plugin):
    gres = [{"name": "gpu", "type": "h100", "detect": "nvidia"}, {"name": "tpu", "detect": "accel"}]
    (item,) = classes(plugin, {"g1": {"slurm_gres": gres}, "g2": {"slurm_gres": gres}})
    devices = {"nvidia": ["/dev/nvidia0", "/dev/nvidia1"], "accel": ["/dev/accel0"], "amd": [], "intel": []}
    seen = {"item": item, "hardware": HARDWARE, "cgroup": NO_CGROUP, "devices": devices}
    made = plugin.slurm_files([seen], parameters=PARAMETERS, partitions=MAIN, groups={})
    content = {file["path"].rpartition("/")[2]: file["content"] for file in made}
    assert content["gres.conf"].splitlines()[1:] == [
        "NodeName=g[1-2] Name=gpu Type=h100 File=/dev/nvidia[0-1] Flags=nvidia_gpu_env",
        "NodeName=g[1-2] Name=tpu File=/dev/accel0",
    ]
    assert "Gres=gpu:h100:2,tpu:1" in content["slurm.conf"]
    devices["nvidia"] = []
    with pytest.raises(AnsibleFilterError, match="slurm_gres of class compute: g1 has no device of nvidia"):
        plugin.slurm_files([seen], parameters=PARAMETERS, partitions=MAIN, groups={})


def test_pmix_is_the_default_where_all_classes_have_it(plugin):
    (item,) = classes(plugin, {"c1": {}})
    seen = {"item": item, "hardware": HARDWARE, "cgroup": NO_CGROUP}
    for asked, wanted in (([True], True), ([True, False], False)):
        gathered = [{**seen, "pmix": pmix} for pmix in asked]
        made = plugin.slurm_files(gathered, parameters=PARAMETERS, partitions=MAIN, groups={})
        assert ("MpiDefault=pmix\n" in made[-1]["content"]) is wanted


def test_the_topology_is_folded_from_the_switches_of_nodes(plugin):
    hostvars = {f"c{i}": {"slurm_switch": f"s{i % 2}"} for i in range(1, 5)}
    topology = plugin.slurm_topology_conf(list(hostvars), hostvars, [])
    assert "SwitchName=s0 Nodes=c[2,4]\nSwitchName=s1 Nodes=c[1,3]\nSwitchName=root" in topology
    made = files(plugin, classes(plugin, hostvars), topology=topology)
    assert made["topology.conf"] == topology
    assert "TopologyPlugin=topology/tree\n" in made["slurm.conf"]


def test_without_switches_there_is_no_topology(plugin):
    assert plugin.slurm_topology_conf(["c1"], {"c1": {}}, []) == ""
    assert "Topology" not in files(plugin, classes(plugin, {"c1": {}}))["slurm.conf"]


def test_some_nodes_without_a_switch_are_named(plugin):
    hostvars = {"c1": {"slurm_switch": "s1"}, "c2": {}, "c3": {"slurm_switch": ""}}
    with pytest.raises(AnsibleFilterError, match=r"slurm_switch is not set for c\[2-3\]"):
        plugin.slurm_topology_conf(list(hostvars), hostvars, [])


def test_fragments_of_other_roles_lose_to_the_site(plugin, tmp_path, monkeypatch):
    (tmp_path / "some_role" / "files").mkdir(parents=True)
    (tmp_path / "some_role" / "files" / "prolog.sh").write_text("#!/bin/sh\n")
    monkeypatch.setattr(plugin, "ROLES", tmp_path)
    fragments = {
        "__some_role_slurm_fragment": {
            "parameters": {"Prolog": ["prolog"], "MpiDefault": "pmix"},
            "files": [{"name": "prolog", "src": "prolog.sh", "mode": "0755"}],
        },
        "slurm_extra_files": {"files": [{"name": "mpi.conf", "content": "PMIxDebug=1\n"}]},
    }
    gathered = [
        {"item": item, "hardware": HARDWARE, "cgroup": NO_CGROUP} for item in classes(plugin, {"c1": {}})
    ]
    layers = [*PARAMETERS, {"mpidefault": "pmi2"}]
    made = plugin.slurm_files(gathered, parameters=layers, partitions=MAIN, groups={}, fragments=fragments)
    assert [(file["path"], file.get("mode")) for file in made[:2]] == [
        ("/etc/slurm/mpi.conf", "0644"),
        ("/etc/slurm/prolog", "0755"),
    ]
    assert made[1]["content"] == "#!/bin/sh\n" and made[-1]["path"] == "/etc/slurm/slurm.conf"
    assert "\nProlog=prolog\n" in made[-1]["content"] and "MpiDefault=pmi2\n" in made[-1]["content"]
    fragments["__some_role_slurm_fragment"]["files"][0]["src"] = "none.sh"
    with pytest.raises(
        AnsibleFilterError, match=r"__some_role_slurm_fragment: src of the file prolog: .*none\.sh"
    ):
        plugin.slurm_files(gathered, parameters=layers, partitions=MAIN, groups={}, fragments=fragments)


def test_a_site_that_writes_slurm_conf_itself_gets_the_lines(plugin):
    assert plugin.slurm_conf_lines({"Prolog": ["a", "b"]}) == "Prolog=a\nProlog=b\n"
    with pytest.raises(AnsibleFilterError, match="Prolog"):
        plugin.slurm_conf_lines({"Prolog": "a#b"})


def test_slurmd_asks_where_slurmctld_listens(plugin):
    text = plugin.slurmd_environment([{"SlurmctldPort": 6817}, {"slurmctldport": "6900-6910"}], ["head"])
    assert text.endswith('\nSLURMD_OPTIONS="--conf-server head:6900"\n')
    with pytest.raises(AnsibleFilterError, match="SlurmctldPort is 'all'"):
        plugin.slurmd_environment([{"SlurmctldPort": "all"}], ["head"])


def test_every_controller_is_asked_for_the_configuration(plugin):
    text = plugin.slurmd_environment([{"SlurmctldPort": 6900}], ["head", "head2"], "SACKD_OPTIONS")
    assert text.endswith('\nSACKD_OPTIONS="--conf-server head:6900,head2:6900"\n')
    assert plugin.slurm_conf_server([{}], ["head", "head2"]) == "head:6817,head2:6817"
    with pytest.raises(AnsibleFilterError, match="SlurmctldPort"):
        plugin.slurm_conf_server([{"SlurmctldPort": 0}], ["head"])


def test_slurmdbd_conf_has_the_password_last_and_errors_have_none(plugin):
    place = {"host": "db", "database_host": "localhost", "database": "acct"}
    secret, wrong, none = {"password": "Kx7!"}, {"password": "Kx7#"}, {"password": ""}
    text = plugin.slurmdbd_conf({"PurgeJobAfter": "12month"}, **secret, **place)
    assert text.splitlines()[-2:] == ["PurgeJobAfter=12month", "StoragePass=Kx7!"]
    assert "StoragePass" not in plugin.slurmdbd_conf({}, **none, **place)
    with pytest.raises(AnsibleFilterError, match="no # ") as error:
        plugin.slurmdbd_conf({}, **wrong, **place)
    assert "Kx7" not in str(error.value)
    with pytest.raises(AnsibleFilterError, match="storagepass: set slurm_accounting_password instead"):
        plugin.slurmdbd_conf({"storagepass": "x"}, **none, **place)
    with pytest.raises(AnsibleFilterError, match="slurm_accounting_database is 'a;b'"):
        plugin.slurmdbd_conf({}, **none, **{**place, "database": "a;b"})
