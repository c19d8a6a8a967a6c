"""The library of Python functions that Headstart starts.

A function has its listening socket and its backend connections when it starts. This module receives them from the agent,
and reports to the agent when the function is ready and when it has served its first client.
"""

from ._function import Backend, Function, Injected, attach, run
from ._wire import HeadstartError

__all__ = ["Backend", "Function", "HeadstartError", "Injected", "attach", "run"]
