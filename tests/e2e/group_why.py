"""`kvist why`: each reason is made by real requests, and told with by whom and when."""
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time

from cluster import prose, wait_until
from group_damage import flip, segments

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "monitoring"))
import check as monitoring  # noqa: E402

# Small tiers, so that a few requests fill them; no host tier.
OPTIONS = ("--embedded", "--store.host_bytes=0", "--store.device_slots=96",
           "--store.disk_bytes=64MiB", "--store.segment_bytes=8MiB")


def complete(cluster, prompt, **fields):
    answer = cluster.request("/v1/completions",
                             {"prompt": prompt, "max_tokens": 1, "temperature": 0, **fields})
    assert answer.code == 200, answer.error()
    return answer


def why(cluster, *arguments):
    """What each node says: {node: answer}."""
    run = cluster.kvist("why", "--dir", cluster.folder, "--json", *arguments)
    assert run.returncode == 0, f"kvist why failed:\n{run.stdout}{run.stderr}"
    return {row["node"]: row for row in json.loads(run.stdout)}


def why_request(cluster, answer):
    return why(cluster, answer.json["id"])["prefill-0"]


def why_prompt(cluster, prompt, *arguments):
    with tempfile.NamedTemporaryFile("w", suffix=".txt", dir=cluster.parent) as file:
        file.write(prompt)
        file.flush()
        return why(cluster, "--text", file.name, *arguments)["prefill-0"]


def told(answer):
    return answer.usage["kvist"]["miss"]


def fill(cluster, seeds):
    """Requests that need the room of whatever was there."""
    return [complete(cluster, prose(seed, 500)).json["id"] for seed in seeds]


def prompt_parts(cluster):
    """What became of all prompt tokens, as the gateway counts them; the parts add up."""
    page = cluster.request("/metrics").body.decode()
    parts = {name: int(value) for name, value in re.findall(
        r"^kvist_gateway_((?:prompt|cached|gap|unseen)_tokens_total(?:\{[^}]*\})?) (\d+)$", page,
        re.MULTILINE)}
    whole = parts.pop("prompt_tokens_total")
    assert whole == sum(parts.values()), (whole, parts)
    return parts


def test_new_and_short(cluster):
    prompt = prose(701, 80)
    first = complete(cluster, prompt)
    row = why_request(cluster, first)
    assert told(first) == "new" and row["miss"] == "new" and row["outcome"] == "done", row
    assert 0 < row["when_unix_ns"] < time.time_ns(), row
    row = why_prompt(cluster, prompt)
    assert row["miss"] in ("short", "none") and row["cached"]["device"] > 0, row
    again = complete(cluster, prompt)
    assert told(again) in ("short", "none") and why_request(cluster, again)["miss"] == told(again)


def test_diverged_shows_both_sides(cluster):
    same = prose(702, 60)
    complete(cluster, same + " The tenth of May was a cold day in the old harbour town.")
    asked = complete(cluster, same + " The first of June was a cold day in the old harbour town.")
    row = why_request(cluster, asked)
    assert told(asked) == "new", "how far a prompt is like another's is not for clients"
    assert row["miss"] == f"diverged@{row['token']}" and row["token_known"], row
    parts = row["token"] - row["block"] * 16
    assert row["tokens"][:parts] == row["other_tokens"][:parts], row
    assert row["tokens"][parts] != row["other_tokens"][parts], row
    assert row["cached_tokens"] <= row["token"] < row["prompt_tokens"], row
    # Over a restart: out of the records.
    cluster.flush()
    cluster.down()
    cluster.up()
    again = why_prompt(cluster, same + " And then it was a third day, which nobody had foreseen.")
    assert again["miss"] == f"diverged@{again['token']}" and again["token_known"], again
    shown = cluster.kvist("why", "--dir", cluster.folder, asked.json["id"])
    assert shown.returncode == 1 and "no node knows" in shown.stderr, shown.stderr


def test_namespace_names_the_salt(cluster):
    prompt = prose(703, 80)
    complete(cluster, prompt, kvist={"salt": "ours"})
    asked = complete(cluster, prompt, kvist={"salt": "theirs", "cache_mode": "read"})
    assert told(asked) == "new", "a tenant is told nothing of another's"
    assert why_request(cluster, asked)["miss"] == "new"
    row = why_prompt(cluster, prompt, "--salt", "theirs")
    assert row["miss"] == "namespace:salt" and row["other_blocks"] > 2, row
    assert why_prompt(cluster, prompt, "--salt", "ours")["miss"] in ("short", "none")


def test_bypassed(cluster):
    asked = complete(cluster, prose(704, 40), kvist={"cache_mode": "bypass"})
    assert told(asked) == "bypassed" and why_request(cluster, asked)["miss"] == "bypassed"


def test_evicted_names_who_needed_the_room(cluster):
    prompt = prose(705, 80)
    complete(cluster, prompt)
    begun = time.time_ns() - 10**9
    fill(cluster, range(710, 728))
    row = why_prompt(cluster, prompt)
    assert row["miss"].startswith("evicted:"), row
    assert begun < row["when_unix_ns"] <= time.time_ns() and row["by"]["origin"] == "prefill-0", row
    before = prompt_parts(cluster)
    asked = complete(cluster, prompt)
    assert told(asked) == row["miss"] == why_request(cluster, asked)["miss"]
    # An ideal cache had had all of it but the tail, and the node's word says why this one had not.
    after = prompt_parts(cluster)
    tokens, gap = asked.usage["prompt_tokens"], f'gap_tokens_total{{reason="{told(asked)}"}}'
    assert after[gap] - before[gap] == (tokens - 1) // 16 * 16 - asked.cached, (before, after)
    assert sum(after.values()) - sum(before.values()) == tokens, (before, after)


def test_dropped_and_cheaper(cluster):
    """One block that the decode node has left: computing it is quicker than asking."""
    prompt = prose(706, 13)
    complete(cluster, prompt)
    before = why_prompt(cluster, prompt)
    assert before["cached_tokens"] == 16, before
    listed = json.loads(cluster.kvist("ls", "--dir", cluster.folder, "--json").stdout)
    key = next(entry["key"] for entry in listed
               if entry["node"] == "prefill-0" and entry["token_count"] == 16)
    run = cluster.kvist("drop", key, "--node", "prefill-0", "--dir", cluster.folder)
    assert run.returncode == 0, run.stderr
    row = why_prompt(cluster, prompt)
    assert row["miss"] == "evicted" and row["dropped"], row
    asked = complete(cluster, prompt)
    row = why_request(cluster, asked)
    assert told(asked) == row["miss"] == "cheaper" and row["here"] == "evicted", row
    assert row["holder"] == "decode-0" and row["holder_blocks"] == 1, row


def test_pending(cluster):
    """Two requests of one prompt at once: the second finds the first at it, sooner or later."""
    for seed in range(730, 750):
        prompt, answers = prose(seed, 600), []
        threads = [threading.Thread(target=lambda: answers.append(complete(cluster, prompt)))
                   for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({answer.text for answer in answers}) == 1
        if any(why_request(cluster, answer)["miss"] == "pending" for answer in answers):
            return
    raise AssertionError("no request met another one's in 20 rounds")


def cancelled_requests(cluster):
    """Ids, as the gateway's log tells them."""
    with open(os.path.join(cluster.folder, "logs", "gateway-0.log"), encoding="utf-8") as log:
        return re.findall(r"request (\S+) cancelled", log.read())


def test_cancelled(cluster):
    """The client goes before anything is known of its prompt."""
    host, port = cluster.endpoint.split("//")[1].split(":")
    for seed in range(760, 780):
        body = json.dumps({"prompt": prose(seed, 700), "max_tokens": 1}).encode()
        before = len(cancelled_requests(cluster))
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: "
                           b"application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            time.sleep(0.05)
        wait_until(lambda: all(node.get("running_requests", 0) + node.get("queued_requests", 0) == 0
                               for node in cluster.status()["nodes"]), 60, "the request to end")
        ids = cancelled_requests(cluster)
        if len(ids) > before:
            run = cluster.kvist("why", "--dir", cluster.folder, "--json", "--node", "decode-0",
                                ids[-1])
            rows = json.loads(run.stdout) if run.returncode == 0 else []
            if rows and rows[0]["miss"] == "cancelled":
                assert rows[0]["outcome"] == "cancelled", rows
                return
    raise AssertionError("no request ended before its first token in 20 rounds")


def test_damaged(cluster):
    prompt = prose(707, 100)
    complete(cluster, prompt)
    cluster.flush()
    cluster.down()
    for path in segments(cluster):
        flip(path, range((64 << 10) + 100, os.path.getsize(path), 4096))
    cluster.up()
    asked = complete(cluster, prompt)
    row = why_request(cluster, asked)
    assert "damaged" in (row["miss"], row["here"]) and row["when_unix_ns"] > 0, row
    # What was computed in its place is found again.
    assert why_prompt(cluster, prompt)["miss"] in ("short", "none")


def test_metrics_count_reasons(cluster):
    complete(cluster, prose(708, 30), kvist={"cache_mode": "bypass"})
    text = cluster.kvist("metrics", "prefill-0", "--dir", cluster.folder).stdout
    line = next(line for line in text.splitlines()
                if line.startswith('kvist_misses_total{reason="bypassed"}'))
    assert float(line.split()[-1]) >= 1, line


def test_prometheus_takes_the_pages(cluster):
    complete(cluster, prose(709, 30), max_tokens=4)
    parts, status = prompt_parts(cluster), cluster.status()
    for name in ("cached", "gap"):
        counted = sum(tokens for part, tokens in parts.items() if part.startswith(name))
        assert status[f"{name}_tokens"] == counted, (name, status, parts)
    monitoring.check_page(cluster.request("/metrics").body.decode(), monitoring.names_used())
    for node in cluster.nodes():
        if not node.startswith("gateway"):
            page = cluster.kvist("metrics", node, "--dir", cluster.folder).stdout
            monitoring.check_page(page, {"kvist_misses_total"})


def test_what_cannot_be_asked(cluster):
    for arguments, said in ((["--tokens", "/nonexistent"], "cannot open"), ([], "of what?"),
                            (["--tokens", "-", "--text", "-"], "of what?"),
                            (["--text", "-", "--namespace", "xy"], "64 hexadecimal digits")):
        run = cluster.kvist("why", "--dir", cluster.folder, *arguments, text="some text")
        assert run.returncode != 0 and said in run.stderr, (arguments, run.stderr)
    run = cluster.kvist("why", "--dir", cluster.folder, "--tokens", "-", text="[1, 2, x]")
    assert run.returncode == 1 and "byte 7" in run.stderr, run.stderr
    run = cluster.kvist("why", "--dir", cluster.folder, "--tokens", "-", "--json",
                        text="\n".join(str(i % 1000) for i in range(200000)))
    assert run.returncode == 0 and json.loads(run.stdout)[0]["prompt_tokens"] == 200000, run.stderr
