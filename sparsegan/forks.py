"""Locks that survive a fork, and a warning about the threads that do not.

A fork copies the memory of a process and one of its threads. A lock that another thread holds at that moment stays
locked in the child for ever. Every fork therefore takes both locks first, and releases them on both sides.
"""

from __future__ import annotations

import os
import threading
import warnings

import torch

#: Held while torch.fx traces, which replaces ``nn.Module.__call__`` for the whole process, and while an engine
#: compiles. Code that needs both locks takes this one first.
TRACING = threading.RLock()
#: Held for microseconds, while an engine looks up or returns a program or memory that its calls have in common.
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
    """Sets torch to one thread in a forked process that counts on several, and warns.

    torch's thread pool does not survive a fork. Its next parallel call would wait for the missing threads for ever.
    """
    if _in_child and (threads := torch.get_num_threads()) > 1:
        torch.set_num_threads(1)
        warnings.warn(
            f"this process was forked, so the {threads} threads that torch counts on are missing; it goes on with 1. "
            "For more, start processes with multiprocessing's 'spawn' or 'forkserver', or call "
            "torch.set_num_threads(1) before the fork to be rid of this warning",
            stacklevel=3,
        )
