"""For each wrong state of a node: what real Apptainer does for a user, and what the lint says of it."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

testinfra_hosts = ["node"]

PROJECT = Path(__file__).resolve().parents[3]
INVENTORY = Path(__file__).resolve().parents[1] / "inventory"
RUNS = ""

#: An image whose programs are its own, so that nothing has to be bound.
IMAGE = """
set -eu
rm -rf /srv/root /srv/images && mkdir -p /srv/root/bin /srv/root/dev /srv/root/proc /srv/root/tmp /srv/images
cp /bin/true /srv/root/bin/
for library in $(ldd /bin/true | grep -o '/[^ ]*'); do
    mkdir -p "/srv/root$(dirname "$library")"
    cp -L "$library" "/srv/root$library"
done
chmod 755 /srv/root /srv/images
apptainer --silent build --force /srv/images/true.sif /srv/root
rm -rf /root/apptainer && cp -a /etc/apptainer /root/apptainer
"""
GROUP = '\\n[[execgroup]]\\nmode = "{mode}"\\ndirpath = "{folder}"\\nkeyfp = []\\n'


def conf(line):
    return f"echo '{line}' >> apptainer.conf"


def setting(directive, value):
    return f"sed -i 's/^{directive} = .*/{directive} = {value}/' apptainer.conf"


def ecl(text):
    return f"printf '{text}' > ecl.toml"


# How the state is made, in /etc/apptainer; how Apptainer refuses, or RUNS; rules with errors that are new.
STATES = {
    "as installed": ("true", RUNS, set()),
    "unknown directive": (conf("allow setuids = no"), RUNS, {"L01"}),
    "double space": (conf("allow  setuid = no"), RUNS, {"L01"}),
    "byte order mark": ("sed -i '1s/^/\\xef\\xbb\\xbfallow setuid = no\\n/' apptainer.conf", RUNS, {"L01"}),
    "inline comment": (setting("mount tmp", "no # x"), 'authorized for directive "mount tmp"', {"L02"}),
    "second scalar": (conf("allow user ns = no") + " && " + conf("allow setuid = no"), RUNS, {"L03"}),
    "comma in a scalar": (setting("allow setuid", "yes,no"), RUNS, {"L04"}),
    "no way to start": (
        setting("allow setuid", "no") + " && " + setting("allow user ns", "no"),
        "User namespace required but not allowed",
        {"L05"},
    ),
    "broken ecl": (ecl("activated = yes\\n"), RUNS, {"L11"}),
    "ecl with a key twice": (ecl("activated = true\\nactivated = true\\n"), RUNS, {"L11"}),
    "ecl without a mode": (
        ecl("activated = true" + GROUP.format(mode="all", folder="/srv/images")),
        "the mode field can only be",
        {"L09", "L11"},
    ),
    "ecl of a link": (
        "ln -sfn /srv/images /srv/link && "
        + ecl("activated = true" + GROUP.format(mode="whitelist", folder="/srv/link")),
        "symlinks resolved",
        {"L09", "L11"},
    ),
    # Before 1.5.1 these limits have a fault in setuid mode, whatever they say.
    "limit to nowhere": (conf("limit container paths = /nowhere"), "failed to resolve path", {"L16", "L30"}),
    "bind of nothing": (conf("bind path = /nowhere"), "mount source /nowhere doesn", {"L18"}),
    "no ecl": ("rm ecl.toml", "ecl.toml must be owned by root", {"L26"}),
    "a user's ecl": ("chown alice ecl.toml", "ecl.toml must be owned by root", {"L26"}),
    "everybody's ecl": ("chmod 666 ecl.toml", RUNS, {"L26"}),
    "no capability.json": ("rm capability.json", "capability.json must be owned by root", {"L26"}),
    "broken capability.json": ("echo '{{' > capability.json", "parsing capability config", {"L27"}),
}


@pytest.fixture(scope="module", autouse=True)
def image(host):
    host.run_expect([0], f"sh -c {shlex.quote(IMAGE)}")


@pytest.fixture
def lint():
    """Return what says which rules have errors on the node."""

    def run():
        command = [Path(sys.executable).with_name("ansible"), "node", "--inventory", INVENTORY]
        command += ["--module-name", "apptainer_lint"]
        command += ["--args", json.dumps({"profile": "compatible", "report_only": True})]
        done = subprocess.run(
            [*map(str, command), "--one-line"], cwd=PROJECT, capture_output=True, text=True, check=False
        )
        assert "SUCCESS => " in done.stdout, done.stdout + done.stderr
        # More may follow what the module has returned.
        result, _ = json.JSONDecoder().raw_decode(done.stdout.split("SUCCESS => ", 1)[1])
        return {finding["id"] for finding in result["findings"] if finding["severity"] == "error"}

    return run


@pytest.mark.parametrize("state", STATES)
def test_the_lint_knows_what_apptainer_does(host, lint, state):
    change, refusal, rules = STATES[state]
    host.run_expect([0], "rm -rf /etc/apptainer && cp -a /root/apptainer /etc/apptainer")
    try:
        host.run_expect([0], f"sh -c {shlex.quote('cd /etc/apptainer && ' + change)}")
        ran = host.run("cd / && runuser -u alice -- apptainer exec /srv/images/true.sif /bin/true || exit 1")
        assert (ran.rc == 0) is (refusal == RUNS), ran.stderr
        assert refusal in ran.stderr
        assert lint() == rules
    finally:
        host.run_expect([0], "rm -rf /etc/apptainer && cp -a /root/apptainer /etc/apptainer")
