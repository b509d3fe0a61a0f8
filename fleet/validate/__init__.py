"""Node-free validation of an inventory against what the roles accept.

Everything is found from files on the controller: no node is contacted and nothing is written.  The layers,
each usable without the one below it in this list:

* :mod:`.findings`  what a check says, and how people read it
* :mod:`.written`   the inventory's YAML files as written: every variable, group and host with file and line
* :mod:`.vocabulary` what may be written: the roles' argument_specs, the lab's variables, the functional
  groups
* :mod:`.resolve`   what Ansible makes of it: groups, precedence and templates, by Ansible's own code
* :mod:`.rules`     the rules
"""

from fleet.validate.findings import Finding, Severity, report
from fleet.validate.rules import check_inventory

__all__ = ["Finding", "Severity", "check_inventory", "report"]
