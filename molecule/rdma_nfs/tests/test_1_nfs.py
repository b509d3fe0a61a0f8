"""NFS between the machines: mounted, seen in containers, after a restart of the server and without it."""

import contextlib
import time

import pytest
from conftest import IMAGE, SERVER

SOFTWARE = "/nfs/software"
SAID = "of the server of NFS\n"
INSIDE = f"timeout 300 apptainer exec {IMAGE}"


@pytest.fixture
def v1(node):
    """The server."""
    return node("v1")


@pytest.fixture
def v2(node):
    """The client."""
    return node("v2")


def on_v2(v2, command):
    """Run as a user on the client. Apptainer ends with 255, which testinfra takes for a lost connection."""
    return v2.run("runuser --login alice --command %s || exit 1", command)


@contextlib.contextmanager
def gone(v1, how):
    """Have no server: it answers that nobody listens, or it answers nothing at all."""
    away, back = {
        "refuses": ("systemctl stop nfs-server", "systemctl start nfs-server"),
        # The lab itself reaches it by another address.
        "is silent": ("ip route add blackhole 10.77.92.12", "ip route del blackhole 10.77.92.12"),
    }[how]
    v1.check_output(away)
    try:
        yield
    finally:
        v1.check_output(back)


def test_it_is_mounted_from_the_server_without_setuid_and_devices(v2):
    assert v2.check_output(f"cat {SOFTWARE}/README") + "\n" == SAID
    fields = v2.check_output(f"grep ' {SOFTWARE} .* - nfs4 ' /proc/self/mountinfo").split()
    assert f"{SERVER}:/srv/software" in fields and {"nosuid", "nodev"} <= set(fields[5].split(","))


def test_a_container_sees_it_and_mounts_it_by_looking(v2, image):
    v2.check_output("systemctl stop nfs-software.mount")
    assert v2.run("grep ' - nfs4 ' /proc/self/mountinfo").rc == 1
    seen = on_v2(v2, f"{INSIDE} cat {SOFTWARE}/README")
    assert seen.stdout == SAID, seen.stderr
    assert v2.run("grep ' - nfs4 ' /proc/self/mountinfo").rc == 0


def test_what_has_a_file_open_goes_on_after_a_restart_of_the_server(v1, v2, image):
    v1.check_output("install --owner=alice --directory /srv/software/alice")
    # In a container, as a user: a line each second for as long as it takes.
    v2.check_output(
        f"systemd-run --unit=writer --uid=alice --setenv=HOME=/home/alice apptainer exec {IMAGE} sh -c %s",
        f"exec >{SOFTWARE}/alice/lines; while :; do echo line; sleep 1; done",
    )
    try:
        v2.check_output(f"timeout 120 sh -c 'until test -s {SOFTWARE}/alice/lines; do sleep 1; done'")
        v1.check_output("systemctl restart nfs-server")
        lines = "wc --lines < /srv/software/alice/lines"
        written = int(v1.check_output(lines))
        v1.check_output(
            f"timeout 180 sh -c 'until test $({lines}) -gt %s; do sleep 1; done'",
            str(written + 3),
        )
        assert v2.check_output("systemctl is-active writer") == "active"
        assert on_v2(v2, f"{INSIDE} cat {SOFTWARE}/README").stdout == SAID
    finally:
        v2.run("systemctl kill --signal=KILL writer")


@pytest.mark.parametrize("how", ["refuses", "is silent"])
@pytest.mark.usefixtures("image")
def test_without_the_server_containers_run_that_do_not_need_it(v1, v2, alice, playbook, how):
    v2.check_output(f"ls {SOFTWARE}")
    with gone(v1, how):
        # The kernel waits for the server for ever; what it has of a file's content it would give without it.
        assert v2.check_output(f"timeout --signal=KILL 20 stat --file-system {SOFTWARE}; echo $?") == "137"
        began = time.monotonic()
        assert on_v2(v2, f"{INSIDE} true").rc == 0
        job = alice(f"timeout 300 srun --nodelist=v2 {INSIDE} true")
        assert job.rc == 0, job.stderr
        assert time.monotonic() - began < 600
        facts = playbook("facts.yml")
        assert facts.code == 0, facts.output
        assert f"{SOFTWARE} did not answer within 2 s" in " ".join(facts.output.split())
    assert v2.check_output(f"timeout 300 cat {SOFTWARE}/README") + "\n" == SAID
