#!/usr/bin/env python3
"""The connector on the real vLLM, end to end: real engines, a real kvist-store, small models.

usage: run.py --python PYTHON [--build FOLDER] [--keep] [GROUP or CASE...]

PYTHON is one that has vLLM (tools/vllm/environment makes it). First come the unit tests of the
connector (group `units`: test_*.py, which need vLLM's own classes). Each other group is a file
group_NAME.py with functions test_*(bench); a group shares one bench (bench.py); its why_not() says
why it cannot run here. Engines start in about two seconds: they are forked from a process that has
vLLM imported. A case that fails shows why. The seed is printed; KVIST_SEED repeats it,
KVIST_TEST_LONG=1 gives full sizes. The last line is
"vllm: N passed, N failed, N skipped".
"""
from __future__ import annotations

import argparse
import glob
import importlib
import inspect
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import unittest
from types import ModuleType
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from bench import Bench  # noqa: E402
from engines import Nest  # noqa: E402


def cases_of(module: ModuleType) -> list[Any]:
    cases = [member for name, member in inspect.getmembers(module, inspect.isfunction)
             if name.startswith("test_") and member.__module__ == module.__name__]
    return sorted(cases, key=lambda case: case.__code__.co_firstlineno)


def run_case(label: str, case: Any, bench: Bench) -> str:
    """passed, failed or skipped."""
    begun = time.monotonic()
    try:
        case(bench)
    except unittest.SkipTest as reason:
        print(f"skipped  {label}: {reason}", flush=True)
        return "skipped"
    except Exception as error:  # a failed case must not hide the others
        print(f"FAILED   {label}, {time.monotonic() - begun:.1f} s", flush=True)
        if isinstance(error, AssertionError) and str(error):
            places = [place for place in traceback.extract_tb(error.__traceback__)
                      if os.path.basename(place.filename).startswith("group_")]
            where = f"{os.path.basename(places[-1].filename)}:{places[-1].lineno}: " if places \
                else ""
            print("         " + f"{where}{error}".replace("\n", "\n         "), flush=True)
        else:
            traceback.print_exc(file=sys.stdout)
        return "failed"
    print(f"ok       {label}, {time.monotonic() - begun:.1f} s", flush=True)
    return "passed"


class Runner:
    def __init__(self, arguments: argparse.Namespace, folder: str) -> None:
        self.arguments, self.folder = arguments, folder
        self.build = os.path.abspath(arguments.build)
        self.models = os.path.join(folder, "models")
        self.seed = int(os.environ.get("KVIST_SEED") or random.SystemRandom().randrange(1 << 32))
        self.long = os.environ.get("KVIST_TEST_LONG") == "1"
        self.passed = self.failed = self.skipped = 0
        self.nest: Nest | None = None

    def units(self) -> None:
        environment = dict(os.environ, PYTHONPATH=os.path.join(self.build, "python"),
                           KVIST_BIN=os.path.join(self.build, "bin"))
        run = subprocess.run([self.arguments.python, os.path.join(HERE, "units.py")],
                             env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, check=False)
        counts = re.search(r"^units: (\d+) passed, (\d+) failed, (\d+) skipped$", run.stdout, re.M)
        passed, failed, skipped = map(int, counts.groups()) if counts else (0, 1, 0)
        if failed or run.returncode:
            print(run.stdout)
            failed = max(failed, 1)
        print(f"{'FAILED  ' if failed else 'ok      '} vllm.units: {passed} passed, {failed} "
              f"failed, {skipped} skipped", flush=True)
        self.passed, self.failed = self.passed + passed, self.failed + failed
        self.skipped += skipped

    def prepare(self) -> None:
        """What engines are made from."""
        print(f"seed {self.seed}; again: KVIST_SEED={self.seed}", flush=True)
        self.nest = Nest(self.arguments.python, self.folder, os.path.join(self.build, "python"),
                         models=self.models)

    def group(self, name: str, module: ModuleType, cases: list[Any]) -> None:
        assert self.nest is not None
        bench = Bench(self.nest, os.path.join(self.build, "bin"), self.models, self.seed, self.long,
                      self.arguments.model)
        failed_before = self.failed
        try:
            for case in cases:
                outcome = run_case(f"vllm.{name}.{case.__name__[5:]}", case, bench)
                setattr(self, outcome, getattr(self, outcome) + 1)
        finally:
            bench.close(keep=self.arguments.keep and self.failed > failed_before)


def planned(names: list[str]) -> tuple[list[tuple[str, ModuleType, list[Any]]], set[str], int]:
    """The groups with their cases that are asked for, what of the names is none, cases skipped."""
    plan, known, skipped = [], {"units"}, 0
    for path in sorted(glob.glob(f"{HERE}/group_*.py")):
        name = os.path.basename(path)[6:-3]
        module = importlib.import_module("group_" + name)
        cases = cases_of(module)
        known |= {name, *(case.__name__ for case in cases)}
        if names and name not in names:
            cases = [case for case in cases if case.__name__ in names]
        reason = module.why_not() if hasattr(module, "why_not") else None
        if cases and reason is not None:
            print(f"skipped  vllm.{name}, {len(cases)} cases: {reason}", flush=True)
            skipped += len(cases)
        elif cases:
            plan.append((name, module, cases))
    return plan, set(names) - known, skipped


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--python", required=True, help="a Python that has vLLM")
    parser.add_argument("--build", default=os.path.join(HERE, "../../build"),
                        help="the folder of bin/kvist-store and python/kvist (default: build)")
    parser.add_argument("--model", help="SmolLM2-135M-Instruct as vLLM reads it; without it the "
                        "cases that need it are skipped")
    parser.add_argument("--keep", action="store_true", help="keep the logs of groups that failed")
    parser.add_argument("names", nargs="*", help="groups (units, reuse, ...) or cases (test_...)")
    arguments = parser.parse_args()
    # Who is told to end, as when a limit of time has passed, ends what it has started too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    plan, unknown, skipped = planned(arguments.names)
    with tempfile.TemporaryDirectory(prefix="kvist-vllm-", dir="/tmp") as folder:
        runner = Runner(arguments, folder)
        runner.skipped = skipped
        if unknown:
            print(f"FAILED   there is no group or case {', '.join(sorted(unknown))}")
            runner.failed += 1
        if not arguments.names or "units" in arguments.names:
            runner.units()
        try:
            if plan:
                runner.prepare()
            for name, module, cases in plan:
                runner.group(name, module, cases)
        finally:
            if runner.nest is not None:
                runner.nest.close()
    print(f"vllm: {runner.passed} passed, {runner.failed} failed, {runner.skipped} skipped")
    return 1 if runner.failed else 0


if __name__ == "__main__":
    sys.exit(main())
