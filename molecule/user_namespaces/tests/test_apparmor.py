"""AppArmor withholds user namespaces from what runs under a profile without them, as on Ubuntu from all.

The profile `no-namespaces` is the test's own; the kernel's decision is real.
"""

import pytest

testinfra_hosts = ["v1"]

PROGRAM = "/usr/local/bin/makes-a-namespace"
MAKE_ONE = f"{PROGRAM} --user --map-root-user id --user; exit $?"
# aa-exec puts what it runs, the shell, under the profile; what that runs goes to its own, if there is one.
TRY = f"runuser -u alice -- aa-exec -p no-namespaces -- sh -c '{MAKE_ONE}'"
RESTRICTION = """\
abi <abi/4.0>,

profile no-namespaces {
  capability,
  network,
  signal,
  unix,
  / r,
  /** rwmlk,
  /** pix,
}
"""


@pytest.fixture(scope="module", autouse=True)
def restriction(host):
    """A user who may do everything but create user namespaces."""
    host.check_output("cp /usr/bin/unshare %s", PROGRAM)
    host.check_output("printf %%s %s > /etc/apparmor.d/no-namespaces", RESTRICTION)
    host.check_output("apparmor_parser --replace /etc/apparmor.d/no-namespaces")


def test_a_program_with_a_profile_makes_a_namespace(host, playbook, moment):
    assert "Permission denied" in host.run(TRY).stderr
    ended = playbook("apparmor.yml", programs=[PROGRAM])
    assert ended.code == 0, ended.output
    moment()
    assert host.check_output(TRY) == "0"
    assert not playbook("apparmor.yml", programs=[PROGRAM]).changed["v1"]

    assert playbook("apparmor.yml", "--check", programs=[]).changed["v1"] == 1
    assert host.check_output(TRY) == "0"
    assert playbook("apparmor.yml", programs=[]).changed["v1"] == 1
    assert "Permission denied" in host.run(TRY).stderr
