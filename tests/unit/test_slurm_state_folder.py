"""Controllers that share the folder of slurmctld's state, and controllers that only seem to."""

import os
import pwd

import pytest


@pytest.fixture
def share(ansible_module):
    runner = ansible_module("slurm_state_folder")
    user = pwd.getpwuid(os.geteuid()).pw_name
    return lambda path, **more: runner(path=str(path), owner=user, **more)


def test_the_first_makes_it_once(share, tmp_path):
    predicted = share(tmp_path / "state", check=True)
    assert predicted["changed"] and not (tmp_path / "state").exists()
    made = share(tmp_path / "state")
    assert made["changed"] and (tmp_path / "state").stat().st_mode & 0o7777 == 0o700
    assert share(tmp_path / "state") == {**made, "changed": False}


def test_another_controller_finds_it(share, tmp_path):
    mark = share(tmp_path / "state")["mark"]
    assert share(tmp_path / "state", mark=mark)["changed"] is False


def test_a_folder_of_its_own_is_refused(share, tmp_path):
    mark = share(tmp_path / "first")["mark"]
    share(tmp_path / "second")
    assert "is another folder on this one: mount one" in share(tmp_path / "second", mark=mark)["msg"]
    for check in (True, False):
        result = share(tmp_path / "none", mark=mark, check=check)
        assert result["failed"] and "not there, or empty" in result["msg"]


def test_a_bare_node_in_check_mode_is_not_refused(share, tmp_path):
    assert "failed" not in share(tmp_path / "none", mark="", check=True)


def test_a_user_that_is_not_there(ansible_module, tmp_path):
    result = ansible_module("slurm_state_folder")(path=str(tmp_path / "state"), owner="no-such-user")
    assert "there is no user no-such-user" in result["msg"]
