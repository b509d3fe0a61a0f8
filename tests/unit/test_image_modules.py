"""What users see of images: scripts that are run here, and module files that Tcl reads if it is there."""

import os
import shutil
import subprocess

import pytest

from module_utils import image_declaration, image_modules

SOURCE = f"docker://quay.io/org/tool@sha256:{'a1' * 32}"
NASTY = 'it\'s $HOME [exit 3] {a} \\ "quoted" `id`'


def declared(**more):
    (image,) = image_declaration.read([{"name": "tool", "version": "1.2", "source": SOURCE, **more}])
    return image


def run_command(tmp_path, image, command, *arguments):
    """What apptainer would be called with."""
    program = tmp_path / "apptainer"
    program.write_text('#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done\n')
    program.chmod(0o755)
    script = tmp_path / "command"
    script.write_text(image_modules.command(image, command, "/srv/tool_1.2.sif"))
    script.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    ended = subprocess.run(
        [script, *arguments], env={"PATH": path}, capture_output=True, text=True, check=True
    )
    return ended.stdout.splitlines()


def test_a_command_runs_its_program_in_the_image(tmp_path):
    image = declared(commands=[{"name": "t", "program": NASTY}], options=["--nv", NASTY])
    (command,) = image.commands
    assert run_command(tmp_path, image, command, "a b", "$x") == [
        *["exec", "--nv", NASTY, "/srv/tool_1.2.sif", NASTY, "a b", "$x"]
    ]


def test_a_runscript_is_run(tmp_path):
    image = declared(commands=[{"name": "t", "runscript": True}])
    (command,) = image.commands
    assert run_command(tmp_path, image, command, "a") == ["run", "/srv/tool_1.2.sif", "a"]


def test_each_image_has_commands_and_a_module_file():
    image = declared(commands=["a", "b"])
    files = image_modules.files([image], "/srv", "/srv/commands", "/srv/modules")
    assert sorted(files) == [
        *["/srv/commands/tool/1.2/a", "/srv/commands/tool/1.2/b", "/srv/modules/tool/1.2"]
    ]
    module = files["/srv/modules/tool/1.2"]
    assert module.startswith("#%Module1.0\n") and 'prepend-path PATH "/srv/commands/tool/1.2"' in module
    assert 'setenv "TOOL_IMAGE" "/srv/tool_1.2.sif"' in module
    assert all(image_modules.MARK in text for text in files.values())


def test_without_commands_the_path_is_left_alone():
    assert "PATH" not in image_modules.module_file(declared(), "/srv/x.sif", "/srv/commands")


@pytest.mark.parametrize(("name", "variable"), [("r-base", "R_BASE_IMAGE"), ("7zip", "_7ZIP_IMAGE")])
def test_the_variable_is_one(name, variable):
    assert image_modules.variable(name) == variable


TCL = """
proc module-whatis {text} { puts "whatis: $text" }
foreach word {conflict setenv prepend-path} { proc $word {args} {} }
source [lindex $argv 0]
ModulesHelp
"""


@pytest.mark.skipif(
    shutil.which("tclsh") is None, reason="there is no Tcl here; molecule/images has both programs"
)
def test_a_description_is_a_text_and_no_program(tmp_path):
    (tmp_path / "module").write_text(
        image_modules.module_file(declared(description=NASTY), "/srv/x.sif", "/c")
    )
    (tmp_path / "read.tcl").write_text(TCL)
    argv = ["tclsh", tmp_path / "read.tcl", tmp_path / "module"]
    ended = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert ended.stdout == f"whatis: {NASTY}\n" and ended.stderr.startswith(f"{NASTY}\nImage: /srv/x.sif\n")


def test_only_files_of_our_own_are_found(tmp_path):
    image = declared()
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool/1.2").write_text(image_modules.module_file(image, "/x", "/y"))
    (tmp_path / "tool/1.3").write_text("#%Module1.0\n# a site's own\n")
    (tmp_path / "tool/link").symlink_to("1.2")
    assert list(image_modules.own(str(tmp_path))) == [str(tmp_path / "tool/1.2")]
    assert list(image_modules.own(str(tmp_path / "none"))) == []
