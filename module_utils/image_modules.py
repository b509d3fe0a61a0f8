# SPDX-License-Identifier: Apache-2.0
"""What users of images see: a command for each program, and a module file that puts them into their PATH.

A command is a script of two lines that runs the program in the image. Module files are in the language Tcl,
which Environment Modules and Lmod both read. All of it is plain text, the same on every node.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Dict, Iterator, Sequence

from .image_declaration import Command, Declared

#: In the second line of each file; what has it may be changed and removed, and nothing else.
MARK = "# Ansible writes this file (apptainer-fleet): what is changed here is lost."


def command(declared: Declared, wanted: Command, image: str) -> str:
    """Return the script for a command of the image at the path *image*."""
    action = ["exec", *declared.options, image, wanted.program]
    if not wanted.program:
        action = ["run", *declared.options, image]
    words = " ".join(map(shlex.quote, action))
    return f'#!/bin/sh\n{MARK}\nexec apptainer {words} "$@"\n'


def module_file(declared: Declared, image: str, commands: str) -> str:
    """Return the module file of an image; *image* is its path, *commands* the folder of its commands."""
    names = ", ".join(one.name for one in declared.commands)
    about = declared.description or f"container image {declared.file_name}"
    help_text = f"{about}\nImage: {image}" + (f"\nCommands: {names}" if names else "")
    lines = [
        "#%Module1.0",
        MARK,
        f"proc ModulesHelp {{ }} {{ puts stderr {_tcl(help_text)} }}",
        f"module-whatis {_tcl(about)}",
        # Another version of the same image would hide this one's commands.
        f"conflict {_tcl(declared.name)}",
        f"setenv {_tcl(variable(declared.name))} {_tcl(image)}",
    ]
    if declared.commands:
        lines.append(f"prepend-path PATH {_tcl(commands)}")
    return "\n".join(lines) + "\n"


def variable(name: str) -> str:
    """Return the environment variable that says where an image is, ``PYTHON_IMAGE`` for ``python``."""
    word = "".join(c if c.isalnum() and c.isascii() else "_" for c in name.upper())
    return f"{'_' if word[0].isdigit() else ''}{word}_IMAGE"


def _tcl(text: str) -> str:
    """Return a text as one word of Tcl in which nothing is replaced."""
    escaped = "".join(f"\\{c}" if c in '\\"$[]{}' else c for c in text).replace("\n", "\\n")
    return f'"{escaped}"'


def files(images: Sequence[Declared], store: str, commands: str, modules: str) -> Dict[str, str]:
    """Return all files of *images*, which are in the folder *store*: path → text."""
    result: Dict[str, str] = {}
    for declared in images:
        image = f"{store}/{declared.file_name}"
        folder = f"{commands}/{declared.name}/{declared.version}"
        for one in declared.commands:
            result[f"{folder}/{one.name}"] = command(declared, one, image)
        result[f"{modules}/{declared.name}/{declared.version}"] = module_file(declared, image, folder)
    return result


def own(folder: str) -> Iterator[str]:
    """Yield the files below *folder* that this program has written, on whatever node. Raises OSError."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            if not path.is_symlink() and path.is_file() and MARK in _beginning(path):
                yield str(path)


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(len(MARK) * 2).decode("utf-8", "replace")
