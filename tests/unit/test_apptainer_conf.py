"""apptainer.conf: the data against upstream's source, and what Apptainer would ignore or misread."""

import json
from pathlib import Path

import pytest

from module_utils import apptainer_conf, apptainer_conf_releases

# Release → directive → [Go type, default, authorized], taken from the struct tags in upstream's config.go.
UPSTREAM = json.loads((Path(__file__).parent / "data" / "apptainer-conf-matrix.json").read_text())
KINDS = {"uint": "number", "[]string": "list", "string": "text", "bool": "choice"}


@pytest.mark.parametrize("release", UPSTREAM)
def test_the_directives_of_a_release_are_those_of_upstream(release):
    ours = {
        name: (
            directive.kind,
            ",".join(directive.default) if directive.kind == "list" else directive.default,
            list(directive.choices),
        )
        for name, directive in apptainer_conf.schema(release).items()
    }
    theirs = {
        name: ("choice" if authorized else KINDS[kind], default or "", authorized or [])
        for name, (kind, default, authorized) in UPSTREAM[release].items()
        if name != "suidbinary path"
    }
    assert ours == theirs


def test_every_release_of_the_data_was_compared_with_upstream():
    assert set(apptainer_conf_releases.RELEASES) <= set(UPSTREAM)


def test_every_directive_says_what_it_does():
    for directives in apptainer_conf_releases.expand().values():
        assert all(directive.about.endswith(".") for directive in directives.values())


@pytest.mark.parametrize("release", ["1.4.3", "1.5.99"])
def test_a_patch_release_has_the_directives_of_the_last_one_known(release):
    assert "allow user ns" in apptainer_conf.schema(release)


@pytest.mark.parametrize("release", ["0.9.9", "1.6.0", "2.0.0"])
def test_a_series_that_nobody_has_read_is_refused(release):
    with pytest.raises(
        apptainer_conf.UnknownReleaseError, match=r"add an entry to .*apptainer_conf_releases\.py"
    ):
        apptainer_conf.schema(release)


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("allow setuid", False, "no"),
        ("allow setuid", "yes", "yes"),
        ("mount dev", "minimal", "minimal"),
        ("enable overlay", True, "yes"),
        ("max loop devices", 16, "16"),
        ("max loop devices", "016", "16"),
        ("max loop devices", 2**64 - 1, str(2**64 - 1)),
        ("bind path", "/opt", ("/opt",)),
        ("bind path", [], ()),
        ("bind path", ["/a", "/b:/c"], ("/a", "/b:/c")),
        ("image driver", " name ", "name"),
        ("image driver", "", ""),
    ],
)
def test_values_become_what_apptainer_reads(name, given, taken):
    assert apptainer_conf.check({name: given}, "1.4.5") == {name: taken}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("alow setuid", True, "did you mean 'allow setuid'"),
        ("Allow Setuid", True, "did you mean 'allow setuid'"),
        ("allow  setuid", True, "did you mean 'allow setuid'"),
        ("allow_setuid", True, "did you mean 'allow setuid'"),
        ("\ufeffallow setuid", True, "did you mean 'allow setuid'"),
        ("apptheus socket path", "/run/x", "did you mean 'apptheus communication socket path'"),
        ("completely different", True, "is no directive of Apptainer 1.4.5; Apptainer would ignore it"),
        ("cryptsetup path", "/sbin/cryptsetup", "but of 1.0.0 until 1.1.0"),
        ("allow kernel extfs", False, "SingularityCE.*see 'allow setuid-mount extfs'"),
        ("suidbinary path", "/bin", "set by Apptainer itself"),
        (7, True, "'7' is no directive"),
        ("allow setuid", "no # for now", "exactly one of yes, no"),
        ("allow setuid", "yes,no", "exactly one of yes, no"),
        ("allow setuid", "No", "exactly one of yes, no"),
        ("allow setuid", "", "exactly one of yes, no"),
        ("allow setuid", None, "exactly one of yes, no"),
        ("allow setuid", 1, "exactly one of yes, no"),
        ("allow setuid", [True], "exactly one of yes, no"),
        ("mount dev", "min", "yes, no, minimal"),
        ("memory fs type", True, "tmpfs, ramfs"),
        ("max loop devices", -1, "whole number"),
        ("max loop devices", "16 # few", "whole number"),
        ("max loop devices", "16M", "without a unit"),
        ("max loop devices", 1.5, "whole number"),
        ("max loop devices", True, "whole number"),
        ("max loop devices", "٣", "whole number"),
        ("max loop devices", 2**64, "whole number"),
        ("image driver", "a,b", "comma"),
        ("image driver", "a # b", "comment"),
        ("image driver", "# b", "comment"),
        ("image driver", "a\nallow setuid = yes", "one line"),
        ("image driver", "a\rb", "one line"),
        ("image driver", ["a"], "must be text"),
        ("binary path", "", "leave it out"),
        ("bind path", ["/a,/b"], "comma"),
        ("bind path", ["/a", ""], "empty item"),
        ("bind path", [7], "must be text"),
        ("bind path", {"/a": "/b"}, "list of text"),
        ("bind path", ["/scratch:/scratch:ro"], "would be writable"),
        ("bind path", ["scratch"], "absolute"),
        ("limit container paths", ["/a #b"], "comment"),
    ],
)
def test_what_apptainer_would_ignore_or_misread_is_refused(name, value, message):
    with pytest.raises(apptainer_conf.ConfigError, match=message):
        apptainer_conf.check({name: value}, "1.4.5")


@pytest.mark.parametrize(
    ("release", "name", "value"),
    [
        ("1.1.0", "allow setuid-mount extfs", False),
        ("1.2.5", "allow setuid-mount squashfs", "iflimited"),
        ("1.2.5", "enable underlay", "preferred"),
        ("1.3.6", "allow user ns", True),
    ],
)
def test_a_setting_of_a_later_release_is_refused_in_an_earlier_one(release, name, value):
    with pytest.raises(apptainer_conf.ConfigError):
        apptainer_conf.check({name: value}, release)
    apptainer_conf.check({name: value}, "1.4.0")


def test_all_problems_are_told_at_once():
    with pytest.raises(apptainer_conf.ConfigError) as error:
        apptainer_conf.check({"alow setuid": True, "mount dev": "maybe", "mount sys": True}, "1.4.5")
    assert [problem.split("'")[1] for problem in error.value.problems] == ["alow setuid", "mount dev"]


def test_a_file_without_a_list_has_none_of_its_defaults():
    assert apptainer_conf.parse("", "1.4.5")["bind path"] == ()
    assert apptainer_conf.complete({}, "1.4.5")["bind path"] == ("/etc/localtime", "/etc/hosts")


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("allow setuid = no\r\n", "allow setuid", "no"),
        ("\t allow setuid=no", "allow setuid", "no"),
        ("image driver =\nimage driver = x", "image driver", "x"),
        ("max loop devices = 0x1_0", "max loop devices", "16"),
        ("max loop devices = 020", "max loop devices", "16"),
        ("max loop devices = 0b1_0000", "max loop devices", "16"),
        ("bind path = /a, /b\nbind path = /c", "bind path", ("/a", "/b", "/c")),
    ],
)
def test_files_are_read_as_apptainer_reads_them(text, name, value):
    assert apptainer_conf.parse(text, "1.4.5")[name] == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("allow setuid = yes\n# between\nallow setuid = no\n", "line 3: .*only the first counts"),
        ("mount sys = yes\nmount dev = ,no", "line 2: .*exactly one of"),
        ("allow setuid = no # never", "line 1: .*exactly one of"),
        ("\ufeffallow setuid = no", "line 1: .*neither a comment nor a directive"),
        ("allow setuid: no", "neither a comment nor a directive"),
        ("allow\u00a0setuid = no", "neither a comment nor a directive"),
        ("apptheus socket path = /run/x", "apptheus communication socket path"),
        ("bind path = /a,,/b", "empty item"),
        ("max loop devices = 0_", "whole number"),
        ("max loop devices = 08", "a leading 0 is for octal numbers"),
        ("allow setuid = no\x1c", "exactly one of"),
        ("allow setuid =", "is empty, which Apptainer reads as its default yes"),
        ("image driver = x\nimage driver =", "line 2: .*takes nothing back; leave one"),
        ("bind path = /a\nbind path =", "line 2: .*takes nothing back; leave one"),
        ("max loop devices = +1", "whole number"),
        ("max loop devices = 1__0", "whole number"),
    ],
)
def test_a_file_that_does_not_mean_what_it_says_is_refused(text, message):
    with pytest.raises(apptainer_conf.ConfigError, match=message):
        apptainer_conf.parse(text, "1.4.5")
