# SPDX-License-Identifier: Apache-2.0
"""Brings package files of the controller to nodes that need them, for the module apptainer_package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from module_utils import apptainer_package_files


class ActionModule(ActionBase):
    """Runs the module; if it asks for files, brings them and runs it again.

    So a node that is as it should be costs one call and no file is copied for nothing, in check mode neither.
    """

    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        answer = self._execute_module(module_args=arguments, task_vars=task_vars)
        asked = answer.pop("missing_files", [])
        if asked:
            # One folder for this task, which Ansible removes when it has ended.
            self._make_tmp_path()
            files = arguments["files"]
            arguments["files"] = [self._bring(one) if one["sha256"] in asked else one for one in files]
            answer = self._execute_module(module_args=arguments, task_vars=task_vars)
        return {**result, **answer}

    def _bring(self, given: dict[str, Any]) -> dict[str, Any]:
        one = apptainer_package_files.PackageFile(given["sha256"], file=given["file"])
        try:
            apptainer_package_files.check(Path(one.file), one)
        except apptainer_package_files.PackageFileError as error:
            raise AnsibleActionFail(str(error)) from error
        except OSError as error:
            variable = apptainer_package_files.VARIABLE
            raise AnsibleActionFail(f"{variable}: {one} on the controller: {error.strerror}") from error
        target = self._connection._shell.join_path(self._connection._shell.tmpdir, one.sha256)
        self._transfer_file(one.file, target)
        return {**given, "path": target}
