"""Which CPUs the store's threads of a worker run on.

vLLM's CPU workers bind their OpenMP team, one thread to a core, and with it the thread that all
others are started from: without more ado copies and polls would all run on one core of those that
compute, and take it from the forward pass, while the cores that vLLM leaves free stay idle.

Threads: the one that calls, and those that it starts later. Errors: none, as this costs time alone.
"""

from __future__ import annotations

import logging
import os

logger = logging.getLogger("kvist.vllm")

BINDINGS = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES")
"""What vLLM sets for the OpenMP of a worker that it binds."""


def leave_team() -> None:
    """Lets this thread run wherever the process that started this one may, where vLLM has bound
    the worker. The kernel then finds it an idle core, if there is one."""
    if not any(name in os.environ for name in BINDINGS):
        return
    try:
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
    except OSError as error:
        logger.info("the store's threads stay on the core of the worker's first thread: %s", error)
