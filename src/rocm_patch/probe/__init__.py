"""Probes: what this stack really does, each piece of work in a process of its own.

    probes.toml --table--> rows --session--> parent --child.py--> Ending --verdict--> Trial --> Trials

`session` walks the rows, `parent` runs one child so that nothing it does reaches us, `verdict` names what happened,
`record` remembers across a reset of the machine. `child.py` is run by the user's interpreter and stands alone.
"""

from rocm_patch.probe.record import latest
from rocm_patch.probe.session import Kit, run
from rocm_patch.probe.table import Configuration, Probe, Table, load

__all__ = ["Configuration", "Kit", "Probe", "Table", "latest", "load", "run"]
