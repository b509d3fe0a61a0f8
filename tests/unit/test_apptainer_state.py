"""The variables of the role apptainer, checked together."""

import pytest
from ansible.errors import AnsibleFilterError

from module_utils import apptainer_conf, apptainer_profiles, apptainer_state, apptainer_version

REPOSITORY = {"url": "https://example.org/apt/", "suite": "stable", "component": "main", "key": "/k.asc"}


KEY = "5994BE54C31CF1B5E1994F987C52CF6D055F072B"
GROUP = {"name": "site", "dirpath": "/opt/containers", "fingerprints": [KEY]}
ECL = {"execgroups": [GROUP]}


def state(version="1.4.5", profile="rootless", repository=REPOSITORY, config=None, **options):
    if profile == "enforced":
        options.setdefault("ecl", ECL)
    return apptainer_state.desired_state(version, profile, repository, {"config": config, **options})


def test_rootless_has_no_setuid_and_says_so_in_the_configuration():
    desired = state()
    assert (desired["version"], desired["release"], desired["suid"]) == ("1.4.5", "1.4.5", False)
    assert desired["config"] == {"allow setuid": "no", "allow user ns": "yes"}


@pytest.mark.parametrize("profile", ["enforced", "compatible"])
def test_the_other_profiles_have_the_setuid_starter(profile):
    desired = state(version="1.4.5-2", profile=profile)
    assert (desired["version"], desired["release"], desired["suid"]) == ("1.4.5-2", "1.4.5", True)
    assert desired["config"]["allow setuid"] == "yes"


def test_the_site_has_its_say():
    desired = state(config={"bind path": ["/a", "/b:/c"], "mount hostfs": True}, nv_libraries=["libcuda.so"])
    assert desired["config"]["bind path"] == ["/a", "/b:/c"] and desired["config"]["mount hostfs"] == "yes"
    assert desired["nv_libraries"] == ["libcuda.so"] and "ecl" not in desired


def test_a_profile_sets_only_what_the_release_knows():
    assert "allow user ns" not in state(version="1.3.6")["config"]
    assert state(version="1.2.5", profile="enforced")["config"]["allow setuid-mount squashfs"] == "yes"
    assert state(version="1.3.0", profile="enforced")["config"]["allow setuid-mount squashfs"] == "iflimited"


@pytest.mark.parametrize(
    ("profile", "setting"),
    [
        (profile, setting)
        for profile, data in apptainer_profiles.PROFILES.items()
        for setting in data.settings
    ],
)
def test_what_contradicts_a_profile_is_refused_and_what_it_leaves_open_is_not(profile, setting):
    directive, values = setting.directive, apptainer_conf.schema("1.4.5")[setting.directive].choices
    for value in values:
        if value in setting.values or setting.open:
            assert state(profile=profile, config={directive: value})["config"][directive] == value
            continue
        with pytest.raises(
            apptainer_state.StateError,
            match=f"^apptainer_config: '{directive}' is {value}, .* is '{profile}'",
        ):
            state(profile=profile, config={directive: value})


@pytest.mark.parametrize(
    ("ecl", "message"),
    [
        (None, "the list is not set, but apptainer_profile is 'enforced'"),
        ({"enabled": False}, "the list is off, but"),
        ({"enabled": False, "execgroups": [GROUP]}, "the list is off, but"),
        ({"execgroups": [{**GROUP, "mode": "whitelist"}]}, "execgroup 1 .site. has mode whitelist, but"),
    ],
)
def test_enforced_needs_a_strict_list(ecl, message):
    with pytest.raises(apptainer_state.StateError, match=f"^apptainer_ecl: {message}"):
        state(profile="enforced", ecl=ecl)
    # Where it binds nobody anyway, a site does as it likes.
    assert state(profile="compatible", ecl=ecl)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "1.4"}, "apptainer_version: '1.4' is no version"),
        ({"version": 1.4}, "apptainer_version: 1.4 is no version"),
        ({"version": "v1.4.5"}, "apptainer_version: 'v1.4.5'"),
        ({"version": "1.4.5; reboot"}, "apptainer_version: "),
        ({"version": "1.9.0"}, "apptainer_version: the directives of Apptainer 1.9.0 are not known"),
        ({"profile": "paranoid"}, "apptainer_profile: 'paranoid' is none of rootless, enforced, compatible"),
        (
            {"ecl": {"execgroups": [{**GROUP, "mode": "all"}]}},
            r"apptainer_ecl: execgroups\[1\].mode: must be",
        ),
        (
            {"capabilities": {"users": {"a": ["CAP_NET"]}}},
            r"apptainer_capabilities: users.a\[1\]: 'CAP_NET' is",
        ),
        ({"remotes": [{"name": "x", "uri": "https://x"}]}, r"apptainer_remotes: \[1\].uri: must be"),
        ({"nv_libraries": ["lib cuda.so"]}, r"apptainer_nv_libraries: \[1\]: must be a program"),
        ({"rocm_libraries": ["../x"]}, r"apptainer_rocm_libraries: \[1\]: must be"),
        ({"dmtcp": {"bins": []}}, "apptainer_dmtcp: bins: there is no such key"),
        ({"config": {"alow setuid": False}}, "apptainer_config: 'alow setuid' .*did you mean 'allow setuid'"),
        ({"repository": {**REPOSITORY, "key": ""}}, "apptainer_repository: has no key"),
        (
            {"repository": {"url": "https://example.org/", "suite": "stable"}},
            "apptainer_repository: has no key, component",
        ),
        ({"repository": {**REPOSITORY, "url": "example.org"}}, "apptainer_repository: url"),
        ({"repository": {**REPOSITORY, "suite": "a\nTrusted: yes"}}, "apptainer_repository: suite"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_of_the_variable(change, message):
    with pytest.raises(apptainer_state.StateError, match=message):
        state(**change)


def test_a_repository_of_rpm_packages_has_neither_suite_nor_component():
    assert state(repository={"url": "https://example.org/el9/", "key": "/k.asc"})


def test_all_problems_are_told_at_once():
    with pytest.raises(apptainer_state.StateError) as error:
        state(profile="x", repository={"url": "y"}, config={"z": 1}, ecl={"enabled": True})
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        "apptainer_repository",
        "apptainer_profile",
        "apptainer_config",
        "apptainer_ecl",
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


FILE = {"url": "https://x/apptainer.deb", "sha256": "0" * 64}
TREE = {"package_files": [FILE], "tree": {"path": "/sw/apptainer"}}


@pytest.mark.parametrize(
    ("profile", "repository", "sources", "problem"),
    [
        (
            "rootless",
            {},
            {"package_files": [{**FILE, "sha256": "1"}]},
            "apptainer_package_files: [0]: https://x/",
        ),
        ("rootless", {}, {"package_files": [FILE, FILE]}, "is there twice"),
        ("rootless", {}, {"package_files": [{**FILE, "file": "/x.deb"}]}, "has to have one of file"),
        ("rootless", {}, {"package_files": [{"file": "x.deb", "sha256": "0" * 64}]}, "is not absolute"),
        (
            "rootless",
            {},
            {"package_files": [{**FILE, "url": "https://x/a.tar.gz"}]},
            "is no package by its name",
        ),
        (
            "rootless",
            REPOSITORY,
            {"package_files": [FILE]},
            "apptainer_repository: apptainer_package_files or",
        ),
        ("rootless", REPOSITORY, TREE, "apptainer_repository: apptainer_package_files or apptainer_tree"),
        (
            "rootless",
            {},
            {"tree": {"path": "/sw/apptainer"}},
            "apptainer_tree: it is made of apptainer_package_files",
        ),
        (
            "rootless",
            {},
            {**TREE, "tree": {"path": "/sw"}},
            "apptainer_tree: path /sw must be a directory of its own",
        ),
        (
            "enforced",
            {},
            TREE,
            "apptainer_tree: apptainer_profile is 'enforced', which needs the setuid starter",
        ),
        ("compatible", {}, TREE, "apptainer_tree: apptainer_profile is 'compatible'"),
        (
            "rootless",
            {},
            {**TREE, "replace_singularity": True},
            "apptainer_tree: apptainer_replace_singularity",
        ),
    ],
)
def test_ways_to_install_that_contradict_each_other_are_refused(profile, repository, sources, problem):
    with pytest.raises(apptainer_state.StateError) as error:
        apptainer_state.desired_state("1.4.5", profile, repository, {"config": {}, "ecl": ECL}, sources)
    assert any(problem in one for one in error.value.problems), error.value.problems


def test_each_way_to_install_by_itself_is_good():
    archive = [{**FILE, "url": "https://x/a.tar.gz"}]
    for sources in ({"package_files": [FILE]}, TREE, {**TREE, "package_files": archive}):
        assert (
            apptainer_state.desired_state("1.4.5", "rootless", {}, {"config": {}}, sources)["suid"] is False
        )
