"""topology.conf from the inventory."""

import pytest

from module_utils import slurm_topology
from module_utils.slurm_conf import HEADER, SlurmConfError


def render(leaves, *switches):
    return slurm_topology.render(leaves, [{"name": name, "switches": below} for name, below in switches])


def test_one_switch_needs_none_above_it():
    assert render({"s1": "c[1-9]"}) == f"{HEADER}SwitchName=s1 Nodes=c[1-9]\n"


def test_leaves_without_a_switch_above_get_one():
    text = render({"s2": "c3", "s1": "c[1-2]"})
    assert text.splitlines()[1:] == [
        "SwitchName=s1 Nodes=c[1-2]",
        "SwitchName=s2 Nodes=c3",
        "SwitchName=root Switches=s1,s2",
    ]


def test_a_tree_of_three_levels():
    text = render({"s1": "a", "s2": "b", "s3": "c"}, ("core", ["m", "s3"]), ("m", ["s1", "s2"]))
    assert text.endswith("SwitchName=core Switches=m,s3\nSwitchName=m Switches=s1,s2\n")


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ([("core", ["s1", "s2", "s9"])], "core is above s9, which is neither"),
        ([("core", ["s1", "s2"]), ("core", ["s1"])], "twice"),
        ([("core", ["s1"]), ("other", ["s1", "s2"])], "s1 is below core and below other"),
        ([("core", ["s1"])], "nothing connects s2, core"),
        ([("s1", ["s2"])], "s1 is in slurm_switches, and the slurm_switch of nodes"),
        ([("core", ["s1", "s2"]), ("x", ["y"]), ("y", ["x"])], "x is below itself"),
    ],
)
def test_what_is_no_tree_is_refused(switches, message):
    with pytest.raises(SlurmConfError, match=message):
        render({"s1": "a", "s2": "b"}, *switches)
