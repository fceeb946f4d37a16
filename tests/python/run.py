#!/usr/bin/env python3
"""The Python package's tests: every test_*.py here, on the `kvist` that Python finds (the installed
wheel, or PYTHONPATH=build/python) and a real kvist-store.

usage: run.py [--bin FOLDER] [NAME...]
  --bin FOLDER   where kvist-store is (default: build/bin)
  NAME...        modules, classes or cases, such as test_store or test_store.Match; without: all

The last line is "python: N passed, N failed, N skipped".
"""
import argparse
import os
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", default=os.path.join(ROOT, "build", "bin"))
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    os.environ["KVIST_BIN"] = os.path.abspath(arguments.bin)
    loader = unittest.TestLoader()
    if arguments.names:
        suite = loader.loadTestsFromNames(arguments.names)
    else:
        suite = loader.discover(HERE, pattern="test_*.py")
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite)
    failed = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    skipped = len(result.skipped)
    passed = result.testsRun - failed - skipped
    print(f"python: {max(passed, 0)} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
