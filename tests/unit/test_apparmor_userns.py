"""AppArmor profiles for user namespaces, with a parser that only notes what it is asked."""

from pathlib import Path

import pytest

from module_utils import apparmor
from module_utils.apparmor import AppArmorError

STARTER, OTHER = "/usr/libexec/apptainer/bin/starter", "/opt/apptainer-1.4.5/bin/apptainer"


def test_a_profile_for_each_program_once():
    text = apparmor.render([STARTER, OTHER, STARTER])
    assert text.count(f'"{STARTER}" flags=(unconfined) {{\n  userns,\n}}\n') == 1
    assert text.startswith(apparmor.HEADER + "abi <abi/4.0>,\n") and OTHER in text


@pytest.mark.parametrize(
    "program", ["", "starter", "/a b", "/a*", "/a{b,c}", '/a"', "/a/../b", "/a/", "/a\n", "/@{x}", "/"]
)
def test_what_is_no_path_or_a_pattern_is_refused(program):
    with pytest.raises(AppArmorError, match="no absolute path"):
        apparmor.render([program])


@pytest.fixture
def node(tmp_path, monkeypatch):
    """The kernel's files, and a parser that logs and believes everything but the word `refuse`."""
    (tmp_path / "enabled").write_text("Y\n")
    (tmp_path / "profiles").write_text(f"man_filter (enforce)\n{OTHER} (unconfined)\n")
    parser = tmp_path / "apparmor_parser"
    parser.write_text(f"""#!/bin/sh
echo "$1" >> {tmp_path}/log
for last; do :; done
if grep -q refuse "$last"; then echo "syntax error in $last" >&2; exit 1; fi
if [ "$1" = --replace ]; then sed -n 's/^"\\(.*\\)" .*/\\1 (unconfined)/p' "$last" > {tmp_path}/profiles; fi
""")
    parser.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


@pytest.fixture
def module(ansible_module, node, monkeypatch):
    runner = ansible_module("apparmor_userns")
    monkeypatch.setattr(runner.plugin.apparmor, "MODULE", str(node / "enabled"))
    monkeypatch.setattr(runner.plugin.apparmor, "PROFILES", str(node / "profiles"))

    def call(programs, **options):
        return runner(path=str(node / "profile"), programs=programs, **options)

    call.plugin = runner.plugin
    return call


def log(node):
    return (node / "log").read_text().split() if (node / "log").exists() else []


def test_it_is_checked_written_loaded_and_then_left_alone(module, node):
    predicted = module([STARTER], check=True)
    assert log(node) == ["--skip-kernel-load"] and not (node / "profile").exists()
    done = module([STARTER])
    assert predicted == done and done["changed"] and done["loaded"] == [STARTER]
    assert log(node) == ["--skip-kernel-load"] * 2 + ["--replace"]
    assert (node / "profile").stat().st_mode & 0o777 == 0o644
    again = module([STARTER])
    assert not again["changed"] and again["loaded"] == [] and len(log(node)) == 3


def test_what_is_written_and_not_loaded_is_loaded(module, node):
    module([STARTER])
    (node / "profiles").write_text("")
    assert module([STARTER])["loaded"] == [STARTER] and log(node)[-1] == "--replace"
    assert not module([STARTER])["changed"]


@pytest.mark.parametrize("check", [True, False])
def test_what_the_parser_refuses_never_gets_into_the_file(module, node, check):
    module([STARTER])
    before = (node / "profile").read_text()
    result = module([STARTER, "/bin/refuse"], check=check)
    assert result["failed"] and "refuses the profiles: syntax error" in result["msg"]
    assert (node / "profile").read_text() == before


def test_without_programs_it_is_removed(module, node):
    assert not module([])["changed"]
    module([STARTER])
    assert module([], check=True)["changed"] and (node / "profile").exists()
    assert module([])["changed"] and not (node / "profile").exists() and log(node)[-1] == "--remove"


@pytest.mark.parametrize("state", ["N", None, "container"])
def test_nothing_happens_where_apparmor_is_off(module, node, state):
    if state == "container":
        (node / "profiles").unlink()
    elif state is None:
        (node / "enabled").unlink()
    else:
        (node / "enabled").write_text(state)
    result = module([STARTER])
    assert (result["changed"], result["enabled"]) == (False, False)
    assert log(node) == [] and not (node / "profile").exists()


def test_a_missing_parser_is_an_error_that_says_what_to_install(module, node, monkeypatch):
    (node / "apparmor_parser").unlink()
    monkeypatch.setattr(module.plugin.apparmor, "FOLDERS", ())
    monkeypatch.setenv("PATH", str(node))
    assert "install the package apparmor" in module([STARTER])["msg"]
    assert not Path(node, "profile").exists()
