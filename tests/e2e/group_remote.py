"""Two prefill and two decode nodes: blocks come from whichever node holds them, and what a lost
prefill node had sent serves the next one."""
import shutil
import threading
import time

from cluster import PATIENCE, prose, wait_until

OPTIONS = ("--prefill", "2", "--decode", "2", "--embedded")
BLOCK = 16
LONG = 1500 if PATIENCE == 1 else 600  # words; of more than one chunk


def in_background(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    return thread, results


def node(cluster, name):
    return next(node for node in cluster.status()["nodes"] if node["name"] == name)


def device_objects(cluster, name):
    return next(tier["object_count"] for tier in node(cluster, name)["tiers"]
                if tier["name"] == "device")


def known_blocks(cluster, name):
    """Blocks that the node knows other nodes to hold."""
    page = cluster.kvist("metrics", name, "--dir", cluster.folder).stdout
    return next(float(line.split()[1]) for line in page.splitlines()
                if line.startswith("kvist_remote_entries "))


def lose(cluster, *names):
    """The nodes come back with nothing, and hear from the others what those hold."""
    for name in names:
        cluster.kill(name)
        shutil.rmtree(f"{cluster.folder}/store/{name}")
    cluster.up()
    held = sum(device_objects(cluster, f"{role}-{number}")
               for role in ("prefill", "decode") for number in (0, 1))
    for name in names:
        wait_until(lambda of=name: known_blocks(cluster, of) >= held, 20,
                   f"{name} to know the {held} blocks of the others")


def other_prefill(answer):
    return "prefill-1" if answer.usage["kvist"]["prefilled_by"] == "prefill-0" else "prefill-0"


def test_a_decode_node_has_the_blocks(cluster):
    """Prefill nodes that lost everything find it at the decode nodes, also at the one that did not
    send the request."""
    questions = [prose(900 + i, 250) + " Who?" for i in range(3)]
    firsts = [cluster.chat(question, max_tokens=4) for question in questions]
    lose(cluster, "prefill-0", "prefill-1")
    asked = [in_background(lambda q=question: cluster.chat(q, max_tokens=4))
             for question in questions]
    for (thread, results), first in zip(asked, firsts):
        thread.join()
        again = results[0]
        assert again.code == 200, again.error()
        assert again.text == first.text, f"first {first.text!r}, again {again.text!r}"
        assert again.tiers["remote"] >= again.usage["prompt_tokens"] - 2 * BLOCK, again.usage


def test_a_prefill_node_has_the_blocks(cluster):
    """The decode nodes lost everything, and the prefill node that has it is at work."""
    question = prose(950, 250) + " Why?"
    first = cluster.chat(question, max_tokens=4)
    lose(cluster, "decode-0", "decode-1")
    other = other_prefill(first)
    for attempt in range(5):
        thread, _ = in_background(
            lambda: cluster.chat(prose(960 + attempt, LONG), max_tokens=1))
        time.sleep(0.8)  # a heartbeat tells the other decode node
        again = cluster.chat(question, max_tokens=4)
        thread.join()
        assert again.code == 200, again.error()
        assert again.text == first.text, f"first {first.text!r}, again {again.text!r}"
        if again.usage["kvist"]["prefilled_by"] == other:
            break
    assert again.usage["kvist"]["prefilled_by"] == other, "the busy node was chosen five times"
    assert again.tiers["remote"] >= again.usage["prompt_tokens"] - 2 * BLOCK, again.usage


def test_another_prefill_node_goes_on(cluster):
    """What had landed when a prefill node died is not computed again."""
    before = {name: device_objects(cluster, name) for name in ("prefill-0", "prefill-1")}
    question = prose(970, LONG)
    thread, results = in_background(lambda: cluster.chat(question, max_tokens=4))
    begun = []

    def one_has_begun():
        begun.extend(name for name, count in before.items()
                     if device_objects(cluster, name) > count + 20)
        return begun
    wait_until(one_has_begun, 15, "a part of the prompt")
    cluster.kill(begun[0])
    thread.join()
    answer = results[0]
    assert answer.code == 200, answer.error()
    prefilled_by = answer.usage["kvist"]["prefilled_by"]
    assert prefilled_by != begun[0] and prefilled_by.startswith("prefill"), answer.usage
    logs = "".join(open(f"{cluster.folder}/logs/decode-{i}.log", encoding="utf-8").read()
                   for i in range(2))
    assert "blocks had landed whole" in logs, "nothing of what had landed was used"
    fresh = cluster.chat(question, max_tokens=4, kvist={"cache_mode": "bypass"})
    assert fresh.text == answer.text, f"{answer.text!r}, recomputed {fresh.text!r}"
