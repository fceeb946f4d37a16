#!/usr/bin/env python3
"""Every kernel of kernels/cuda/ was run by the tests beside this, each variant of a template too.

The stand-in writes which kernels a program has, and how often each ran (kernels/simt/launched.h).
Of all programs together none may have run not once, and none that the sources define may be
missing: a kernel that nobody launches is none that a program has.

usage: every_kernel.py --sources FOLDER REPORT...
"""
import argparse
import collections
import pathlib
import re
import sys


def defined(folder):
    """Names of the sources' kernels, each with its file."""
    names = {}
    for source in sorted(folder.glob("*.cu")):
        text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", source.read_text(), flags=re.S)
        text = re.sub(r"__launch_bounds__\s*\([^()]*\)", " ", text)
        found = re.findall(r"__global__\s+void\s+(\w+)\s*\(", text)
        if len(found) != text.count("__global__"):
            sys.exit(f"{source}: a __global__ function that this test cannot read the name of")
        names.update(dict.fromkeys(found, source.name))
    return names


def runs_of(report):
    """How often each kernel of a program ran; variants that a compiler gives one name, numbered."""
    runs, seen = {}, collections.Counter()
    for line in report.read_text().splitlines():
        count, name = line.split(" ", 1)
        seen[name] += 1
        runs[name if seen[name] == 1 else f"{name} ({seen[name]})"] = int(count)
    return runs


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sources", type=pathlib.Path, required=True)
    parser.add_argument("reports", type=pathlib.Path, nargs="+", metavar="REPORT")
    arguments = parser.parse_args()
    runs = collections.Counter()
    for report in arguments.reports:
        runs.update(runs_of(report))
    launched = {re.split(r"[< ]", name)[0] for name in runs}
    failures = [f"{name} of {source}: no program launches it"
                for name, source in defined(arguments.sources).items() if name not in launched]
    failures += [f"{name}: no test runs it" for name, count in sorted(runs.items()) if count == 0]
    for failure in failures:
        print(f"[  FAILED  ] {failure}")
    print(f"{len(launched)} kernels in {len(runs)} variants, {sum(runs.values())} runs")
    print(f"[  FAILED  ] {len(failures)} test(s)" if failures else "[  PASSED  ] 1 test(s)")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
