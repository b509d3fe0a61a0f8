# SPDX-License-Identifier: Apache-2.0
"""One executable file of modules of this project, for programs that stay on a node.

The modules are those that the program imports, and those that they import, as they came to the node with an
Ansible module. So a program is the same code that judges everything else, and no second copy of it anywhere.
The file is a zip archive that Python runs (PEP 441), the same octets for the same code.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import zipfile
from typing import Dict, Iterator

_PACKAGE = "apptainer_fleet"


def bundle(main: str) -> bytes:
    """Return the program that runs ``main()`` of the module *main* beside this one."""
    sources = _sources(main)
    starter = f"import sys\n\nfrom {_PACKAGE}.{main} import main\n\nsys.exit(main())\n"
    files = {"__main__.py": starter, f"{_PACKAGE}/__init__.py": ""}
    files.update({f"{_PACKAGE}/{name}.py": text for name, text in sources.items()})
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in sorted(files):
            # Without a time of its own, and without compression, which differs between releases.
            archive.writestr(zipfile.ZipInfo(name), files[name])
    return target.getvalue()


def _sources(main: str) -> Dict[str, str]:
    """Return the source of *main* and of all modules beside it that it needs, by name."""
    result: Dict[str, str] = {}
    wanted = [main]
    while wanted:
        name = wanted.pop()
        if name not in result:
            module = importlib.import_module(f".{name}", __package__)
            result[name] = inspect.getsource(module)
            wanted.extend(_imported(result[name]))
    return result


def _imported(source: str) -> Iterator[str]:
    """Yield the names of modules that a source imports from its own package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            if node.module is None:
                yield from (alias.name for alias in node.names)
            else:
                yield node.module
