"""The variables of the role apptainer, checked together."""

import pytest
from ansible.errors import AnsibleFilterError

from module_utils import apptainer_state, apptainer_version

REPOSITORY = {"url": "https://example.org/apt/", "suite": "stable", "component": "main", "key": "/k.asc"}


def state(version="1.4.5", profile="rootless", repository=REPOSITORY, config=None):
    return apptainer_state.desired_state(version, profile, repository, config or {})


def line(desired, name):
    return next(entry["lines"] for entry in desired["entries"] if entry["name"] == name)


def test_rootless_has_no_setuid_and_says_so_in_the_configuration():
    desired = state()
    assert (desired["version"], desired["release"], desired["suid"]) == ("1.4.5", "1.4.5", False)
    assert line(desired, "allow setuid") == ["allow setuid = no"]


@pytest.mark.parametrize("profile", ["enforced", "compatible"])
def test_the_other_profiles_have_the_setuid_starter(profile):
    desired = state(version="1.4.5-2", profile=profile)
    assert (desired["version"], desired["release"], desired["suid"]) == ("1.4.5-2", "1.4.5", True)
    assert line(desired, "allow setuid") == ["allow setuid = yes"]


def test_the_site_has_its_say():
    desired = state(config={"bind path": ["/a", "/b:/c"], "mount hostfs": True})
    assert line(desired, "bind path") == ["bind path = /a", "bind path = /b:/c"]
    assert line(desired, "mount hostfs") == ["mount hostfs = yes"]
    assert line(desired, "limit container paths") == ["# limit container paths ="]


def test_a_profile_sets_only_what_the_release_knows():
    assert all(entry["name"] != "allow user ns" for entry in state(version="1.3.6")["entries"])


@pytest.mark.parametrize("directive", ["allow setuid", "allow user ns"])
def test_a_setting_that_contradicts_the_profile_is_refused(directive):
    wrong = {"allow setuid": True, "allow user ns": False}[directive]
    with pytest.raises(
        apptainer_state.StateError, match=f"apptainer_config: '{directive}' is .* is 'rootless'"
    ):
        state(config={directive: wrong})
    assert state(config={directive: not wrong}) and state(config={directive: wrong}, profile="compatible")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "1.4"}, "apptainer_version: '1.4' is no version"),
        ({"version": 1.4}, "apptainer_version: 1.4 is no version"),
        ({"version": "v1.4.5"}, "apptainer_version: 'v1.4.5'"),
        ({"version": "1.4.5; reboot"}, "apptainer_version: "),
        ({"version": "1.9.0"}, "apptainer_version: the directives of Apptainer 1.9.0 are not known"),
        ({"profile": "paranoid"}, "apptainer_profile: 'paranoid' is none of rootless, enforced, compatible"),
        ({"config": {"alow setuid": False}}, "apptainer_config: 'alow setuid' .*did you mean 'allow setuid'"),
        ({"repository": {**REPOSITORY, "key": ""}}, "apptainer_repository: has no key"),
        (
            {"repository": {"url": "https://example.org/"}},
            "apptainer_repository: has no suite, component, key",
        ),
        ({"repository": {**REPOSITORY, "url": "example.org"}}, "apptainer_repository: url"),
        ({"repository": {**REPOSITORY, "suite": "a\nTrusted: yes"}}, "apptainer_repository: suite"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_of_the_variable(change, message):
    with pytest.raises(apptainer_state.StateError, match=message):
        state(**change)


def test_all_problems_are_told_at_once():
    with pytest.raises(apptainer_state.StateError) as error:
        state(profile="x", repository={"url": "y"}, config={"z": 1})
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        "apptainer_repository",
        "apptainer_profile",
        "apptainer_config",
    ]


def test_the_filter_passes_the_problems_on(filter_plugin):
    desired_state = filter_plugin("apptainer").FilterModule().filters()["apptainer_desired_state"]
    assert desired_state("1.4.5", "rootless", {}, {}) == state(repository={})
    with pytest.raises(
        AnsibleFilterError, match=r"^apptainer_version: .*\napptainer_profile|^apptainer_profile"
    ):
        desired_state("1", "x", {}, {})


@pytest.mark.parametrize(
    ("wanted", "package", "matches"),
    [
        ("1.4.5", "1.4.5-2", True),
        ("1.4.5", "1.4.5", True),
        ("1.4.5", "1:1.4.5-1~noble", True),
        ("1.4.5-2", "1.4.5-2", True),
        ("1.4.5-2", "1.4.5-3", False),
        ("1.4.5-2", "1.4.5", False),
        ("1.4.5", "1.4.50-1", False),
        ("1.4.5", "1.4.5~rc.1-1", False),
    ],
)
def test_a_package_of_the_release_will_do_unless_one_in_particular_is_wanted(wanted, package, matches):
    assert apptainer_version.parse(wanted).matches(package) is matches


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("apptainer version 1.4.5\n", "1.4.5"),
        ("apptainer version 1.4.5-1.el9\n", "1.4.5-1.el9"),
        ("oops", None),
    ],
)
def test_the_version_that_the_program_prints(output, version):
    assert apptainer_version.printed(output) == version
