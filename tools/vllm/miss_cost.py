#!/usr/bin/env python3
"""What a miss costs: time to first token of never-seen prompts, with Kvist and without.

Two servers of vLLM, alike but for the connector, get the same prompts in turn, each prompt once;
which of them goes first changes from pair to pair. The next request is sent when both and
kvist-store have come to rest, so that nobody computes, or saves, while the other is timed. Of every
prompt the server without Kvist is asked again, its prefix cache emptied: the control says how far
two runs differ where nothing does.

--busy N adds rounds of four prompts at once, where the saves of one are under way while the next is
computed: seconds until all four are answered.

usage: tools/vllm/miss_cost.py [--build FOLDER] [--prompt-tokens N] [--pairs N] [--busy N] ...
Exit status: 0; 77 where vLLM cannot be had here (tools/vllm/environment); 1 for anything else.
"""
import argparse
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from children import ChildError, Children  # noqa: E402
from client import RequestFailed  # noqa: E402
from servers import Engine, Places, Store, kvist  # noqa: E402

REST_LIMIT_S = 120
REST_WINDOW_S = 0.3
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
REST_TICKS = 1  # of the CPU's clock, that a process at rest may take in a window
TOKEN_FIRST, TOKEN_END = 1000, 40000  # ordinary ones of the small model's vocabulary
AT_ONCE = 4


def family(pid):
    """The process and all that descend from it."""
    found = [pid]
    for process in found:
        for path in pathlib.Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found.extend(int(child) for child in path.read_text().split())
            except OSError:
                continue  # it has just ended
    return found


def cpu_ticks(pid):
    """User and system time of a process and its descendants."""
    ticks = 0
    for process in family(pid):
        try:
            fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks


def wait_for_rest(children):
    """Returns when none of them has computed for a moment."""
    pids = [child.process.pid for child in children]
    end = time.monotonic() + REST_LIMIT_S
    before = [cpu_ticks(pid) for pid in pids]
    while time.monotonic() < end:
        time.sleep(REST_WINDOW_S)
        now = [cpu_ticks(pid) for pid in pids]
        if all(late - early <= REST_TICKS for early, late in zip(before, now)):
            return
        before = now
    raise ChildError(f"the servers are not at rest after {REST_LIMIT_S} s")


def spread(values):
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "quartile_1": low, "quartile_3": high}


def percent(value, base):
    return 100 * (value / base - 1)


class Comparison:
    """The measurement. Owns nothing: children end with their list."""

    def __init__(self, children, places, options):
        self.children, self.options = children, options
        self.chance = random.Random(options.seed)
        self.store = Store(children, places, options.host_bytes, "4GiB")
        self.plain = self.engine(places, "without", None)
        self.kvist = self.engine(places, "with", kvist(self.store.socket))
        self.order = [("without", self.plain), ("with", self.kvist)]

    def engine(self, places, name, transfer):
        engine = Engine(self.children, places, name, transfer, self.options.kv_gib)
        engine.command += ["--max-num-batched-tokens", str(self.options.step_tokens)]
        return engine

    def start(self):
        self.store.start()
        for _, engine in self.order:
            engine.start()
        for _, engine in self.order:
            engine.ready()
        for _, engine in self.order:
            for _ in range(2):
                self.timed(engine, self.prompt())

    def prompt(self):
        return [self.chance.randrange(TOKEN_FIRST, TOKEN_END)
                for _ in range(self.options.prompt_tokens)]

    def timed(self, engine, prompt):
        before = self.cpu_s(engine)
        answer = engine.client.complete(prompt, self.options.answer_tokens)
        after = self.cpu_s(engine)
        return {"first_token_s": answer.ttft_s, "last_token_s": answer.total_s,
                "cpu_s": after - before}

    def cpu_s(self, engine):
        """Of the server and, where it has one, its store, both at rest: what a request costs on a
        machine that does other things besides, whose clock says little."""
        wait_for_rest(self.children.running)
        children = [engine.child] + ([self.store.child] if engine is self.kvist else [])
        return sum(cpu_ticks(child.process.pid) for child in children) / TICKS_PER_S

    def pair(self, number):
        prompt = self.prompt()
        pair = {name: self.timed(engine, prompt)
                for name, engine in (self.order[::-1] if number % 2 else self.order)}
        self.plain.client.reset()
        pair["control"] = self.timed(self.plain, prompt)
        base = pair["without"]["first_token_s"]
        print(f"{number + 1:3d}  without {base:7.3f} s"
              f"  with {percent(pair['with']['first_token_s'], base):+6.2f} %"
              f"  control {percent(pair['control']['first_token_s'], base):+6.2f} %", flush=True)
        return pair

    def round(self, number):
        """Seconds until all of some prompts that are sent at once are answered, by server."""
        prompts = [self.prompt() for _ in range(AT_ONCE)]
        times = {}
        for name, engine in self.order[::-1] if number % 2 else self.order:
            wait_for_rest(self.children.running)
            threads = [threading.Thread(target=engine.client.complete, args=(prompt, 1))
                       for prompt in prompts]
            begun = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            times[name + "_s"] = time.perf_counter() - begun
        return times

    def run(self):
        self.start()
        pairs = [self.pair(number) for number in range(self.options.pairs)]
        rounds = [self.round(number) for number in range(self.options.busy)]
        return {"summary": self.summary(pairs, rounds), "pairs": pairs, "busy": rounds}

    def summary(self, pairs, rounds):
        """Medians and quartiles; per cent: of single pairs, against the run without."""
        result = {"prompt_tokens": self.options.prompt_tokens,
                  "step_tokens": self.options.step_tokens, "pairs": len(pairs)}
        for name in ("without", "with", "control"):
            result[f"{name}_first_token_s"] = spread([p[name]["first_token_s"] for p in pairs])
        for name in ("with", "control"):
            for what in ("first_token", "last_token", "cpu"):
                result[f"{name}_{what}_percent"] = spread(
                    [percent(p[name][what + "_s"], p["without"][what + "_s"]) for p in pairs])
        if rounds:
            result["busy_percent"] = spread([percent(r["with_s"], r["without_s"]) for r in rounds])
        return result


def show(summary):
    def line(title, name, unit):
        values = summary[name]
        print(f"  {title:28s} {values['median']:8.3f} {unit}  "
              f"(quartiles {values['quartile_1']:.3f} to {values['quartile_3']:.3f})")

    print(f"{summary['pairs']} pairs, never-seen prompts of {summary['prompt_tokens']} tokens, "
          f"{summary['step_tokens']} a step:")
    line("first token without Kvist", "without_first_token_s", "s")
    line("first token with Kvist", "with_first_token_s", "s")
    line("cost of a miss", "with_first_token_percent", "%")
    line("control: without, again", "control_first_token_percent", "%")
    line("cost to the last token", "with_last_token_percent", "%")
    line("processor time, saves too", "with_cpu_percent", "%")
    line("control: processor time", "control_cpu_percent", "%")
    if "busy_percent" in summary:
        line(f"{AT_ONCE} prompts at once", "busy_percent", "%")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--build", default=os.path.join(HERE, "../../build"),
                        help="folder of bin/kvist-store and python/kvist (default: build)")
    parser.add_argument("--environment", help="what tools/vllm/environment prints; it is run else")
    parser.add_argument("--prompt-tokens", type=int, default=2048)
    parser.add_argument("--answer-tokens", type=int, default=8)
    parser.add_argument("--step-tokens", type=int, default=2048,
                        help="vLLM's --max-num-batched-tokens (its own default is 2048)")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--busy", type=int, default=0, metavar="ROUNDS")
    parser.add_argument("--kv-gib", type=int, default=1, help="vLLM's own cache")
    parser.add_argument("--host-bytes", default="2GiB", help="kvist-store's host memory")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="also all single values")
    options = parser.parse_args()
    if options.pairs < 2 or options.busy == 1:
        parser.error("a spread takes two pairs, and two busy rounds, at least")
    return options


def main():
    options = arguments()
    environment = options.environment
    if environment is None:
        made = subprocess.run([os.path.join(HERE, "environment")], stdout=subprocess.PIPE,
                              text=True, check=False)
        if made.returncode != 0:
            return made.returncode
        environment = made.stdout.strip()
    folder = tempfile.mkdtemp(prefix="kvist-miss-")
    places = Places(folder, environment, os.path.join(options.build, "bin"),
                    os.path.join(options.build, "python"))
    try:
        with Children() as children:
            result = Comparison(children, places, options).run()
    except (ChildError, RequestFailed) as error:
        print(f"miss_cost: {error}\n  logs: {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    show(result["summary"])
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
