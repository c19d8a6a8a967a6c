"""What a Python function uses to be started by Headstart.

A function that Headstart starts holds its listening socket and its backends' connections from its first instruction on;
this module receives them, and tells the agent how far the function is.
"""

from ._function import Backend, Function, Injected, attach, run
from ._wire import HeadstartError

__all__ = ["Backend", "Function", "HeadstartError", "Injected", "attach", "run"]
