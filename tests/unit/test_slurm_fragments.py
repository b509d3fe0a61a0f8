"""What other roles add to the configuration of the cluster."""

import pytest

from module_utils import slurm_fragments
from module_utils.slurm_conf import SlurmConfError, parameter_lines

BASE = {"SlurmctldParameters": ["enable_configless"], "ReturnToService": 1}


def combine(**fragments):
    return slurm_fragments.combine(fragments, BASE)


def test_lists_are_joined_and_scalars_of_the_base_give_way():
    parameters, files = combine(
        one={"parameters": {"PrologFlags": ["Contain"], "Prolog": ["one.sh"], "ReturnToService": 0}},
        two={"parameters": {"prologflags": ["Contain", "Alloc"], "Prolog": ["two.sh"]}, "files": []},
        three={"parameters": {"slurmctldparameters": ["idle_on_node_suspend"]}},
        off={},
    )
    assert files == []
    assert parameters == {
        "SlurmctldParameters": ["enable_configless", "idle_on_node_suspend"],
        "ReturnToService": 0,
        "PrologFlags": ["Contain", "Alloc"],
        "Prolog": ["one.sh", "two.sh"],
    }


def test_scripts_are_a_line_each_and_flags_are_one():
    text = parameter_lines({"Prolog": ["b", "a"], "Epilog": "one", "PrologFlags": ["Contain", "Alloc"]})
    assert text == "Prolog=b\nProlog=a\nEpilog=one\nPrologFlags=Contain,Alloc\n"


def test_files_are_sorted_and_keep_their_mode():
    script = {"name": "prolog", "content": "#!/bin/sh", "mode": "0755"}
    _, files = combine(one={"files": [script]}, two={"files": [{"name": "mpi.conf", "content": ""}]})
    assert [(file.name, file.mode) for file in files] == [("mpi.conf", "0644"), ("prolog", "0755")]


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        ({"parameters": {"Epilog": "a"}}, {"parameters": {"epilog": "b"}}, "one and two differ about epilog"),
        (
            {"files": [{"name": "a", "content": ""}]},
            {"files": [{"name": "a", "content": ""}]},
            "one and two both have the file a",
        ),
        (
            {"files": [{"name": "x/a", "content": ""}]},
            {},
            "one: the file 'x/a' needs a name without a folder",
        ),
        ({"files": [{"name": "..", "content": ""}]}, {}, "needs a name"),
        ({}, {"files": [{"name": "slurm.conf", "content": ""}]}, "two: the file 'slurm.conf'"),
        ({"files": [{"name": "a"}]}, {}, "the file a has no content"),
        ({"files": [{"name": "a", "content": "", "mode": "4755"}]}, {}, "the mode 4755: make it"),
        ({"files": "a"}, {}, "files must be a list"),
        ({"parameters": ["a"]}, {}, "parameters must be a mapping"),
    ],
)
def test_what_does_not_fit_names_its_giver(one, two, message):
    with pytest.raises(SlurmConfError, match=message):
        combine(one=one, two=two)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"taskprolog": "a"}, "taskprolog is a: Slurm hands it on to no node"),
        ({"HealthCheckProgram": "a"}, "Slurm hands it on to no node"),
        ({"Prolog": ["a", "b"]}, "Prolog is b: there is no such file beside slurm.conf"),
        ({"Epilog": "e*"}, "there is no such file"),
    ],
)
def test_a_script_that_nodes_would_not_find_is_refused(parameters, message):
    with pytest.raises(SlurmConfError, match=message):
        slurm_fragments.check_programs(parameters, ["a"])


def test_scripts_that_nodes_find():
    parameters = {"Prolog": ["a", "/opt/*"], "Epilog": "a", "TaskProlog": "/opt/t", "Licenses": "a"}
    slurm_fragments.check_programs(parameters, ["a"])
