"""Gives every Python that finds this folder on its path one more runtime: ``unruly``.

The agent is as it is installed; its table of runtimes has one line more.
"""

import device_agent.runtimes

device_agent.runtimes.RUNTIMES["unruly"] = "unruly:Unruly"
