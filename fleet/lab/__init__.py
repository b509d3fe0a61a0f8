"""A real cluster on one machine, described by an ordinary Ansible inventory.

``model`` reads the inventory, ``host`` looks at this machine, ``image`` and ``repository`` make what is
cached, ``network`` and ``nspawn`` make nodes, ``lab`` plans and carries out ``up`` and ``down``.
"""
