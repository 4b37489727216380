"""Locks that a forked process can still take, and threads that it no longer has.

A fork copies the memory of a process and only one of its threads. A lock that another thread holds at that moment
stays locked in the child for ever. So a fork waits here until both locks are free, and the child gets them free.
"""

from __future__ import annotations

import os
import threading
import warnings

import torch

#: Held while torch.fx traces, for that replaces ``nn.Module.__call__`` for the whole process, and while an engine
#: compiles. Whoever takes both locks takes this one first.
TRACING = threading.RLock()
#: Held while an engine looks up or hands back what its calls share: for microseconds.
ENGINES = threading.RLock()

_in_child = False


def _before() -> None:
    TRACING.acquire()
    ENGINES.acquire()


def _after() -> None:
    ENGINES.release()
    TRACING.release()


def _after_in_child() -> None:
    global _in_child
    _in_child = True
    _after()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)


def leave_missing_threads() -> None:
    """In a forked process: one thread from now on, with a warning, where torch would wait for several.

    torch's pool of threads does not survive a fork, and its next parallel call would wait for them for ever.
    """
    if _in_child and (threads := torch.get_num_threads()) > 1:
        torch.set_num_threads(1)
        warnings.warn(
            f"this process was forked, so the {threads} threads that torch counts on are missing; it goes on with 1. "
            "For more, start processes with multiprocessing's 'spawn' or 'forkserver', or call "
            "torch.set_num_threads(1) before the fork to be rid of this warning",
            stacklevel=3,
        )
