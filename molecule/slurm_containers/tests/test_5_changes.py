"""Changes of the configuration: plugins come and go, a hook that hangs drains its node, drained ones wait."""

import time

import pytest
from conftest import SCENARIO

REASON = "fan 3 of c2 rattles; ticket #815, J. Doe"
HANGS = "#!/bin/sh\nexec /bin/sleep 600\n"
PLUGIN = "/usr/lib/apptainer-fleet/spank/greeting.so"


@pytest.fixture(scope="module")
def changed(head, playbook, image, tmp_path_factory):
    """Have a plugin of the site, and an Epilog of the site that never ends; c2 is drained before that."""
    head.check_output("printf %%s %s > /tmp/greeting.c", (SCENARIO / "spank.c").read_text())
    head.check_output("gcc -shared -fPIC -o /tmp/greeting.so /tmp/greeting.c")
    plugin = tmp_path_factory.mktemp("spank") / "greeting.so"
    plugin.write_bytes(head.file("/tmp/greeting.so").content)
    head.check_output("scontrol update nodename=c2 state=drain reason=%s", REASON)
    result = playbook(
        "converge.yml",
        "--tags=slurm",
        slurm_containers_spank=[{"src": str(plugin), "arguments": ["hello"]}],
        slurm_extra_files=[{"name": "site_epilog", "content": HANGS, "mode": "0755"}],
        slurm_parameters={"Epilog": ["apptainer_epilog", "site_epilog"], "PrologEpilogTimeout": 3},
    )
    assert result.code == 0, result.output


def drained(head, name):
    return head.check_output("sinfo --noheader --Node --nodes=%s --format='%%T %%E'", name)


def test_a_node_that_somebody_drained_stays_drained(head, changed):
    assert drained(head, "c2") == f"drained {REASON}"
    head.check_output("scontrol update nodename=c2 state=resume")


def test_a_plugin_of_the_site_works_and_a_hook_that_hangs_is_ended(head, node, alice, image, changed):
    said = alice(f"srun --nodelist=c1 apptainer exec {image} sh -c 'echo $GREETING'")
    assert said.strip() == "hello"
    until = time.monotonic() + 60
    while not drained(head, "c1").startswith("drained"):
        assert time.monotonic() < until
        time.sleep(0.3)
    assert drained(head, "c1") == "drained Epilog error"
    assert node("c1").run("pgrep --full 'sleep 600'").rc != 0


def test_a_plugin_goes_after_its_line(head, node, playbook, alice, changed):
    """The other way round no job would start. The node that is drained for the hook stays so."""
    assert node("c1").file(PLUGIN).exists
    result = playbook("converge.yml", "--tags=slurm")
    assert result.code == 0, result.output
    assert drained(head, "c1") == "drained Epilog error"
    head.check_output("scontrol update nodename=c1 state=resume")
    assert alice("srun --nodelist=c1 sh -c 'echo none$GREETING'").strip() == "none"
    assert not node("c1").file(PLUGIN).exists
    # Debian's own file, which was there before, is there again.
    for name, path in (("head", "/etc/slurm"), ("c1", "/run/slurm/conf")):
        text = node(name).check_output("cat %s/plugstack.conf", path)
        assert "include /etc/slurm/plugstack.conf.d" in text and "greeting" not in text
