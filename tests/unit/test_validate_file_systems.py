"""File systems of the network that hosts and variables have to agree on, found before any node is touched."""

import pytest

from fleet.paths import PROJECT
from fleet.validate import Severity, check_inventory, file_systems
from fleet.validate.vocabulary import Vocabulary

SCRATCH = {"path": "/lustre/scratch", "source": "10.0.0.1@tcp,10.1.0.1@o2ib:/scratch", "bind": True}
GOOD = {
    "apptainer_config": {"bind path": ["/etc/hosts", "/opt"]},
    "lustre_networks": [{"net": "o2ib", "interfaces": ["ib0"]}],
    "lustre_routes": [],
    "lustre_file_systems": [SCRATCH],
    "nfs_mounts_file_systems": [{"path": "/nfs/home", "source": "server:/home"}],
    "other_mounts_file_systems": None,
}
GROUPS = {"apptainer", "lustre", "nfs_mounts"}


def judged(groups=GROUPS, elsewhere=frozenset(), **values):
    found = file_systems.judge({**GOOD, **values}, set(groups), set(elsewhere))
    return [(one.severity, one.variable, one.what) for one in found]


def test_what_agrees_is_good():
    assert judged() == [] and judged(groups={"apptainer"}) == []
    assert judged(**dict.fromkeys(GOOD)) == []


@pytest.mark.parametrize(
    ("values", "variable", "said"),
    [
        (
            {"lustre_networks": [{"net": "tcp5", "interfaces": ["e"]}]},
            "lustre_file_systems",
            "this node is on tcp5",
        ),
        (
            {"lustre_networks": [], "lustre_routes": [{"net": "a"}]},
            "lustre_routes",
            "no network to reach them",
        ),
        ({"lustre_routes": [{"net": "tcp", "gateway": "1.2.3.4@tcp"}]}, "lustre_routes", "no interface on"),
        (
            {"nfs_mounts_file_systems": [{"path": "/lustre/scratch", "source": "s:/x"}]},
            "nfs_mounts_file_systems",
            "mounted by lustre_file_systems, too",
        ),
        (
            {"nfs_mounts_file_systems": [{"path": "/lustre", "source": "s:/x"}]},
            "lustre_file_systems",
            "it is in /lustre, which may be away",
        ),
        (
            {"apptainer_config": {"mount slave": False}},
            "apptainer_config",
            "hides what is mounted below /lustre",
        ),
    ],
)
def test_what_does_not_agree_is_an_error(values, variable, said):
    ((severity, found, what),) = judged(**values)
    assert (severity, found) == (Severity.ERROR, variable) and said in what


def test_a_bind_that_can_stop_every_container_is_named():
    config = {"bind path": ["/lustre/scratch/sw:/sw", "/archive"]}
    ((severity, _, what),) = judged(apptainer_config=config)
    assert severity is Severity.WARNING and "/lustre/scratch/sw: while its server is away" in what
    assert [
        what for *_, what in judged(groups={"apptainer"}, elsewhere={"/archive"}, apptainer_config=config)
    ] == [
        "'bind path' has /archive, which other hosts mount and this one does not: where it is no folder,"
        " Apptainer is not configured"
    ]


def test_entries_are_judged_where_they_are_written():
    vocabulary = Vocabulary.of(PROJECT)
    for name in (
        "lustre_networks",
        "lustre_file_systems",
        "nfs_mounts_file_systems",
        "other_mounts_file_systems",
    ):
        assert vocabulary.problem(name, GOOD[name] or []) is None
    wrong = [{**SCRATCH, "path": "/scratch"}]
    assert "such as /fs/scratch" in vocabulary.problem("lustre_file_systems", wrong)
    assert "did you mean source?" in vocabulary.problem("lustre_file_systems", [{**SCRATCH, "sources": "x"}])
    assert "no network of LNet" in vocabulary.problem("lustre_networks", [{"net": "x", "interfaces": ["e"]}])


def test_an_inventory_is_judged_as_a_whole(tmp_path):
    (tmp_path / "hosts.yml").write_text(
        """\
all:
  children:
    lustre:
      hosts:
        c1:
      vars:
        lustre_networks: [{net: tcp, interfaces: [eth0]}]
        lustre_file_systems: [{path: /lustre/scratch, source: "10.1.0.1@o2ib:/scratch"}]
    apptainer:
      hosts:
        c1:
        c2:
      vars:
        apptainer_config: {bind path: [/lustre/scratch]}
"""
    )
    texts = [str(finding) for finding in check_inventory([tmp_path], PROJECT)]
    assert any("c1" in text and "this node is on tcp" in text for text in texts)
    assert any("c1" in text and "while its server is away" in text for text in texts)
    assert any("c2" in text and "which other hosts mount" in text for text in texts)
