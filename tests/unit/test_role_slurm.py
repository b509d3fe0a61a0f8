"""What the role refuses before it does anything, and that it can be switched off; nothing is contacted."""

import pytest


@pytest.fixture
def role(check_play):
    """Run a task file of the role; return its code and output."""

    def run(tasks, heads="head: ", os_family="Debian", **variables):
        inventory = f"""
            all:
              children:
                slurm_controller: {{hosts: {{{heads}}}}}
                slurm_compute: {{hosts: {{c1: }}}}
        """
        facts = {"ansible.builtin.set_fact": {"ansible_facts": {"os_family": os_family}}}
        role = {"ansible.builtin.include_role": {"name": "slurm", "tasks_from": tasks}}
        play = {"hosts": "all", "gather_facts": False, "tasks": [facts, role]}
        return check_play(inventory, play, **variables)

    return run


def test_a_cluster_as_it_should_be_is_not_refused(role):
    code, output = role("refuse.yml")
    assert code == 0, output


def test_two_controllers_without_a_folder_for_both_are_refused(role):
    code, output = role("refuse.yml", heads="head: , head2: ")
    assert code != 0 and "group slurm_controller has 2 hosts" in output and "set slurm_state_folder" in output
    code, output = role("refuse.yml", heads="head: , head2: ", slurm_state_folder="/shared/state")
    assert code == 0, output


def test_another_operating_system_is_refused_with_the_names_of_the_nodes(role):
    code, output = role("refuse.yml", os_family="Slackware")
    assert code != 0 and "the operating system of head, c1 is of none of the families Debian" in output


@pytest.mark.parametrize("tasks", ["install.yml", "accounting.yml", "main.yml", "login.yml", "node.yml"])
def test_a_site_with_its_own_slurm_is_left_alone(check_play, tasks):
    inventory = "all: {children: {slurm_compute: {hosts: {c1: }}}}"
    role = {"ansible.builtin.import_role": {"name": "slurm", "tasks_from": tasks}}
    play = {"hosts": "all", "gather_facts": False, "tasks": [role]}
    code, output = check_play(inventory, play, slurm_manage=False)
    assert code == 0, output
    assert "ok=0 changed=0" in output
