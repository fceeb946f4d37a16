#!/usr/bin/env python3
"""End-to-end tests: real programs, the real model, real sockets.

usage: run.py [--bin FOLDER] [--keep] [--jobs N] [--begin-within S] [GROUP or CASE...]

Each group is a file group_NAME.py with functions test_*; a group shares one cluster, which the
group's OPTIONS configure or its make_cluster(binaries) makes. Its why_not() says why it cannot run
here. A case that fails shows why and where the logs are. Groups share nothing: N of them run at a
time, each in a process of its own, whose output comes when it ends. With --begin-within groups
run in the order given, and those that have not begun after so many seconds are left out.
With KVIST_DEVICE=simt in the environment nodes compute with a GPU's kernels, played on the CPU:
slower by an order of magnitude, and limits are as much longer. The last line is
"e2e: N passed, N failed, N skipped".
"""
import argparse
import glob
import importlib
import inspect
import os
import re
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from cluster import Cluster, find_model  # noqa: E402


def cases_of(module):
    cases = inspect.getmembers(module, lambda member: inspect.isfunction(member)
                               and member.__module__ == module.__name__
                               and member.__name__.startswith("test_"))
    return sorted((function for _, function in cases), key=lambda f: f.__code__.co_firstlineno)


def run_case(label, function, cluster):
    begun = time.monotonic()
    try:
        if cluster.endpoint is None or len(cluster.alive()) < len(cluster.nodes()):
            cluster.up()
        function(cluster)
    except Exception as error:  # a failed case must not hide the others
        print(f"FAILED   {label}, {time.monotonic() - begun:.1f} s", flush=True)
        if not isinstance(error, AssertionError) or not str(error):
            traceback.print_exc(file=sys.stdout)
        else:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{os.path.basename(place.filename)}:{place.lineno}"
            print("         " + f"{where}: {error}".replace("\n", "\n         "), flush=True)
        return False
    print(f"ok       {label}, {time.monotonic() - begun:.1f} s", flush=True)
    return True


# Those that take longest begin first, so that none is left to run alone at the end.
LONGEST = ("network", "bench", "encrypted", "streams", "rolling", "demo", "tour")


def run_group_apart(group, arguments, deadline):
    """The group's output and its counts: passed, failed, skipped."""
    if time.monotonic() > deadline:
        return f"skipped  e2e.{group}: no time left (--begin-within)", (0, 0, 1)
    keep = ["--keep"] if arguments.keep else []
    run = subprocess.run([sys.executable, os.path.abspath(__file__), "--jobs", "1", "--bin",
                          arguments.bin, *keep, group], stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    lines = run.stdout.splitlines()
    counts = re.fullmatch(r"e2e: (\d+) passed, (\d+) failed, (\d+) skipped",
                          lines.pop() if lines else "")
    if counts is None:
        return f"{run.stdout}FAILED   e2e.{group} ended with {run.returncode}", (0, 1, 0)
    return "\n".join(lines), tuple(int(count) for count in counts.groups())


def run_groups_apart(groups, arguments):
    deadline = float("inf")
    if arguments.begin_within is not None:
        deadline = time.monotonic() + arguments.begin_within
        order = sorted(groups, key=arguments.names.index)
    else:
        order = sorted(groups, key=lambda group: LONGEST.index(group) if group in LONGEST
                       else len(LONGEST))
    totals = [0, 0, 0]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for done in as_completed([pool.submit(run_group_apart, group, arguments, deadline)
                                  for group in order]):
            output, counts = done.result()
            print(output, flush=True)
            totals = [total + count for total, count in zip(totals, counts)]
    print(f"e2e: {totals[0]} passed, {totals[1]} failed, {totals[2]} skipped")
    return 1 if totals[1] else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", default=os.path.join(HERE, "../../build/bin"),
                        help="the folder of the programs (default: build/bin)")
    parser.add_argument("--keep", action="store_true", help="keep the logs of groups that failed")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), metavar="N",
                        help="so many groups at a time (default: the cores, at most 4)")
    parser.add_argument("--begin-within", type=float, metavar="S",
                        help="leave out the groups, which are named, that have not begun by then")
    parser.add_argument("names", nargs="*", help="groups (doors, cache, ...) or cases (test_...)")
    arguments = parser.parse_args()
    os.environ["KVIST_MODEL"] = find_model()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    groups = [os.path.basename(path)[6:-3] for path in sorted(glob.glob(f"{HERE}/group_*.py"))]
    known = set(groups)
    chosen = [group for group in groups if group in arguments.names or not arguments.names]
    by_name = known.issuperset(arguments.names)
    if arguments.begin_within is not None and not (arguments.names and by_name):
        parser.error("--begin-within wants names of groups, and nothing but those")
    if by_name and (arguments.begin_within is not None or
                    (arguments.jobs > 1 and len(chosen) > 1)):
        return run_groups_apart(chosen, arguments)
    passed = failed = skipped = 0
    for group in groups:
        module = importlib.import_module("group_" + group)
        cases = cases_of(module)
        known |= {case.__name__ for case in cases}
        if arguments.names and group not in arguments.names:
            cases = [case for case in cases if case.__name__ in arguments.names]
        if not cases:
            continue
        reason = module.why_not() if hasattr(module, "why_not") else None
        if reason is not None:
            print(f"skipped  e2e.{group}, {len(cases)} cases: {reason}")
            skipped += len(cases)
            continue
        options = ("--model", os.environ["KVIST_MODEL"], *getattr(module, "OPTIONS", ()))
        make = getattr(module, "make_cluster", None)
        cluster = make(arguments.bin) if make else Cluster(arguments.bin, *options)
        failed_before = failed
        try:
            for case in cases:
                label = f"e2e.{group}.{case.__name__[5:]}"
                if run_case(label, case, cluster):
                    passed += 1
                else:
                    failed += 1
        finally:
            cluster.close(keep=arguments.keep and failed > failed_before)
    unknown = set(arguments.names) - known
    if unknown:
        failed += 1
        print(f"FAILED   there is no group or case {', '.join(sorted(unknown))}; groups: "
              f"{', '.join(groups)}")
    print(f"e2e: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
