"""The database goes to a server on another host, which this project does not set up."""

import json
import secrets
import subprocess

import pytest
from conftest import wait_for

PASSWORD = f"a;b!{secrets.token_hex(8)}"
#: What whoever runs the server does: it listens to others, and knows user slurm of slurmdbd's host.
SERVER = """\
set -e
cat > /etc/mysql/mariadb.conf.d/99-site.cnf <<'END'
[mariadb]
bind-address = 0.0.0.0
innodb_lock_wait_timeout = 900
END
systemctl restart mariadb
mariadb <<'END'
CREATE OR REPLACE USER slurm@'%s' IDENTIFIED BY '%s';
GRANT ALL ON slurm_acct_db.* TO slurm@'%s';
END
"""


@pytest.fixture(scope="module")
def elsewhere(playbook, tmp_path_factory):
    """Run the playbook for a database on ctl2, with a password."""

    def run(password, *options):
        inventory = tmp_path_factory.mktemp("elsewhere") / "elsewhere.yml"
        values = {"slurm_accounting_database_host": "ctl2", "slurm_accounting_password": password}
        inventory.write_text(json.dumps({"all": {"vars": values}}))
        return playbook("converge.yml", "--tags=slurm", f"--inventory={inventory}", *options)

    return run


@pytest.fixture(scope="module")
def moved(node, lab_state):
    """The server, with all that was accounted for until now; slurmdbd waits."""
    address = node("db").check_output("hostname --all-ip-addresses").split()[0]
    script = SERVER % (address, PASSWORD, address)
    ssh = f"ssh -F {lab_state}/ssh_config"
    subprocess.run([*ssh.split(), "ctl2", "bash"], input=script, text=True, check=True)
    node("db").check_output("systemctl stop slurmdbd")
    dump = f"{ssh} db mariadb-dump --single-transaction --databases slurm_acct_db | {ssh} ctl2 mariadb"
    subprocess.run(["bash", "-c", f"set -o pipefail; {dump}"], check=True)


@pytest.mark.usefixtures("moved")
def test_a_wrong_password_fails_the_run_and_says_so(elsewhere):
    result = elsewhere("wrong")
    said = " ".join(result.output.split())
    assert result.code != 0 and "slurmdbd is not let into its database" in said, result.output
    assert "Access denied for user" in said


@pytest.mark.usefixtures("moved")
def test_jobs_of_before_and_after_are_in_it(node, alice, elsewhere):
    result = elsewhere(PASSWORD, "--diff")
    assert result.code == 0 and PASSWORD not in result.output, result.output
    node("db").check_output("systemctl stop mariadb")
    job = alice("sbatch --parsable --wait --output=/dev/null --wrap='exit 4'; true")
    show = "sacct --noheader --parsable2 --allocations --starttime=now-1day --format=JobID,State,ExitCode"
    wait_for(lambda: f"{job}|FAILED|4:0" in alice(show).split(), 60, lambda: alice(show))
    assert min(int(line.split("|")[0]) for line in alice(show).split()) < int(job)
    asked = "mariadb --skip-column-names --execute 'SELECT exit_code FROM slurm_acct_db.cluster_job_table "
    assert node("ctl2").check_output(f"{asked} WHERE id_job = {job}'").strip() == "1024"


def test_the_password_is_slurmdbds_alone(node):
    file = node("db").file("/etc/slurm/slurmdbd.conf")
    assert (file.mode, file.user) == (0o600, "slurm") and PASSWORD in file.content_string
    said = node("db").check_output("journalctl --quiet --no-pager; cat /var/lib/apptainer-fleet/*.json")
    assert PASSWORD not in said


def test_a_run_after_it_changes_nothing(elsewhere):
    result = elsewhere(PASSWORD)
    assert result.code == 0 and set(result.changed.values()) == {0}, result.output
