"""Rolling a change out over a cluster: in batches, drained, verified, resumed; killed at any moment, and gone
on with.

The parts, each usable without those below it in this list:

* :mod:`.model`      the plan, what a scheduler shows of a node, what a step of it is
* :mod:`.budget`     how many nodes of a partition may be missing
* :mod:`.window`     when it may work at all
* :mod:`.journal`    what was intended and what came of it, on disk before anything is done
* :mod:`.state`      where each node is, from the journal alone
* :mod:`.engine`     what to do next, from plan, journal and what the scheduler shows; a pure function
* :mod:`.scheduler`  what is asked of a scheduler; :mod:`.slurm`, :mod:`.pbs` and :mod:`.nodelist` answer
* :mod:`.steps`      playbooks on nodes
* :mod:`.driver`     does what the engine says, and writes it down
* :mod:`.planner`    from an inventory and a wish to a plan
* :mod:`.view`, :mod:`.report`, :mod:`.cli`  for people
"""
