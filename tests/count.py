#!/usr/bin/env python3
"""Counts cmocka's cases in the JUnit file of a ctest run; prints "PASSED FAILED SKIPPED".

A program that ended badly without naming a failed case (a crash, a timeout, a sanitizer's report)
counts as one failed case, named on standard error.
"""
import re
import sys
import xml.etree.ElementTree as tree


def count(text, word):
    return sum(int(found) for found in re.findall(r"\[\s*%s\s*\] (\d+) test" % word, text))


def main():
    passed = failed = skipped = programs = 0
    for case in tree.parse(sys.argv[1]).getroot().iter("testcase"):
        programs += 1
        output = "".join(case.itertext())
        passed += count(output, "PASSED")
        skipped += count(output, "SKIPPED")
        named = count(output, "FAILED")
        failed += named
        if case.get("status") != "run" and named == 0:
            failed += 1
            print(f"FAILED   {case.get('name')} ended badly without naming a case",
                  file=sys.stderr)
    if programs == 0:
        failed += 1
        print("FAILED   there was no test program to run", file=sys.stderr)
    print(passed, failed, skipped)


if __name__ == "__main__":
    main()
