"""The pages on migrations: the variables they give are known, and the inventories they show are taken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from fleet.validate import Severity, check_inventory
from fleet.validate.vocabulary import GROUPS

PROJECT = Path(__file__).parents[2]
PAGES = sorted((PROJECT / "docs").glob("migrate-from-*.md"))
ROLES = {file.parts[-3] for file in PROJECT.glob("roles/*/meta/argument_specs.yml")}
INVENTORY = "all: {children: {apptainer: {hosts: {'n[1:3]': }}}}\n"


def known() -> set[str]:
    """Every variable of every role."""
    return {
        name
        for role in ROLES
        for name in yaml.safe_load((PROJECT / f"roles/{role}/meta/argument_specs.yml").read_text())[
            "argument_specs"
        ]["main"]["options"]
    }


def test_there_are_three_pages() -> None:
    assert [page.stem for page in PAGES] == [
        *("migrate-from-deepops", "migrate-from-puppet", "migrate-from-singularity"),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_variable_that_a_page_gives_is_known(page: Path) -> None:
    # What stands for theirs is in the first column of tables.
    text = "\n".join(
        line.split("|", 2)[-1] if line.startswith("|") else line for line in page.read_text().splitlines()
    )
    roles = "|".join(sorted(ROLES, key=len, reverse=True))
    found = set(re.findall(rf"`((?:{roles})_[a-z_]+)[`:]", text)) - set(GROUPS)
    assert found and found <= known(), found - known()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_inventory_that_a_page_shows_has_nothing_to_mend(page: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    ours = [block for block in blocks if re.search(r"^apptainer_version:", block, re.MULTILINE)]
    assert len(ours) == 1
    (tmp_path / "hosts.yml").write_text(INVENTORY)
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/all.yml").write_text(ours[0])
    wrong = [one for one in check_inventory([tmp_path], PROJECT) if one.severity is Severity.ERROR]
    assert wrong == []


def test_what_the_example_of_puppet_becomes_is_what_the_table_says() -> None:
    text = (PROJECT / "docs/migrate-from-puppet.md").read_text()
    theirs, ours = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[:2])
    given = {name.removeprefix("apptainer::"): value for name, value in theirs.items()}
    made = ours["apptainer_config"]
    assert ours["apptainer_version"] == given["version"]
    assert (ours["apptainer_profile"] == "rootless") is not given["install_setuid"]
    assert made["mount home"] is (given["mount_home"] == "yes") and made["bind path"] == given["bind_paths"]
    assert made["max loop devices"] == given["max_loop_devices"]
    assert ours["user_namespaces_subordinate_start"] == given["namespace_begin_id"]
    # Puppet counts from 0 to this one.
    assert ours["user_namespaces_subordinate_count"] == given["namespace_id_range"] + 1
