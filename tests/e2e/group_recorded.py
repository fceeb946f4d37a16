"""store.trace_file: what a decode node records, kvist sim replays, with the hits of the cluster."""
import json
import os
from concurrent.futures import ThreadPoolExecutor

from cluster import Cluster, prose, wait_until

BLOCK = 16
_seen = []  # (prompt tokens, answer's tokens, cached tokens) of each recorded request


class Recording(Cluster):
    def __init__(self, binaries):
        super().__init__(binaries)
        self.trace = os.path.join(self.parent, "trace.jsonl")
        self.options += ("--model", os.environ["KVIST_MODEL"], "--embedded",
                         f"--store.trace_file={self.trace}")

    def lines(self):
        """Written within moments of the answer."""
        def all_written():
            with open(self.trace, encoding="utf-8") as file:
                return len(file.readlines()) >= len(_seen)
        wait_until(all_written, 20, f"{len(_seen)} lines in the trace")
        with open(self.trace, encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def ask(self, question, **fields):
        answer = self.chat(question, max_tokens=4, **fields)
        assert answer.code == 200, answer.error()
        return answer

    def ask_recorded(self, question, **fields):
        answer = self.ask(question, **fields)
        usage = answer.usage
        _seen.append((usage["prompt_tokens"], usage["completion_tokens"], answer.cached))
        return answer


def make_cluster(binaries):
    return Recording(binaries)


def simulated(cluster):
    told = cluster.kvist("sim", "--json", "--quiet", "--policy", "lru", "--device", "4000",
                         cluster.trace)
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)


def check_as_seen(cluster):
    """All fits, here and there: hits are equal, to the block. A prompt of whole blocks is one off:
    its last token is always computed (docs/operations.md)."""
    assert all(prompt % BLOCK for prompt, _, _ in _seen), _seen
    told = simulated(cluster)
    assert told["requests"] == len(_seen) and told["block_tokens"] == BLOCK, told
    lru = next(run for run in told["runs"] if run["policy"] == "lru")
    cached = sum(cached for _, _, cached in _seen)
    assert lru["hit_blocks"] * BLOCK == cached > 0, (lru, _seen)


def test_hits_are_what_the_cluster_saw(cluster):
    contexts = [prose(seed, 200) for seed in (901, 902)]
    for question in ("Who wrote it?", "What was it about, in short?", "Who wrote it?"):
        for context in contexts:
            cluster.ask_recorded(f"{context} {question}")
    cluster.ask_recorded(f"{contexts[0]} Who wrote it?", kvist={"salt": "another"})
    cluster.ask(contexts[0], kvist={"cache_mode": "bypass"})  # looks nothing up
    assert [line["input_length"] for line in cluster.lines()] == [seen[0] for seen in _seen]
    assert [line["output_length"] for line in cluster.lines()] == [seen[1] for seen in _seen]
    assert _seen[-1][2] == 0 and _seen[-3][2] > 0, _seen
    check_as_seen(cluster)


def test_a_restart_goes_on(cluster):
    first = cluster.ask_recorded(prose(905, 200) + " Who wrote it?")
    before = cluster.lines()
    cluster.down()
    cluster.up()
    again = cluster.ask_recorded(prose(905, 200) + " Who wrote it?")
    after = cluster.lines()
    assert after[:-1] == before and after[-1]["hash_ids"] == before[-1]["hash_ids"], after
    assert first.cached < again.cached, (first.usage, again.usage)
    check_as_seen(cluster)


def test_requests_that_overlap(cluster):
    """Lines come as requests end, and are replayed as they arrived."""
    def ask(number):
        return cluster.ask_recorded(prose(910 + number, 40 * number) + " Tell me more.")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(1, 5)))
    assert len(cluster.lines()) == len(_seen)
    assert simulated(cluster)["requests"] == len(_seen)


def test_the_metrics_tell(cluster):
    cluster.ask_recorded("How are you?")
    cluster.lines()
    page = cluster.kvist("metrics", "decode-0", "--dir", cluster.folder).stdout
    assert "kvist_trace_lines_total" in page, page[:2000]
    assert "kvist_trace_lines_dropped_total" not in page
