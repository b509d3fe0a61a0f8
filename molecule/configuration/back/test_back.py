"""The list is off again, and the files that nobody describes any more are as they were."""

testinfra_hosts = ["node"]


def test_an_unsigned_image_runs_again(host):
    run = "apptainer exec --no-home /srv/images/unsigned.sif id -u"
    assert host.check_output(f"cd / && runuser -u alice -- {run}") == "2000"


def test_files_without_a_description_are_left_alone(host):
    assert host.check_output("apptainer capability list") == "alice [user]: CAP_NET_RAW"
    assert 'Active: "site"' in host.file("/etc/apptainer/remote.yaml").content_string
    fingerprint = host.file("/srv/keys/site.fingerprint").content_string.strip()
    assert fingerprint in host.check_output("apptainer key list --global")
