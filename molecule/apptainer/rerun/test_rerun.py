"""The role once more on a node that is as it should be: what that costs, and what is refused."""

import re

import pytest

testinfra_hosts = ["node"]

CONFIGURATION = "/etc/apptainer/apptainer.conf"


def test_a_run_that_changes_nothing_costs_three_tasks_on_the_node(playbook):
    result = playbook("converge.yml")
    assert result.changed == {"node": 0}
    # And two for the controller alone: the arguments, and once for all nodes what packages have left.
    assert re.search(r"ok=(\d+)", result.output)[1] == "5"
    assert "skipped=0" in result.output


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"apptainer_config": {"alow setuid": False}}, "did you mean 'allow setuid'?"),
        (
            {"apptainer_config": {"mount dev": "no # not here"}},
            "apptainer_config: 'mount dev' must be exactly one of",
        ),
        ({"apptainer_config": {"allow setuid": True}}, "apptainer_profile is 'rootless'"),
        ({"apptainer_version": "1.4.99"}, "1.4.99 (apptainer_version) can't be had"),
    ],
)
def test_what_is_wrong_is_refused_and_the_node_stays_as_it_was(host, playbook, variables, message):
    def traces():
        return host.check_output(
            f"ls -l --full-time {CONFIGURATION} /etc/apt/*/* /var/lib/dpkg/status; apptainer version"
        )

    before = traces()
    result = playbook("converge.yml", **variables)
    assert result.code != 0 and result.changed == {"node": 0}
    assert message in result.output
    assert traces() == before
