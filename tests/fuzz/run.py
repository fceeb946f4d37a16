#!/usr/bin/env python3
"""Runs each fuzzer for a bounded while from its seeds; the last line counts the good ones.

A finding's input stays in FOLDER/fuzz/found, and the command that replays it is printed. Inputs
that reached something new stay in FOLDER/fuzz/corpus, from where the next run goes on.

usage: run.py --build FOLDER [--seconds N] [--runs N] [--seed N] [NAME...]
"""
import argparse
import glob
import os
import re
import subprocess
import sys
import time

# Bytes of the largest input: what the thing under test takes, and a little more.
LENGTHS = {"admin": 70000, "codec": 4200, "data": 8300, "events": 9000, "frame": 4096,
           "handshake": 9000, "http": 4096, "mover": 512, "peers": 9000}


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    long = bool(os.environ.get("KVIST_TEST_LONG"))
    parser.add_argument("--build", required=True, help="folder of the build for libFuzzer")
    parser.add_argument("--seconds", type=int, default=600 if long else 10, help="of each fuzzer")
    parser.add_argument("--runs", type=int, default=-1 if long else 200_000,
                        help="inputs of each fuzzer, if that comes before the seconds are over")
    parser.add_argument("--seed", type=int, default=1, help="of libFuzzer's choices")
    parser.add_argument("names", nargs="*", metavar="NAME", help="fuzzers; without: all")
    return parser.parse_args()


def figure(log, name):
    found = re.findall(rf"stat::{name}: +(\d+)", log)
    return int(found[-1]) if found else 0


def run(chosen, name, seeds):
    """True where nothing was found."""
    work = os.path.join(chosen.build, "fuzz")
    corpus, found = os.path.join(work, "corpus", name), os.path.join(work, "found")
    os.makedirs(corpus, exist_ok=True)
    os.makedirs(found, exist_ok=True)
    program = os.path.join(chosen.build, "tests", f"fuzz_{name}")
    command = [program, f"-seed={chosen.seed}", f"-runs={chosen.runs}",
               f"-max_total_time={chosen.seconds}", f"-max_len={LENGTHS.get(name, 4096)}",
               "-timeout=20", "-rss_limit_mb=1024", "-print_final_stats=1",
               f"-artifact_prefix={found}/{name}-", corpus, os.path.join(seeds, name)]
    begun = time.monotonic()
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           errors="replace", timeout=chosen.seconds + 300, check=False)
    reached = re.findall(r"cov: (\d+)", ended.stdout)
    print(f"fuzz {name:10} {figure(ended.stdout, 'number_of_executed_units'):8} inputs "
          f"{time.monotonic() - begun:6.1f} s  coverage {reached[-1] if reached else '?'}  "
          f"{'ok' if ended.returncode == 0 else 'FOUND SOMETHING'}", flush=True)
    if ended.returncode == 0:
        return True
    print(ended.stdout[-6000:])
    for path in re.findall(r"Test unit written to (\S+)", ended.stdout):
        print(f"replay it: {program} {path}")
    print(f"seed {chosen.seed}; again: {' '.join(sys.argv)} {name}", flush=True)
    return False


def main():
    chosen = options()
    chosen.build = os.path.abspath(chosen.build)
    programs = glob.glob(os.path.join(chosen.build, "tests", "fuzz_*"))
    names = sorted(os.path.basename(path)[5:] for path in programs)
    names.remove("seeds")
    seeds = os.path.join(chosen.build, "fuzz", "seeds")
    os.makedirs(seeds, exist_ok=True)
    subprocess.run([os.path.join(chosen.build, "tests", "fuzz_seeds"), seeds], check=True)
    good = [run(chosen, name, seeds) for name in chosen.names or names]
    print(f"fuzz: {sum(good)} passed, {len(good) - sum(good)} failed")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
