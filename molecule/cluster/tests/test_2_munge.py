"""One secret for the cluster, known to munge and nobody else."""

import base64

import pytest

NODES = ("head", "c1", "c2")
KEY = "/etc/munge/munge.key"


@pytest.fixture(scope="module")
def key(head):
    return head.file(KEY).content


def test_the_key_is_the_same_everywhere_and_belongs_to_munge(node, key):
    assert len(key) == 1024 and len(set(key)) > 200
    for name in NODES:
        file = node(name).file(KEY)
        assert (file.mode, file.user, file.group) == (0o400, "munge", "munge")
        assert file.content == key


@pytest.mark.parametrize("name", NODES)
def test_nobody_else_can_read_it(node, name):
    assert node(name).run("runuser --user alice -- cat %s", KEY).rc != 0


@pytest.mark.parametrize("name", NODES)
def test_it_is_nowhere_in_the_journal(node, key, name):
    journal = node(name).check_output("journalctl --no-pager --all")
    # Modules do leave words there, and on compute nodes this one, too.
    assert ("ansible-slurm_daemon" if name == "head" else "ansible-munge") in journal
    for spelling in (base64.b64encode(key).decode(), key.hex()):
        assert spelling[:40] not in journal


@pytest.mark.parametrize("name", NODES)
def test_nothing_is_left_in_temporary_folders(node, key, name):
    pieces = base64.b64encode(key).decode()[:40]
    # The pattern comes from standard input, so that this test doesn't put it into the list of processes.
    found = node(name).run("echo %s | grep --recursive --files-with-matches --fixed-strings --file=- "
                           "/tmp /var/tmp /root /home /etc/ansible", pieces)  # fmt: skip
    assert found.stdout == ""


def test_a_credential_of_one_node_is_good_on_the_other(node, as_alice):
    credential = as_alice(node("c1"), "munge --no-input").strip()
    decoded = node("c2").run("echo %s | unmunge --keys=STATUS,UID", credential)
    assert decoded.rc == 0 and "Success" in decoded.stdout and "alice" in decoded.stdout


def test_a_credential_that_somebody_touched_is_refused(node, as_alice):
    credential = as_alice(node("c1"), "munge --no-input").strip()
    middle = len(credential) // 2
    touched = credential[:middle] + ("A" if credential[middle] != "A" else "B") + credential[middle + 1 :]
    assert node("c2").run("echo %s | unmunge", touched).rc != 0
