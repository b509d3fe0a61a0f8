# SPDX-License-Identifier: Apache-2.0
"""Run a task of ``srun --container`` with Apptainer: ENVIRONMENT CONTAINER COMMAND...

The RunTimeRun of oci.conf. Slurm starts it with the environment of slurmd, and puts the task's into the file
ENVIRONMENT, each variable ended by a NUL. CONTAINER is what the user gave: an OCI bundle, or anything that
Apptainer runs.
"""

from __future__ import annotations

import json
import os
import sys


def root_of(container: str) -> str:
    """Return the root file system of a bundle, as its config.json says; what is no bundle as it is."""
    try:
        with open(f"{container}/config.json", encoding="utf-8") as file:  # noqa: PTH123 - starts sooner
            config = json.load(file)
    except OSError:
        return container
    root = config.get("root") if isinstance(config, dict) else None
    return os.path.join(container, str((root or {}).get("path") or "rootfs"))  # noqa: PTH118


def read_environment(content: bytes) -> dict[bytes, bytes]:
    """Return the variables in the content of the file."""
    entries = (entry.partition(b"=") for entry in content.split(b"\0"))
    return {name: value for name, equals, value in entries if name and equals}


def main() -> None:
    """Become Apptainer."""
    environment, container, *command = sys.argv[1:]
    with open(environment, "rb") as file:  # noqa: PTH123 - starts sooner
        variables = read_environment(file.read())
    argv = ["apptainer", "exec", root_of(container), *command]
    try:
        os.execvpe(argv[0], argv, variables)  # noqa: S606 - no shell is what is wanted
    except OSError as error:
        sys.exit(f"apptainer: {error.strerror}")


if __name__ == "__main__":
    main()
