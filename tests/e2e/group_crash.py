"""kill -9 of each node in the middle of a request: the others live on, the request ends within
seconds with an answer or a clear error, and after the restart the cache is there and correct."""
import threading
import time

from cluster import ANSWER_LIMIT_S, FAILURE_LIMIT_S, PATIENCE, prose, wait_until

# Long prompts, so that a prefill is under way when the blow falls; of more than one chunk.
LONG = 3000 if PATIENCE == 1 else 900
HALF = 1500 if PATIENCE == 1 else 600


def in_background(function):
    """Runs it on a thread; the returned list gets its result or its exception."""
    results = []

    def run():
        try:
            results.append(function())
        except Exception as error:
            results.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def wait_for_work(cluster, role):
    """Until a node of that role has a request in work."""
    def busy():
        return any(node["name"].startswith(role) and node.get("running_requests", 0) > 0
                   for node in cluster.status()["nodes"])
    wait_until(busy, 15, f"{role} to have work")


def device_objects(cluster, role):
    node = next(node for node in cluster.status()["nodes"] if node["name"].startswith(role))
    return next(tier["object_count"] for tier in node["tiers"] if tier["name"] == "device")


def log_has(cluster, node, text):
    with open(f"{cluster.folder}/logs/{node}.log", encoding="utf-8") as file:
        return text in file.read()


def check_cache_after_restart(cluster, question, expected):
    cluster.up()
    answer = cluster.chat(question)
    assert answer.code == 200, answer.error()
    assert answer.text == expected, f"before {expected!r}, after the crash {answer.text!r}"
    assert answer.cached > answer.usage["prompt_tokens"] / 2, answer.usage


def remembered(cluster, seed):
    """A context that is durable, and the answer to it."""
    question = prose(seed, 400) + " What was it about?"
    answer = cluster.chat(question)
    assert answer.code == 200, answer.error()
    cluster.flush()
    return question, answer.text


def test_prefill_dies_in_prefill(cluster):
    question, expected = remembered(cluster, 101)
    before = device_objects(cluster, "prefill")
    thread, results = in_background(lambda: cluster.chat(prose(102, HALF), max_tokens=4))
    wait_until(lambda: device_objects(cluster, "prefill") > before + 20, 15, "a part of it")
    cluster.kill("prefill")
    begun = time.monotonic()
    # A request that comes now is answered too: the decode node prefills it itself, or says no.
    other = cluster.chat("Hello", max_tokens=4)
    assert other.code == 200 or other.error()
    assert time.monotonic() - begun < FAILURE_LIMIT_S
    thread.join(ANSWER_LIMIT_S)
    assert not thread.is_alive(), "the request hangs"
    answer = results[0]
    assert not isinstance(answer, Exception), f"no answer and no clear error: {answer!r}"
    assert answer.code == 200, answer.error()
    assert len(cluster.alive()) == 3, cluster.alive()
    check_cache_after_restart(cluster, question, expected)
    # What had landed before it died served, and is what a fresh computation gives.
    assert log_has(cluster, "decode-0", "had landed whole"), "nothing of it was used"
    again = cluster.chat(prose(102, HALF), max_tokens=4, kvist={"cache_mode": "bypass"})
    assert again.text == answer.text, f"{answer.text!r}, recomputed {again.text!r}"


def test_decode_dies_in_decode(cluster):
    question, expected = remembered(cluster, 103)
    stream = cluster.stream("Tell me a long story.", max_tokens=2000, ignore_eos=True)
    assert stream.read(lambda s: len(s.text) > 40), "no stream"
    cluster.kill("decode")
    begun = time.monotonic()
    stream.read()
    assert time.monotonic() - begun < FAILURE_LIMIT_S, "the stream hangs"
    assert stream.error and not stream.done or stream.finish == "error", (
        f"the stream ended without a clear error: {stream.text[-40:]!r}")
    refused = cluster.chat("Hello", max_tokens=4, limit_s=FAILURE_LIMIT_S)
    assert refused.code in (500, 502, 503, 504) and refused.error(), refused.body
    assert len(cluster.alive()) == 3, cluster.alive()
    check_cache_after_restart(cluster, question, expected)


def test_gateway_dies(cluster):
    question, expected = remembered(cluster, 104)
    thread, results = in_background(
        lambda: cluster.chat("Tell me a long story.", max_tokens=1500, ignore_eos=True))
    wait_for_work(cluster, "decode")
    cluster.kill("gateway")
    thread.join(FAILURE_LIMIT_S)
    assert not thread.is_alive(), "the client hangs"
    assert isinstance(results[0], Exception), results[0]
    assert len(cluster.alive()) == 3, cluster.alive()
    cluster.up()

    # The decode node gives up what nobody waits for.
    def idle():
        return all(node.get("running_requests", 0) == 0 and node.get("leases", 0) == 0
                   for node in cluster.status()["nodes"])
    wait_until(idle, 15, "the abandoned request to be cancelled")
    check_cache_after_restart(cluster, question, expected)


def test_all_die_at_once(cluster):
    question, expected = remembered(cluster, 105)
    thread, _ = in_background(lambda: cluster.chat(prose(106, LONG), max_tokens=4))
    wait_for_work(cluster, "prefill")
    for role in ("gateway", "decode", "prefill"):
        cluster.kill(role)
    thread.join(FAILURE_LIMIT_S)
    assert not thread.is_alive()
    check_cache_after_restart(cluster, question, expected)


def test_client_goes_away(cluster):
    stream = cluster.stream("Tell me a long story.", max_tokens=2000, ignore_eos=True)
    assert stream.read(lambda s: len(s.text) > 40), "no stream"
    stream.close()

    def idle():
        return all(node.get("running_requests", 0) == 0 and node.get("leases", 0) == 0
                   for node in cluster.status()["nodes"])
    wait_until(idle, 10, "the request to be cancelled and its slots to return")
    assert cluster.chat("Hello", max_tokens=4).code == 200
