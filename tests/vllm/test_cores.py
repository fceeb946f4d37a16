"""The store's threads do not stay on the core that vLLM binds a worker's first thread to."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import unittest

# Alone: to import the package takes vLLM, and seconds.
CORES = pathlib.Path(__file__).resolve().parents[2] / "python" / "kvist" / "vllm" / "cores.py"
ASKED = """
import os, runpy, sys, threading
os.sched_setaffinity(0, {int(os.environ["CORE"])})
runpy.run_path(sys.argv[1])["leave_team"]()
seen = []
thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
thread.start()
thread.join()
print(sorted(seen[0]))
"""


def threads_cores(**environment: str) -> list[int]:
    """Where a thread may run that was started after leave_team, by a process bound to one core."""
    core = min(os.sched_getaffinity(0))
    answer = subprocess.run(
        [sys.executable, "-c", ASKED, str(CORES)],
        env={**os.environ, "CORE": str(core), **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [int(each) for each in answer.stdout.strip("[]\n").split(",")]


class CoresTest(unittest.TestCase):
    def test_a_bound_worker_leaves_the_team(self) -> None:
        self.assertEqual(threads_cores(GOMP_CPU_AFFINITY="0"), sorted(os.sched_getaffinity(0)))

    def test_what_somebody_else_bound_stays(self) -> None:
        self.assertEqual(threads_cores(), [min(os.sched_getaffinity(0))])


if __name__ == "__main__":
    unittest.main()
