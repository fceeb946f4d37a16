"""Routing: requests go where their prefix is, and kvist explain says why."""
import json
import urllib.request

from cluster import ANSWER_LIMIT_S, Answer, prose, wait_until

NODES = 3
OPTIONS = ("--decode", str(NODES), "--colocated", "--decode-threads", "1", "--embedded",
           "--node.log_level=debug")


def explain(cluster, answer):
    """What the gateway decided about the request, the oldest decision first."""
    run = cluster.kvist("explain", answer.json["id"], "--dir", cluster.folder, "--json")
    assert run.returncode == 0, run.stderr
    decisions = json.loads(run.stdout)
    assert decisions, "no decision"
    return decisions


def choice(cluster, answer):
    assert answer.code == 200, answer.body
    return explain(cluster, answer)[-1]


def held(decision, name):
    one = next(c for c in decision["candidates"] if c["name"] == name)
    return one["device_tokens"] + one["host_tokens"] + one["disk_tokens"]


def ask(cluster, messages, **fields):
    return cluster.chat(messages, max_tokens=4, ignore_eos=True, **fields)


def known(cluster, name, prompt):
    """Waits until the gateway has heard that a node holds most of what it was sent: events come a
    little later than the answer."""
    def heard():
        again = choice(cluster, ask(cluster, prompt, kvist={"cache_mode": "read"}))
        return held(again, name) * 10 >= again["prompt_tokens"] * 8
    wait_until(heard, 60, f"the gateway to know what {name} holds")


def turn(messages, answer, text):
    return messages + [{"role": "assistant", "content": answer.text},
                       {"role": "user", "content": text}]


def test_turns_land_where_they_hit(cluster):
    nodes = set()
    for conversation in range(4):
        messages = [{"role": "user", "content": prose(3100 + conversation, 200)}]
        answer = ask(cluster, messages)
        first = choice(cluster, answer)["node"]
        nodes.add(first)
        for number in range(3):
            known(cluster, first, messages)
            messages = turn(messages, answer, prose(3200 + 10 * conversation + number, 30))
            answer = ask(cluster, messages)
            decision = choice(cluster, answer)
            assert decision["node"] == first, decision
            assert decision["reason"] == "prefix", decision
            assert answer.cached * 10 >= answer.usage["prompt_tokens"] * 6, answer.usage
            assert answer.tiers["remote"] == 0, answer.usage
    assert len(nodes) > 1, f"four conversations all went to {nodes}"


def test_explain_in_words(cluster):
    answer = ask(cluster, prose(3300, 100))
    decision = choice(cluster, answer)
    run = cluster.kvist("explain", answer.json["id"], "--dir", cluster.folder)
    assert run.returncode == 0, run.stderr
    assert decision["words"] in run.stdout and decision["node"] in run.stdout, run.stdout
    assert len(decision["candidates"]) == NODES, decision
    assert decision["prompt_tokens"] == answer.usage["prompt_tokens"], decision
    assert run.stdout.count("<- chosen") == 1, run.stdout
    run = cluster.kvist("explain", "chatcmpl-nobody", "--dir", cluster.folder)
    assert run.returncode == 1 and "no gateway knows" in run.stderr, run.stderr
    assert cluster.kvist("explain", "--dir", cluster.folder).returncode == 2


def test_tenants_prefixes_are_apart(cluster):
    """Another salt, other keys: nobody holds any of it."""
    prompt = prose(3400, 200)
    first = choice(cluster, ask(cluster, prompt, kvist={"salt": "one"}))
    def heard():
        again = choice(cluster, ask(cluster, prompt, kvist={"salt": "one", "cache_mode": "read"}))
        return held(again, first["node"]) > 0
    wait_until(heard, 60, "the gateway to know the first tenant's prompt")
    other = choice(cluster, ask(cluster, prompt, kvist={"salt": "two"}))
    beginnings = max(held(other, c["name"]) for c in other["candidates"])
    assert beginnings == 0, other


def test_a_session_keeps_its_node(cluster):
    """Prompts that share nothing, one session: one node while that has room."""
    seen = set()
    for number in range(5):
        body = json.dumps({"messages": [{"role": "user", "content": prose(3500 + number, 60)}],
                           "max_tokens": 2, "kvist": {"cache_mode": "bypass"}}).encode()
        request = urllib.request.Request(
            cluster.endpoint + "/v1/chat/completions", data=body,
            headers={"Content-Type": "application/json", "x-kvist-session": "one session"})
        with urllib.request.urlopen(request, timeout=ANSWER_LIMIT_S) as reply:
            decision = choice(cluster, Answer(reply.status, reply.read(), 0))
        assert decision["has_session"] and decision["reason"] == "session", decision
        seen.add(decision["node"])
    assert len(seen) == 1, seen


def test_a_lost_node_is_left(cluster):
    messages = [{"role": "user", "content": prose(3600, 200)}]
    answer = ask(cluster, messages)
    first = choice(cluster, answer)["node"]
    known(cluster, first, messages)
    cluster.flush()  # what it holds is on its disk
    cluster.kill(first)
    messages = turn(messages, answer, "And then?")
    answer = ask(cluster, messages)
    decision = choice(cluster, answer)
    assert decision["node"] != first, decision
    second = decision["node"]
    known(cluster, second, messages)
    assert choice(cluster, ask(cluster, messages))["node"] == second
    cluster.up()
    # What it holds on disk is told by its snapshot: it is a holder again.
    def returned():
        names = {c["name"]: c for c in choice(cluster, ask(cluster, messages))["candidates"]}
        return first in names and names[first]["disk_tokens"] > 0
    wait_until(returned, 60, f"{first} to be known as a holder again")
