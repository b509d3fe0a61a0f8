"""A stateless node joins the cluster by itself, converged, or it does not join and says why."""

import json

from shared.pulling import SETTINGS

KEY = "/etc/munge/munge.key"
NO_SUCH_VERSION = "apptainer_version: 9.9.9\n"


def running(node, unit):
    return node.host.service(unit).is_running


def test_a_node_with_nothing_but_the_bootstrap_joins_by_itself(c1, booted, slurm, head):
    result = booted()
    assert result["outcome"] == "converged" and result["changed"] > 3, result
    assert result["signer"] == "alice@example.org"
    slurm.wait_for("c1", "idle", seconds=120)
    assert head.check_output("srun --nodes=1 apptainer --version")
    # Not before: slurmd was enabled and started by what the pull did.
    times = "systemctl show --value --property={} {}"
    ended = c1.host.check_output(times.format("ExecMainExitTimestampMonotonic", "apptainer-fleet-pull-boot"))
    began = c1.host.check_output(times.format("ExecMainStartTimestampMonotonic", "slurmd"))
    assert int(began) > int(ended) > 0


def test_another_pull_changes_nothing_and_restarts_nothing(c1):
    since = c1.host.check_output("systemctl show --value --property=ExecMainStartTimestamp slurmd")
    result = c1.pull()
    assert (result["outcome"], result["changed"], result["failed"]) == ("converged", 0, 0), result
    assert c1.host.check_output("systemctl show --value --property=ExecMainStartTimestamp slurmd") == since


def test_what_the_repository_says_next_is_what_the_node_becomes(c1, site, repository):
    newer = repository["versions"][1]
    commit = site.publish(f"apptainer_version: {newer}\n")
    result = c1.pull()
    assert (result["outcome"], result["commit"]) == ("converged", commit), result
    assert newer in c1.host.check_output("apptainer --version")


def test_a_commit_that_nobody_trusted_has_signed_leaves_the_node_as_it_is(c1, site, repository, slurm):
    good = c1.result()["converged"]
    for signer in (None, "stranger"):
        commit = site.publish(f"apptainer_version: {repository['versions'][0]}\n", signer=signer)
        result = c1.pull()
        assert (result["outcome"], result["commit"]) == ("refused", commit), result
        assert result["converged"] == good
        assert "is not signed by a key in" in result["message"]
        assert "is not signed by a key in" in c1.host.check_output(
            "journalctl --unit=apptainer-fleet-pull.service --lines=5 --output=cat"
        )
        assert repository["versions"][1] in c1.host.check_output("apptainer --version")
        assert running(c1, "slurmd") and slurm.state("c1") == "idle"
        site.withdraw(good["commit"])


def test_a_commit_of_the_past_is_not_gone_back_to(c1, site):
    good = c1.result()["converged"]["commit"]
    site.withdraw("HEAD~1")
    result = c1.pull()
    assert result["outcome"] == "refused" and "does not descend from" in result["message"]
    site.withdraw(good)
    assert c1.pull()["outcome"] == "converged"


def test_a_node_that_boots_to_an_untrusted_commit_does_not_join(c1, site, booted, slurm):
    good = site.git("rev-parse", "HEAD")
    site.publish(signer="stranger")
    result = booted()
    assert (result["outcome"], result["converged"]) == ("refused", None), result
    assert not c1.host.package("apptainer").is_installed
    site.withdraw(good)


def test_a_node_whose_converge_fails_does_not_join_and_says_why(c1, site, booted, slurm, head):
    site.publish(NO_SUCH_VERSION)
    result = booted()
    assert result["outcome"] == "failed" and result["failed"] == 1 and "9.9.9" in result["message"], result
    journal = c1.host.check_output("journalctl --unit=apptainer-fleet-pull-boot.service --output=cat")
    assert "9.9.9" in journal
    assert not running(c1, "slurmd")
    # Not even if somebody asks for it.
    asked = c1.host.run("systemctl start slurmd")
    assert asked.failed and not running(c1, "slurmd")
    # Until it has converged after all, by its timer for example.
    site.publish()
    assert c1.pull()["outcome"] == "converged"
    slurm.wait_for("c1", "idle", seconds=120)


def test_a_node_without_the_munge_key_does_not_join_and_makes_none(c1):
    c1.cut_power()
    c1.fresh_disk()
    (c1.home / f"upper{KEY}").unlink()
    c1.boot()
    result = c1.wait_for_boot(seconds=600)
    assert result["outcome"] == "failed" and f"there is no {KEY}" in result["message"], result
    assert not c1.host.file(KEY).exists and not running(c1, "slurmd")


def test_the_munge_key_is_not_in_the_repository_nor_in_what_pull_leaves(c1, site, booted):
    booted()
    key = c1.host.file(KEY)
    assert (key.user, key.group, key.mode) == ("munge", "munge", 0o400)
    piece = c1.host.check_output("base64 --wrap=0 %s | cut --bytes=9-40", KEY)
    places = "/var/lib/apptainer-fleet /etc/apptainer-fleet /root /tmp /var/tmp"
    # The pattern comes from standard input, so that it is in no list of processes.
    found = c1.host.run(f"grep --recursive --files-with-matches --file=- {places} <<'END'\n{piece}\nEND")
    assert found.rc == 1, found.stdout
    assert piece not in c1.host.check_output("journalctl --no-pager --all")


def test_a_repository_on_a_shared_file_system_need_not_belong_to_root(c1, head, site):
    """A folder of this node stands for the shared file system, which the lab does not have."""
    c1.host.check_output("git clone --quiet --bare git://head/cluster.git /shared/cluster.git")
    c1.host.check_output("chown --recursive alice: /shared")
    settings = json.loads(c1.host.file(SETTINGS).content_string)
    changed = json.dumps({**settings, "repository": "/shared/cluster.git"})
    c1.host.check_output("printf %%s %s > %s", changed, SETTINGS)
    head.check_output("systemctl stop git-daemon")
    try:
        result = c1.pull()
        assert result["outcome"] == "converged", result
        # The inventory says where it is, so the next one asks there.
        assert c1.pull()["outcome"] == "unreachable"
    finally:
        head.check_output("systemctl start git-daemon")
    assert running(c1, "slurmd")


def test_a_push_after_a_pull_has_nothing_to_do(c1, playbook, site):
    c1.pull()
    result = playbook("converge.yml", "--limit=c1", "--diff")
    assert result.code == 0 and result.changed["c1"] == 0, result.output
