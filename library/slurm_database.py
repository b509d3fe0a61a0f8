#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the database of slurmdbd in MariaDB on this node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slurm_database
short_description: Have the database and the user of slurmdbd in MariaDB on this node
description:
  - The proof comes first. If the user of slurmdbd can use the database, nothing is done.
  - Without O(password) MariaDB knows the user by the process that asks (C(unix_socket)); there is no secret.
  - A password stands in no argument of a program, and in no log.
options:
  database:
    description: Its name.
    type: str
    default: slurm_acct_db
  password:
    description: The password of the user C(slurm).
    type: str
    default: ''
attributes:
  check_mode:
    support: full
    description: On a node without MariaDB, the database is predicted to be made.
  diff_mode:
    support: none
    description: Rows of a database and a password are not shown.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Have the database
  slurm_database:
    database: slurm_acct_db
"""

RETURN = r"""
changed:
  description: Whether the database or its user was not there, or not usable.
  returned: always
  type: bool
"""

import pwd

from ansible.module_utils import slurm_accounting, slurm_conf
from ansible.module_utils.basic import AnsibleModule

CLIENT = "mariadb"


def usable(module: AnsibleModule, database: str, password: str) -> bool:
    """Whether the user slurm can write into the database, as it will be asked to."""
    program = module.get_bin_path(CLIENT)
    try:
        pwd.getpwnam(slurm_accounting.USER)
    except KeyError:
        return False
    if not program:
        return False
    proof = [f"--database={database}", "--execute=CREATE TEMPORARY TABLE proof (id INT)"]
    user = f"--user={slurm_accounting.USER}"
    if not password:
        switch = ["runuser", "--user", slurm_accounting.USER, "--"]
        return module.run_command([*switch, program, "--no-defaults", user, *proof])[0] == 0
    # The client reads its password from this file, which is its standard input and not on any disk.
    settings = f"[client]\npassword='{password}'\n"
    return module.run_command([program, "--defaults-file=/dev/stdin", user, *proof], data=settings)[0] == 0


def run(module: AnsibleModule) -> dict:
    database, password = module.params["database"], module.params["password"]
    sql = slurm_accounting.statements(database, password)
    if usable(module, database, password):
        return {"changed": False}
    if not module.check_mode:
        program = module.get_bin_path(CLIENT, required=True)
        code, _, errors = module.run_command([program, "--batch"], data=sql)
        if code:
            module.fail_json(msg=f"MariaDB refuses root: {errors.strip()}")
        if not usable(module, database, password):
            module.fail_json(msg=f"MariaDB does not let the user slurm into {database} of this node")
    return {"changed": True}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "database": {"type": "str", "default": slurm_accounting.DEFAULT_DATABASE},
            "password": {"type": "str", "default": "", "no_log": True},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except slurm_conf.SlurmConfError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
