"""The commands on a list of nodes and a model of playbooks; what plans are refused for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner
from rich.console import Console
from rollout_fakes import make_plan

from fleet.errors import FleetError
from fleet.playbook import PlaybookResult
from fleet.rollout import cli, controller, planner, steps
from fleet.rollout.driver import Result
from fleet.rollout.journal import Journal, Lock, is_locked
from fleet.rollout.model import Plan, Seen, Settings, Step
from fleet.rollout.nodelist import NodeList
from fleet.rollout.planner import Planner, Wish
from fleet.rollout.site import Site

PROJECT = Path(__file__).parents[2]
HOSTS = """\
all:
  vars: {slurm_cluster_name: tiny}
  children:
    apptainer:
      hosts: {n1: {ansible_host: 10.0.0.1, ansible_user: admin, ansible_become: true}, n2: , n3: , n4: }
"""


@pytest.fixture
def inventory(tmp_path):
    folder = tmp_path / "inventory"
    folder.mkdir()
    (folder / "hosts.yml").write_text(HOSTS)
    return folder


class Playbooks:
    """Steps that succeed, but for what a test says."""

    bad: ClassVar[dict[str, str]] = {}
    calls: ClassVar[list[tuple[str, tuple[str, ...]]]] = []

    def __init__(self, *_):
        pass

    def wait_for_orphans(self):
        pass

    def run(self, _plan, step, nodes, _folder):
        self.calls.append((step.name, tuple(nodes)))
        return Result({name: "broken" for name in nodes if self.bad.get(name) == step.name})


@pytest.fixture
def rollout(inventory, tmp_path, monkeypatch):
    """Run ``fleet rollout`` on a cluster without scheduler."""
    names = ["n1", "n2", "n3", "n4"]
    made = make_plan(
        names,
        id="",
        cluster="tiny",
        inventories=(str(inventory),),
        scheduler={"kind": "list", "host": "localhost"},
        settings=Settings(unavailable={"*": "100%"}, gather=0, poll=1),
        before={"1.4.5": "n[1-4]"},
        version="1.4.6",
    )
    monkeypatch.setattr(controller, "Playbooks", Playbooks)
    monkeypatch.setattr(cli, "_make_plan", lambda *_, **__: made)

    def planned(_self, wish, *_):
        return make_plan(
            wish.nodes,
            id="",
            cluster="tiny",
            inventories=(str(inventory),),
            version=wish.version,
            adopts=wish.adopts,
            scheduler={"kind": "list", "host": "localhost"},
            settings=wish.settings,
        )

    monkeypatch.setattr(cli.Planner, "plan", planned)
    monkeypatch.setattr("fleet.rollout.driver.SHORTEST", 0.0)
    monkeypatch.setattr(Playbooks, "bad", {})
    monkeypatch.setattr(Playbooks, "calls", [])

    def run(*arguments, said=None):
        where = ["--state", str(tmp_path / "state")]
        if "--plan" not in arguments:
            where += ["-i", str(inventory)]
        result = CliRunner().invoke(cli.rollout, [*arguments, *where], input=said)
        if isinstance(result.exception, FleetError):
            return 1, f"{result.output}{result.exception}"
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    run.home = tmp_path / "state/tiny"
    return run


def test_from_start_to_page(rollout):
    code, said = rollout("start", "--to", "1.4.6", "--yes")
    assert code == 0 and "4/4" in said and "complete" in said
    assert [name for name, _ in Playbooks.calls] == ["apply", "verify"] * 3
    code, said = rollout("status", "--json")
    assert code == 0
    assert json.loads(said)["stages"] == {"done": "n[1-4]"}
    assert rollout("status")[0] == 0
    code, said = rollout("history", "--json")
    assert (code, [row["status"] for row in json.loads(said)]) == (0, ["complete"])
    code, said = rollout("report")
    assert code == 0 and "lost node-hours" in Path(said.strip()).read_text()
    code, said = rollout("resume")
    assert code == 0 and "has ended: complete; nothing to do" in said


def test_nobody_begins_without_being_asked(rollout):
    code, said = rollout("start", "--to", "1.4.6")
    assert code == 1 and "--yes" in said
    assert not Playbooks.calls


def test_a_failed_node_is_three_and_can_be_tried_again(rollout):
    Playbooks.bad = {"n3": "verify"}
    code, said = rollout("start", "--to", "1.4.6", "--yes")
    assert code == 3 and "n3: verify: broken" in said
    assert rollout("resume")[0] == 3
    Playbooks.bad = {}
    code, said = rollout("resume", "--retry")
    assert code == 0, said
    assert Playbooks.calls[-2:] == [("apply", ("n3",)), ("verify", ("n3",))]


def test_whoever_may_not_see_the_journal_is_told_so(rollout, monkeypatch):
    is_dir = Path.is_dir

    def look(path):
        if path == rollout.home:
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", look)
    status, said = rollout("status")
    assert status == 1 and "Permission denied" in said and "--state" in said


def test_what_has_not_ended_is_gone_on_with_or_aborted_first(rollout):
    Playbooks.bad = {"n1": "apply"}
    assert rollout("start", "--to", "1.4.6", "--yes")[0] == 3
    assert rollout("status")[0] == 3
    code, said = rollout("start", "--to", "1.4.6", "--yes")
    assert code == 1 and "has not ended" in said and "abort" in said
    assert rollout("abort")[0] == 3
    code, said = rollout("abort")
    assert code == 1 and "has ended" in said


def test_a_second_controller_is_five_and_requests_reach_the_first(rollout):
    Playbooks.bad = {"n1": "apply"}
    rollout("start", "--to", "1.4.6", "--yes")
    lock = Lock(rollout.home)
    assert lock.take()
    for command in (["start", "--to", "1.4.6", "--yes"], ["resume"]):
        code, said = rollout(*command)
        assert code == 5 and f"process {os.getpid()}" in said
    assert rollout("pause")[0] == 0 and rollout("abort")[0] == 0
    lock.release()
    journal = Journal(rollout.home)
    asked = [entry.data["what"] for entry in journal.entries(journal.plan().id) if entry.kind == "request"]
    assert asked == ["pause", "abort"]
    journal.close()


def test_rollback_goes_to_the_version_of_before_with_nodes_that_failed(rollout):
    Playbooks.bad = {"n3": "verify"}
    rollout("start", "--to", "1.4.6", "--yes")
    held = json.loads((rollout.home / "held.json").read_text())
    assert list(held) == ["n3"]
    Playbooks.bad = {}
    code, said = rollout("rollback", "--yes")
    assert code == 0 and "1.4.5" in said
    assert json.loads((rollout.home / "held.json").read_text()) == {}


def test_without_a_rollout_there_is_nothing_to_show(rollout):
    code, said = rollout("status")
    assert code == 1 and "no rollout" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["start", "--yes"],
        ["start", "--yes", "--to", "1.4.6", "--tags", "apptainer"],
        ["start", "--to", "newest"],
        ["start", "--to", "1.4.6", "--max-unavailable", "0"],
        ["start", "--to", "1.4.6", "--window", "sometimes"],
        ["start", "--to", "1.4.6", "--drain-timeout", "soon"],
    ],
)
def test_wrong_usage_is_two(rollout, arguments):
    assert rollout(*arguments)[0] == 2


# --- what a plan is made of ---------------------------------------------------------------------------------


def test_how_hosts_are_reached(inventory):
    site = Site.of([inventory])
    login, user = site.login("n1")
    assert login.ssh[-3:] == ("admin", "--", "10.0.0.1") and login.become and user == "root"
    assert site.login("localhost")[0].ssh == ()
    assert (site.cluster(), site.kind("auto"), site.kind("torque")) == ("tiny", "list", "torque")


def test_the_example_has_slurm_and_its_controller():
    site = Site.of([PROJECT / "inventories/example"], check=False)
    assert site.kind("auto") == "slurm"
    assert site.scheduler_host(None) == "ctl1"
    assert planner.compute_nodes(site, "slurm")[:2] == ["n0001", "n0002"]
    with pytest.raises(FleetError, match="no host of the inventory"):
        site.scheduler_host("nobody")


def test_an_inventory_that_validate_refuses_is_refused(inventory):
    (inventory / "hosts.yml").write_text(HOSTS.replace("slurm_cluster_name: tiny", "apptainer_versoin: 1"))
    with pytest.raises(FleetError, match="apptainer_versoin"):
        Site.of([inventory])


def answer(**values):
    return PlaybookResult(**{"status": 0, "changed": {}, "failures": [], "output": "", **values})


SYSTEMS = {"n1": "debian13", "n2": "debian13", "n3": "rocky9", "n4": "rocky9"}


@pytest.fixture
def make(inventory, monkeypatch):
    """Make a plan for the site; ``runs`` are the playbooks, ``answers`` what they say."""
    runs, answers = [], {}

    def run(playbook, _inventory, _console, *, extra=(), limit=(), variables=None, wanted="", **_):
        runs.append((playbook.name, tuple(extra), tuple(limit)))
        if playbook.name in answers:
            return answers[playbook.name]
        return answer(
            results={n: {"version": "1.4.5-2", "system": SYSTEMS[n]} for n in limit} if wanted else {}
        )

    monkeypatch.setattr(planner, "run_playbook", run)

    def make(version="1.4.6", seen=None, **wish):
        site = Site.of([inventory])
        names = ("n1", "n2", "n3", "n4")
        known = {n: Seen(frozenset(["main"])) for n in names} | (seen or {})
        wanted = Wish(**{"kind": "upgrade", "nodes": names, "version": version, **wish})
        return Planner(site, Console(quiet=True)).plan(wanted, {"kind": "list"}, known, {})

    make.runs, make.answers = runs, answers
    return make


def test_a_canary_of_each_class_and_a_check_run_on_it(make):
    made = make()
    assert made.canary == ("n1", "n3") and made.batches == (("n2",), ("n4",))
    assert made.before == {"1.4.5-2": "n[1-4]"}
    assert make.runs[-1] == ("site.yml", ("--check", "--tags=apptainer"), ("n1", "n3"))


def test_a_package_that_is_missing_for_one_distribution_is_refused(make):
    make.answers["site.yml"] = answer(
        status=2, failures=["n3: Install: 1.4.6 is in no repository of this node"]
    )
    with pytest.raises(FleetError, match=r"n3: Install: 1\.4\.6 is in no repository"):
        make()


def test_a_version_with_an_open_advisory_is_refused(make):
    with pytest.raises(FleetError, match="CVE-2025-65105"):
        make("1.4.4")


def test_a_configuration_that_the_version_does_not_know_is_refused_before_nodes_are_tried(make, inventory):
    """Also where a site accepts the advisories of that release: what is wanted would not hold there."""
    policy = "tiny, apptainer_config: {allow uts ns: false}"
    (inventory / "hosts.yml").write_text(HOSTS.replace("tiny", policy))
    with pytest.raises(FleetError, match="'allow uts ns' is no directive"):
        make("1.3.6")
    assert ("site.yml", ("--check", "--tags=apptainer"), ("n1", "n3")) not in make.runs


def test_tags_that_the_playbook_has_not_are_refused_as_they_would_do_nothing(make):
    with pytest.raises(FleetError, match=r"site\.yml has no 'aptainer'") as refused:
        make("", kind="change", tags=("apptainer", "aptainer"))
    assert make.runs == [] and "apptainer, " in str(refused.value)
    assert make("", kind="change", tags=("apptainer", "node_health")).steps[0].tags


def test_a_budget_for_a_partition_that_there_is_not_is_refused(make):
    limits = Settings(unavailable={"*": "1", "gqu": "2"})
    with pytest.raises(FleetError, match="no partition gqu") as refused:
        make(settings=limits)
    assert make.runs == [] and "one of main" in str(refused.value)
    assert make(settings=Settings(unavailable={"*": "1", "main": "2"})).nodes
    # A rollback must not fail for a partition that has gone since.
    assert make(settings=limits, adopts=("fleet r1",)).nodes


def test_canaries_that_can_not_be_had_are_no_reason_to_go_without(make):
    held = {"n2": Seen(frozenset(["main"]), held=True, reason="fan", by="jdoe")}
    with pytest.raises(FleetError, match=r"none of them is left \(n2: held by jdoe: fan\)"):
        make(seen=held, canary=("n2",))
    assert make(seen=held, canary=("n1", "n2")).canary == ("n1",)
    everywhere = {n: {"version": "1.4.6-1"} for n in SYSTEMS}
    make.answers["rollout_survey.yml"] = answer(results=everywhere)
    assert make(canary=("n1",)).nodes == ()  # a second time there is nothing to do


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--canary", "n1", "--no-canary"], "exclude each other"),
        (["--canary", "n1", "--nodes", "n[2-4]"], "n1 not among the nodes"),
        (["--canary", "n1", "--exclude", "n1"], "n1 not among the nodes"),
        (["--window", "2020-01-01T00:00/2020-01-02T00:00"], "it is over"),
    ],
)
def test_options_that_contradict_each_other_are_refused(inventory, tmp_path, options, said):
    where = ["-i", str(inventory), "--state", str(tmp_path / "state")]
    ended = CliRunner().invoke(cli.rollout, ["plan", "--to", "1.4.6", *options, *where])
    assert ended.exit_code and said in f"{ended.output}{ended.exception}"
    assert not (tmp_path / "state").exists()


def test_nodes_that_have_it_are_held_down_or_unknown_are_left_out(make):
    make.answers["rollout_survey.yml"] = answer(
        results={"n1": {"version": "1.4.6-2"}, "n2": {"version": "1.4.5-2"}, "n3": {"version": "1.4.5-2"}},
        unreachable={"n4": "no  route"},
    )
    made = make(seen={"n2": Seen(held=True, reason="fan", by="jdoe"), "n3": Seen(up=False)})
    assert made.nodes == ()
    assert made.left == {
        "n1": "has 1.4.6-2 already",
        "n2": "held by jdoe: fan",
        "n3": "down, or does not answer the scheduler",
        "n4": "no route",
    }


def test_the_next_run_would_take_nodes_back_and_that_is_said(make, inventory):
    said = planner.later(make(), Site.of([inventory]))
    assert "1.4.5 for n[1-4]" in said and "change it to 1.4.6" in said
    (inventory / "hosts.yml").write_text(HOSTS.replace("tiny", "tiny, apptainer_version: 1.4.6"))
    assert planner.later(make(), Site.of([inventory])) == ""


def test_new_nodes_need_no_scheduler_that_knows_them(make):
    made = make("", kind="provision", seen={})
    assert [step.name for step in made.steps] == ["prepare", "verify", "join"]
    assert make.runs[-1][0] == "node.yml"


# --- playbooks of a controller that died --------------------------------------------------------------------


def test_a_playbook_keeps_its_lock_when_whoever_started_it_is_killed(tmp_path):
    program = tmp_path / "real"
    program.write_text("#!/bin/sh\necho $$ >> $1\nexec sleep 60\n")
    program.chmod(0o755)
    wrapper = PROJECT / "fleet/rollout/programs/ansible-playbook"
    environment = {
        **os.environ,
        "FLEET_PLAY_LOCK": str(tmp_path / "lock"),
        "FLEET_PLAY_PROGRAM": str(program),
    }
    begin = f"import subprocess, sys; subprocess.run([{str(wrapper)!r}, {str(tmp_path / 'pid')!r}])"
    parent = subprocess.Popen([sys.executable, "-c", begin], env=environment)
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert is_locked(tmp_path)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    while is_locked(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_host_that_is_gone_from_the_inventory_is_not_proved(tmp_path):
    """With the real playbook: a node that can't be reached, and one that nobody knows any more."""
    hosts = tmp_path / "hosts.yml"
    hosts.write_text(
        "apptainer: {hosts: {n1: {ansible_host: 127.0.0.1, ansible_port: 1, apptainer_version: 1.4.6}}}"
    )
    plan = make_plan(["n1", "n2"], inventories=(str(hosts),), version="1.4.6")
    found = steps.Playbooks(tmp_path).run(plan, planner.VERIFY_STEP, ["n1", "n2"], tmp_path / "r1/verify")
    assert not found.broken and set(found.unreachable) == {"n1"} and set(found.failed) == {"n2"}
    none = steps.Playbooks(tmp_path).run(plan, planner.VERIFY_STEP, ["n2"], tmp_path / "r1/again")
    assert "no hosts" in none.broken and "\x1b" not in none.broken


def test_steps_of_a_plan_are_playbooks_of_the_project():
    for kind in ("upgrade", "change", "provision"):
        for step in Wish(kind, (), "1.4.6", reboot=True).steps():
            assert step == Step("reboot") or (PROJECT / "playbooks" / step.playbook).is_file()


# --- plans that were edited, journals that were copied ------------------------------------------------------


@pytest.fixture
def edited(make, inventory, tmp_path, rollout):
    """Save a plan, change it, and try to begin with it."""
    made = make(settings=Settings(unavailable={"*": "100%"}, gather=0, poll=1))

    def begin(change=lambda _: None, *options):
        data = json.loads(made.dumps())
        change(data)
        file = tmp_path / "plan.json"
        file.write_text(json.dumps(data))
        return rollout("start", "--plan", str(file), "--yes", *options)

    return begin


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A plan that is right, and its site."""
    folder = tmp_path_factory.mktemp("inventory")
    (folder / "hosts.yml").write_text(HOSTS)
    made = make_plan(
        ["n1", "n2", "n3"],
        cluster="tiny",
        steps=Wish("upgrade", (), "1.4.6").steps(),
        version="1.4.6",
        inventories=(str(folder),),
    )
    site = Site.of([folder])
    planner.examine(made, site)
    return made, site


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plan: plan.update(adopts=[""]), "adopts"),
        (lambda plan: plan.update(adopts=["fleet "]), "adopts"),
        (lambda plan: plan["batches"][0].append("n9"), "the inventory has no n9"),
        (lambda plan: plan["batches"][0].append("n1"), "n1 twice"),
        (lambda plan: plan["steps"].pop(), "its steps are none of a upgrade"),
        (lambda plan: plan["steps"][0].update(playbook="../evil.yml"), "its steps are none"),
        (lambda plan: plan["settings"].update(failures="many"), "failures is no number"),
        (lambda plan: plan["settings"].update(poll=0), "less than a second"),
        (lambda plan: plan["settings"].update(unavailable={"*": "0"}), "neither a number"),
        (lambda plan: plan["settings"].update(windows=["always"]), "no window"),
        (lambda plan: plan.update(version="1.4.4"), "CVE-2025-65105"),
        (lambda plan: plan.update(version=""), "there is no 'upgrade'"),
        (lambda plan: plan.update(cluster="other"), "for cluster other"),
        (lambda plan: plan.update(scheduler={"kind": "lsf"}), "no scheduler 'lsf'"),
        (lambda plan: plan.update(canary=[["n1"]]), "can't be carried out"),
    ],
)
def test_a_plan_that_was_edited_into_nonsense_is_refused(example, change, said):
    made, site = example
    data = json.loads(made.dumps())
    change(data)
    with pytest.raises(FleetError, match="can't be carried out") as refused:
        planner.examine(Plan.loads(json.dumps(data)), site)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan.update(more=1),
        lambda plan: plan.pop("settings"),
        lambda plan: plan.update(inventories=7),
        lambda plan: plan.update(adopts=["fleet "]),
    ],
)
def test_what_is_no_plan_is_refused_before_anything(edited, change):
    code, output = edited(change)
    assert code == 1 and "plan" in output, output
    assert not Playbooks.calls


def test_a_plan_may_be_edited_into_sense(edited):
    code, said = edited(lambda plan: plan["settings"].update(failures=3))
    assert code == 0, said


@pytest.mark.parametrize("option", [("--to", "1.4.6"), ("--max-failures", "1"), ("--reboot",)])
def test_options_that_a_saved_plan_makes_meaningless_are_refused(edited, option):
    code, said = edited(lambda _: None, *option)
    assert code == 2 and f"leave {option[0]} out" in said


def test_a_copy_of_a_journal_is_not_gone_on_with_while_the_original_is_there(rollout, inventory, tmp_path):
    Playbooks.bad = {"n1": "apply"}
    assert rollout("start", "--to", "1.4.6", "--yes")[0] == 3
    copied, where = tmp_path / "copy/tiny", ["-i", str(inventory), "--state", str(tmp_path / "copy")]
    shutil.copytree(rollout.home, copied)
    result = CliRunner().invoke(cli.rollout, ["resume", *where])
    assert isinstance(result.exception, FleetError) and f"copy of {rollout.home}" in str(result.exception)
    # One that was moved is gone on with.
    shutil.rmtree(rollout.home)
    Playbooks.bad = {}
    assert CliRunner().invoke(cli.rollout, ["resume", "--retry", *where]).exit_code == 0


def test_an_old_rollout_that_is_tried_again_and_dies_has_not_ended(rollout):
    Playbooks.bad = {"n3": "verify"}
    rollout("start", "--to", "1.4.6", "--yes")
    Playbooks.bad = {}
    rollout("start", "--to", "1.4.6", "--yes")
    journal = Journal(rollout.home)
    _, old = (plan.id for plan in journal.rollouts())
    journal.write(old, "run", pid=1, host="x", command="resume")
    assert controller.unfinished(journal).id == old
    with controller.locked(journal):
        assert journal.at_work() == old
    assert journal.at_work() == ""
    journal.close()


def test_a_disk_that_is_full_for_what_plays_say_ends_it_with_four(rollout, monkeypatch):
    def run(*_):
        raise OSError(28, "No space left on device", "stdout")

    monkeypatch.setattr(Playbooks, "run", run)
    code, said = rollout("start", "--to", "1.4.6", "--yes")
    assert code == 4 and "No space left" in said and "resume" in said


def test_without_room_for_its_page_a_rollout_is_complete_all_the_same(rollout, monkeypatch):
    def write(*_):
        raise FleetError("page: No space left on device")

    monkeypatch.setattr(controller, "write_report", write)
    code, said = rollout("start", "--to", "1.4.6", "--yes")
    assert code == 0 and "No space left" in said


def test_a_reboot_that_no_scheduler_makes_is_refused_before_nodes_are_asked(inventory, tmp_path):
    options = ["--to", "1.4.6", "--reboot", "-i", str(inventory), "--state", str(tmp_path / "s")]
    result = CliRunner().invoke(cli.rollout, ["plan", *options])
    assert isinstance(result.exception, FleetError) and "nobody reboots nodes" in str(result.exception)


@pytest.mark.parametrize(("mode", "wanted"), [(0o2770, 0o660), (0o700, 0o600)])
def test_a_folder_of_a_group_has_files_for_the_group(tmp_path, mode, wanted):
    base, before = tmp_path / "state", os.umask(0o077)
    try:
        base.mkdir()
        base.chmod(mode)
        home = base / "tiny"
        Journal(home).close()
        assert Lock(home).take()
        held = NodeList(home / "held.json", {"all": ["n1"]})
        held.drain(["n1"], "x", make_plan(["n1"]))
    finally:
        os.umask(before)
    for name in ("journal.sqlite", "lock", "held.json"):
        assert (home / name).stat().st_mode & 0o777 == wanted, name
