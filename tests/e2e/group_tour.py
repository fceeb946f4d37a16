"""The tour holds what it claims; a busy machine may miss its times, so only the order is judged."""
import json
import os

from cluster import PATIENCE


def test_tour(cluster):
    path = os.path.join(cluster.parent, "tour.json")
    run = cluster.kvist("tour", "--dir", cluster.folder, "--json", path, limit_s=900 * PATIENCE)
    assert run.returncode == 0, run.stdout + run.stderr
    with open(path, encoding="utf-8") as file:
        page = json.load(file)
    rows = {row["row"]: row for row in page["rows"]}
    assert list(rows) == ["cold", "other_question", "second_turn", "after_restart",
                          "disaggregated", "colocated"], list(rows)
    cold, warm, restart = rows["cold"], rows["other_question"], rows["after_restart"]
    assert page["equalities_hold"] and warm["identical"] and restart["identical"], rows
    assert 5000 < cold["prompt_tokens"] < 7000 and cold["hit_tokens"] == 0, cold
    assert warm["hit_tokens"] > 0.98 * cold["prompt_tokens"], warm
    assert warm["hit_tokens_by_tier"]["disk"] == 0, warm
    assert rows["second_turn"]["hit_tokens"] > cold["prompt_tokens"], rows["second_turn"]
    assert restart["hit_tokens_by_tier"]["disk"] > 0.98 * cold["prompt_tokens"], restart
    assert warm["ttft_ms"] < cold["ttft_ms"] and restart["ttft_ms"] < cold["ttft_ms"], rows
    assert rows["disaggregated"]["tpot_max_ms"] < rows["colocated"]["tpot_max_ms"], rows
    for title in ("One long context", "A running decode"):
        assert title in run.stdout, run.stdout
    assert len(cluster.alive()) == 4, cluster.alive()
