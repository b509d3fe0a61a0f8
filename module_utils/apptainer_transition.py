# SPDX-License-Identifier: Apache-2.0
"""apptainer.conf while one release of Apptainer takes the place of another.

A release stops every command with a word that it doesn't know for a directive: before 1.3.0 that is
``allow setuid-mount squashfs = iflimited``. Until `apptainer_config` has written the file anew, users would
see nothing else. So such lines are taken out before the packages are exchanged: of what is left both releases
take every line, or ignore it.
"""

from __future__ import annotations

import contextlib
from typing import Iterator

from . import apptainer_conf, apptainer_conf_lint, atomic_file

CONFIGURATION = "/etc/apptainer/apptainer.conf"
_NOTE = "# Taken out for Apptainer {release}, until Ansible writes this file anew: {line}"


def eased(text: str, release: str) -> str:
    """Return the apptainer.conf *text* without the lines that stop Apptainer *release*.

    Raises apptainer_conf.UnknownReleaseError.
    """
    schema = apptainer_conf.schema(release)
    result, given = text.split("\n"), set()
    for line in apptainer_conf.lines(text):
        directive = schema.get(line.name or "")
        if directive is None or directive.kind == "list" or not line.value or line.name in given:
            continue
        # The first one counts, and that may be the next, once this one is out.
        if apptainer_conf_lint.taken(directive, line.value.split(",")[0]) is None:
            result[line.number - 1] = _NOTE.format(release=release, line=line.text.strip())
        else:
            given.add(line.name)
    return "\n".join(result)


@contextlib.contextmanager
def readable_by(release: str) -> Iterator[None]:
    """Keep the node's apptainer.conf one that *release* can read, too, from here on.

    If what is done within fails, the file is again as it was. Raises OSError.
    """
    before = atomic_file.read(CONFIGURATION) or b""
    after = before
    with contextlib.suppress(apptainer_conf.UnknownReleaseError):
        after = eased(before.decode(errors="surrogateescape"), release).encode(errors="surrogateescape")
    if after != before:
        atomic_file.replace(CONFIGURATION, after, owner=(0, 0))
    try:
        yield
    except BaseException:
        if after != before:
            atomic_file.replace(CONFIGURATION, before, owner=(0, 0))
        raise
