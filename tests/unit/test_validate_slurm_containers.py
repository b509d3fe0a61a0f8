"""What variables of container jobs have to agree on, found before any node is touched."""

from __future__ import annotations

import pytest

from fleet.paths import PROJECT
from fleet.validate import slurm_containers
from fleet.validate.vocabulary import Vocabulary

GOOD = {
    "apptainer_version": "1.4.5",
    "slurm_containers_hook_seconds": 30,
    "slurm_containers_hooks": True,
    "slurm_containers_mpi": "transport",
    "slurm_containers_native": True,
    "slurm_containers_oci": True,
    "slurm_version": "24.11",
    "slurm_containers_spank": [],
    "slurm_parameters": {"MaxJobCount": 5, "Epilog": ["apptainer_epilog", "site"], "PrologEpilogTimeout": 31},
}


def judged(**values):
    return [(found.variable, found.what) for found in slurm_containers.judge({**GOOD, **values})]


def test_what_agrees_is_good():
    assert judged() == []
    assert judged(slurm_parameters={}, slurm_containers_oci=False, slurm_version="22.05") == []


@pytest.mark.parametrize(
    ("values", "variable", "said"),
    [
        ({"slurm_version": "22.05"}, "slurm_containers_oci", "Slurm 22.05"),
        (
            {"slurm_containers_mpi": "sharens", "apptainer_version": "1.2.5"},
            "slurm_containers_mpi",
            "Apptainer 1.2.5",
        ),
        ({"slurm_containers_spank": [{"src": "/none/a.so"}]}, "slurm_containers_spank", "/none/a.so"),
        ({"slurm_parameters": {"PROLOG": "site"}}, "slurm_parameters", "leaves out apptainer_prolog"),
        ({"slurm_parameters": {"epilog": None}}, "slurm_parameters", "leaves out apptainer_epilog"),
        ({"slurm_parameters": {"PrologEpilogTimeout": 30}}, "slurm_parameters", "would be drained"),
    ],
)
def test_what_does_not_agree_is_named(values, variable, said):
    ((found, what),) = judged(**values)
    assert found == variable and said in what


def test_without_hooks_the_site_has_its_own():
    assert judged(slurm_containers_hooks=False, slurm_parameters={"Prolog": "site"}) == []


def test_what_is_not_known_is_not_judged():
    assert judged(**dict.fromkeys(GOOD)) == []


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("slurm_containers_jobs_folder", "/local/jobs", "/tmp"),
        ("slurm_containers_hook_seconds", 30, 5),
        ("slurm_containers_environment", {"A": "b"}, {"A B": "c"}),
        ("slurm_containers_oci_parameters", {"FileDebug": "debug"}, {"FileDebgu": "x"}),
        ("slurm_containers_spank", [{"path": "/a.so"}], [{"path": "/a.so", "src": "b.so"}]),
        ("slurm_containers_mpi", "sharens", "pmix"),
    ],
)
def test_values_are_judged_where_they_are_written(name, good, bad):
    vocabulary = Vocabulary.of(PROJECT)
    assert vocabulary.problem(name, good) is None
    assert vocabulary.problem(name, bad)
