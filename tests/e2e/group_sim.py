"""kvist sim, as somebody runs it: a small trace in, figures out, the same every time."""
import json
import os
import random
import subprocess
import xml.dom.minidom

from cluster import NoCluster


class Program(NoCluster):
    def __init__(self, binaries):
        super().__init__(binaries, "sim")
        self.trace = os.path.join(self.folder.name, "trace.jsonl")
        self.write_trace()

    def write_trace(self):
        """Conversations that grow by a block or two each time they come back."""
        chance, contexts, last = random.Random(5), {}, 0
        with open(self.trace, "w", encoding="utf-8") as file:
            for number in range(600):
                ids = contexts.setdefault(chance.randrange(60), [0])
                for _ in range(chance.randint(1, 2)):
                    last += 1
                    ids.append(last)
                file.write(json.dumps({
                    "timestamp": number * 900, "input_length": 512 * len(ids),
                    "output_length": 10, "hash_ids": ids}) + "\n")

    def run(self, *options):
        return subprocess.run([self.binary, "sim", *options], capture_output=True, text=True,
                              timeout=120, check=False)


def make_cluster(binaries):
    return Program(binaries)


def test_policies_and_sizes(program):
    figure = os.path.join(program.folder.name, "rate.svg")
    options = ("--device", "80,200", "--hints", "--half", "second", "--json", "--figure", figure,
               program.trace)
    first, second = program.run(*options), program.run(*options)
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    runs = json.loads(first.stdout)["runs"]
    rates = {(run["policy"], run["device_blocks"]): run["hit_rate"] for run in runs}
    for policy in ("lru", "s3-fifo", "gdsf", "forecast", "forecast+hints", "belady"):
        assert 0 < rates[policy, 80] <= rates[policy, 200], (policy, rates)
        assert rates[policy, 200] <= rates["belady", 200], (policy, rates)
    xml.dom.minidom.parse(figure)


def test_three_tiers(program):
    told = program.run("--device", "64", "--host", "100", "--disk", "300", "--segment", "16",
                       "--policy", "lru", program.trace)
    assert told.returncode == 0, told.stderr
    assert any(line.split()[:4] == ["64", "100", "300", "lru"]
               for line in told.stdout.splitlines()), told.stdout


def test_errors_say_what_to_change(program):
    with open(program.trace, encoding="utf-8") as file:
        lines = file.read().splitlines()
    bad = os.path.join(program.folder.name, "bad.jsonl")
    with open(bad, "w", encoding="utf-8") as file:
        file.write("\n".join([lines[0], lines[1].replace("input_length", "length")]))
    for options, code, says in (
            ((bad,), 1, ":2: input_length is missing"),
            (("/nowhere",), 1, "/nowhere"),
            (("--device", "10", program.trace), 1, "cannot hold the longest request"),
            (("--device", "x", program.trace), 2, "--device"),
            (("--policy", "clock", program.trace), 2, "there is no 'clock'"),
            (("--half", "third", program.trace), 1, "--half"),
            ((), 2, "a trace is missing")):
        told = program.run(*options)
        assert told.returncode == code and says in told.stderr, (options, told)


def test_a_load_shared_by_nodes(program):
    """kvist bench route: the same digits every time, from agents and from a trace."""
    def route(*options):
        return subprocess.run([program.binary, "bench", "route", *options], capture_output=True,
                              text=True, timeout=120, check=False)
    options = ("--agents", "8", "--requests", "300", "--device", "8000", "--json")
    first, second = route(*options), route(*options)
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    rows = {row["routing"]: row for row in json.loads(first.stdout)}
    assert list(rows) == ["one node", "prefix", "round-robin", "random"], list(rows)
    assert rows["prefix"]["points"] > rows["round-robin"]["points"], rows
    text = route("--trace", program.trace, "--device", "400", "--nodes", "2")
    assert text.returncode == 0 and "round-robin" in text.stdout, text.stdout + text.stderr
    small = route("--trace", program.trace, "--device", "4")
    assert small.returncode == 1 and "longest request" in small.stderr, small.stderr
    assert route("--nodes", "1").returncode == 2
