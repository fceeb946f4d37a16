#!/usr/bin/env python3
"""The gateway as applications meet it: the official API clients, unchanged, and schemathesis with
docs/openapi.json, against a real one-machine cluster with the real model.

usage: run.py [--bin FOLDER] [--keep] [NAME...]
  --bin FOLDER   where Kvist's programs are (default: build/bin)
  --keep         keeps the logs of a run that failed
  NAME...        modules, classes or cases, such as test_openai or test_openai.Chat; without: all

Run it with the Python of tools/venv --clients. The last line is
"clients: N passed, N failed, N skipped".
"""
import argparse
import os
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [HERE, os.path.join(ROOT, "tests", "e2e")]

import service  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", default=os.path.join(ROOT, "build", "bin"))
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    loader = unittest.TestLoader()
    with service.running(arguments.bin, arguments.keep) as outcome:
        if arguments.names:
            suite = loader.loadTestsFromNames(arguments.names)
        else:
            suite = loader.discover(HERE, pattern="test_*.py")
        result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite)
        outcome.good = result.wasSuccessful()
    failed = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    skipped = len(result.skipped)
    passed = result.testsRun - failed - skipped
    print(f"clients: {max(passed, 0)} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
