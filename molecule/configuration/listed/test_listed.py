"""A node with a list of signed images: what runs, what is refused, and that every other file is read."""

import pytest

testinfra_hosts = ["node"]

FOLDER = "/etc/apptainer"
FILES = (
    *("apptainer.conf", "capability.json", "dmtcp-conf.yaml", "ecl.toml", "global-pgp-public"),
    *("nvliblist.conf", "remote.yaml", "rocmliblist.conf"),
)
BY_THE_LIST = "while checking container image with ECL"


@pytest.fixture
def alice(host):
    """What runs a command as a normal user."""
    # `|| exit 1`, because ssh takes the 255 of Apptainer for its own.
    return lambda command: host.run(f"cd / && runuser -u alice -- {command} || exit 1")


def traces(host):
    return host.check_output(f"ls -l --full-time {FOLDER} && cat {FOLDER}/*.*")


def state(host):
    """What is in the files, whose they are, and who may change them."""
    return host.check_output(
        f"cd {FOLDER} && find . -type f -printf '%p %u %g %m\\n' | sort && sha256sum *.*"
    )


def test_all_files_are_root_s_and_nothing_is_left_beside_them(host):
    shown = host.check_output(f"find {FOLDER} -maxdepth 1 -type f -printf '%f %u:%g %m\\n' | sort")
    assert shown.splitlines() == [f"{name} root:root 644" for name in FILES]


def test_the_signed_image_runs_for_a_user(host, alice):
    assert alice("apptainer exec --no-home /srv/images/signed.sif id -u").stdout == "2000\n"


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("/srv/images/unsigned.sif", BY_THE_LIST),
        ("/srv/images/stranger.sif", BY_THE_LIST),
        ("/srv/images/changed.sif", BY_THE_LIST),
        ("/srv/elsewhere/signed.sif", BY_THE_LIST),
        ("/srv/images/below/signed.sif", BY_THE_LIST),
        ("/srv/images/directory", "configuration disallows users from running sandbox"),
        ("/srv/images/bare.squashfs", "configuration disallows users from running squashFS"),
        ("/srv/images/bare.ext3", "configuration disallows users from running extFS"),
    ],
)
@pytest.mark.parametrize("user", ["alice", "root"])
def test_everything_else_is_refused(host, user, image, words):
    ran = host.run(f"cd / && runuser -u {user} -- apptainer exec --no-home {image} id -u || exit 1")
    assert ran.rc == 1 and words in ran.stderr and not ran.stdout


def test_apptainer_reads_the_other_files(host, alice):
    remotes = [line.split() for line in alice("apptainer remote list").stdout.splitlines()]
    assert ["site", "images.example.org", "✓", "✓", "✓", "✓"] in remotes
    assert ["DefaultRemote", "cloud.apptainer.org", "✓", "✓"] in remotes
    assert "https://keys.example.org" in alice("apptainer keyserver list").stdout
    assert "has been set exclusive" in alice("apptainer remote use DefaultRemote").stderr
    assert host.check_output("apptainer capability list") == "alice [user]: CAP_NET_RAW"
    fingerprint = host.file("/srv/keys/site.fingerprint").content_string.strip()
    assert fingerprint in host.check_output("apptainer key list --global")
    said = alice("apptainer --debug exec --nv --no-home /srv/images/signed.sif id -u").stderr
    assert "Adding file /usr/bin/lscpu:/usr/bin/lscpu to mount list" in said


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"listed_dirpath": "/srv/nowhere"}, "every dirpath has to be there"),
        ({"listed_dirpath": "/srv/../srv/images"}, "dirpath must be an absolute path"),
        ({"listed_dirpath": "/srv/link"}, "every dirpath has to be there, by its real path"),
        ({"signer": "0" * 40}, "was promised, but it holds"),
    ],
)
@pytest.mark.parametrize("mode", [["--check"], []])
def test_a_list_that_would_refuse_every_image_is_not_written(host, playbook, variables, words, mode):
    host.check_output("ln -sfn /srv/images /srv/link")
    before = traces(host)
    result = playbook("listed.yml", *mode, **variables)
    assert result.code != 0 and words in " ".join(result.output.split())
    assert traces(host) == before


def test_a_second_run_changes_nothing_and_tells_what_a_package_left(host, playbook):
    host.check_output(f"touch {FOLDER}/apptainer.conf.rpmnew")
    try:
        result = playbook("listed.yml")
    finally:
        host.check_output(f"rm {FOLDER}/apptainer.conf.rpmnew")
    assert (result.code, result.changed) == (0, {"node": 0})
    assert f"[WARNING]: node: a package has left {FOLDER}/apptainer.conf.rpmnew" in " ".join(
        result.output.split()
    )


def test_what_somebody_changed_is_predicted_shown_and_mended(host, playbook):
    wanted = state(host)
    host.check_output(
        f"sed -i 's/^activated.*/activated = false/' {FOLDER}/ecl.toml && chmod 666 {FOLDER}/remote.yaml"
    )
    tampered = traces(host)
    predicted = playbook("listed.yml", "--check", "--diff")
    assert traces(host) == tampered
    done = playbook("listed.yml", "--diff")
    for result in (predicted, done):
        # With the proof of the smoke test.
        assert (result.code, result.changed) == (0, {"node": 2})
        assert "\n-activated = false\n+activated = true\n" in result.output
    assert state(host) == wanted
