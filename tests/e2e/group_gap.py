"""The gap between the hit rate and an ideal cache's: on every workload of `kvist bench serve`, in a
cluster whose tiers are too small for it, the parts that the gateway counts add up."""
import json
import os

from cluster import wait_until
from group_why import prompt_parts

OPTIONS = ("--embedded", "--store.host_bytes=0", "--store.device_slots=96",
           "--store.disk_bytes=64MiB", "--store.segment_bytes=8MiB")
BLOCK = 16


def wait_for_names(cluster):
    """Until the gateway has heard how its nodes name their blocks, and so notes what it sees."""
    def noted():
        answer = cluster.request("/v1/completions", {"prompt": [7] * (BLOCK + 1), "max_tokens": 1})
        assert answer.code == 200, answer.error()
        page = cluster.request("/metrics").body.decode()
        return "\nkvist_gateway_ghost_blocks 0\n" not in page
    wait_until(noted, 60, "the gateway to note what it sees")


def gap_of(cluster, *workload):
    """What a workload adds: prompt tokens, of those from the cache, those of an ideal one, and of
    the ideal as its client knows it, who counts what was answered to it before."""
    before = prompt_parts(cluster)
    run = cluster.kvist("bench", "serve", *workload, "--dir", cluster.folder, "--seed", "7",
                        "--json", "-", limit_s=600)
    assert run.returncode == 0, run.stdout + run.stderr
    after = prompt_parts(cluster)
    added = {name: after[name] - before[name] for name in after}
    whole = sum(added.values())
    hit, gap, unseen = (sum(tokens for name, tokens in added.items() if name.startswith(part))
                        for part in ("cached", "gap", "unseen"))
    ideal = whole - unseen
    assert gap == ideal - hit >= 0, added
    assert ideal % BLOCK == 0, "an ideal cache has whole blocks"
    counted = [phase["tokens"] for phase in json.loads(run.stdout)["phases"]]
    told = {name: sum(tokens[name] for tokens in counted) for name in ("prompt", "hit", "ideal")}
    assert told["prompt"] <= whole and told["hit"] <= hit and told["ideal"] <= ideal, (told, added)
    return whole, hit, ideal, told["ideal"]


def test_batch(cluster):
    """One request after the other, in a cluster that has seen nothing like them: gateway and client
    count the same, whatever has been evicted."""
    wait_for_names(cluster)
    whole, hit, ideal, told = gap_of(
        cluster, "batch", "--shuffled", "--sessions", "6", "--questions", "2",
        "--prompt-tokens", "480", "--answer-tokens", "2", "--concurrency", "1")
    assert 0 <= hit <= ideal == told < whole, (whole, hit, ideal, told)


def test_agents(cluster):
    whole, hit, ideal, _ = gap_of(
        cluster, "agents", "--sessions", "3", "--turns", "3", "--pause-ms", "10", "--kinds", "1",
        "--prompt-tokens", "200", "--turn-tokens", "30", "--answer-tokens", "16",
        "--concurrency", "2")
    assert 0 < hit <= ideal < whole, (whole, hit, ideal)


def test_sweep(cluster):
    whole, hit, ideal, _ = gap_of(
        cluster, "sweep", "--requests", "4", "--prompt-tokens", "320", "--answer-tokens", "4",
        "--concurrency", "1", "--shared", "0,50")
    assert 0 < hit <= ideal < whole, (whole, hit, ideal)


def test_tree(cluster):
    whole, hit, ideal, _ = gap_of(
        cluster, "tree", "--sessions", "1", "--prompt-tokens", "200", "--answer-tokens", "18",
        "--branches", "3", "--depth", "2", "--concurrency", "1")
    assert 0 < hit <= ideal < whole, (whole, hit, ideal)


def test_trace(cluster):
    path = os.path.join(cluster.parent, "trace.jsonl")
    with open(path, "w", encoding="utf-8") as file:
        for number in range(6):
            document = number % 2
            file.write(json.dumps({"timestamp": 10 * number, "input_length": 1536 + 256,
                                   "output_length": 40, "hash_ids": [
                                       100 * document, 100 * document + 1, 100 * document + 2,
                                       1000 + number]}) + "\n")
    whole, hit, ideal, _ = gap_of(cluster, "trace", "--trace", path, "--scale", "20",
                                  "--answer-tokens", "4", "--concurrency", "1")
    assert 0 <= hit <= ideal < whole, (whole, hit, ideal)
