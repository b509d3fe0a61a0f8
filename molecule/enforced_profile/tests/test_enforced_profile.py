"""What a user of an enforced node can run, and what not; the node's kernel is its own."""

import pytest

testinfra_hosts = ["v1"]

APPROVED = "/srv/images"
MINE = "/home/alice/images"
ECL = "while checking container image with ECL"
FORBIDDEN = "configuration disallows users from running"
NO_NAMESPACE = "User namespace required but not allowed by configuration"
#: How Apptainer refuses, for each thing a user may try.
REFUSED = {
    "unsigned": (f"{APPROVED}/unsigned.sif", ECL),
    "tampered": (f"{APPROVED}/tampered.sif", ECL),
    "wrongly signed": (f"{APPROVED}/wrongly-signed.sif", ECL),
    "out of the directory": (f"{MINE}/signed.sif", ECL),
    "a directory": (f"{MINE}/sandbox", FORBIDDEN),
    "ext3": (f"{MINE}/ext3.img", FORBIDDEN),
    "bare SquashFS": (f"{MINE}/bare.squashfs", FORBIDDEN),
    "--userns": (f"--userns {APPROVED}/signed.sif", NO_NAMESPACE),
    "--userns of an own image": (f"--userns {MINE}/sandbox", NO_NAMESPACE),
    "--fakeroot": (f"--fakeroot {APPROVED}/signed.sif", ""),
    "an overlay of ext3": (f"--overlay {MINE}/ext3.img {APPROVED}/signed.sif", "overlay"),
}
#: An Apptainer in a folder of its own finds its starter and its configuration there.
OWN = r"""
set -eu
rm -rf /home/alice/own
mkdir -p /home/alice/own/bin /home/alice/own/lib/x86_64-linux-gnu /home/alice/own/etc
cp /usr/bin/apptainer /home/alice/own/bin
cp -r /usr/lib/x86_64-linux-gnu/apptainer /home/alice/own/lib/x86_64-linux-gnu
rm -f /home/alice/own/lib/x86_64-linux-gnu/apptainer/bin/starter-suid
cp -r /etc/apptainer /home/alice/own/etc
sed -i -E 's/^(allow user ns|allow container dir) = .*/\1 = yes/' /home/alice/own/etc/apptainer/apptainer.conf
echo 'activated = false' > /home/alice/own/etc/apptainer/ecl.toml
touch /home/alice/own/etc/apptainer/capability.json
# The command finds them beside bin, the starter beside its own architecture's folder.
cp -r /home/alice/own/etc /home/alice/own/lib
chown -R alice: /home/alice/own
"""


@pytest.fixture(scope="module")
def alice(host):
    """What runs a command as a normal user."""
    # `||`, because testinfra takes the 255 of Apptainer for a connection that failed.
    return lambda command: host.run("runuser --login alice --command %s || exit 1", command)


def test_the_approved_image_runs_as_the_user(alice):
    done = alice(f"apptainer exec {APPROVED}/signed.sif id -u")
    assert done.succeeded, done.stderr
    assert done.stdout.strip() == alice("id -u").stdout.strip() != "0"


@pytest.mark.parametrize("what", REFUSED)
def test_everything_else_is_refused(alice, what):
    arguments, refusal = REFUSED[what]
    done = alice(f"apptainer exec {arguments} id -u")
    assert done.failed
    assert not done.stdout.strip()
    assert refusal in done.stderr


def test_users_have_no_namespaces(host, alice):
    assert alice("unshare --user true").failed
    assert host.file("/proc/sys/user/max_user_namespaces").content_string.strip() == "0"


@pytest.fixture(scope="module")
def own(host, alice):
    """An Apptainer that a user has copied and configured."""
    host.check_output("sh -c %s", OWN)
    program = "/home/alice/own/bin/apptainer"
    assert program.rpartition("/bin")[0] in alice(f"{program} buildcfg").stdout, "not where it thinks it is"
    return program


@pytest.mark.parametrize("image", [f"{MINE}/sandbox", f"{MINE}/unsigned.sif", f"{APPROVED}/signed.sif"])
def test_an_apptainer_of_the_users_own_starts_nothing(alice, own, image):
    done = alice(f"{own} --quiet exec {image} id -u")
    assert done.failed
    assert not done.stdout.strip()
    assert "namespace" in done.stderr


def test_no_way_to_root_from_the_approved_image(alice):
    tries = "id -u; cat /etc/shadow; cat /etc/gshadow; (: > /etc/owned)"
    done = alice(f"apptainer exec --bind /etc {APPROVED}/signed.sif sh -c {tries!r}")
    assert done.stdout.strip().splitlines()[0] != "0"
    assert done.stderr.lower().count("permission denied") >= 3, done.stderr
