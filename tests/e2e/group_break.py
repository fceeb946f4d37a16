"""Too little room for too many, clients that vanish, nodes that do not belong: nothing leaks,
nothing is answered wrongly, nobody else is disturbed."""
import os
import random
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from cluster import prose, wait_until

# A few requests fill the device tier; the disk is reclaimed many times over.
OPTIONS = ("--store.device_slots=100", "--store.host_bytes=8MiB", "--store.segment_bytes=4MiB",
           "--store.disk_bytes=16MiB")


def idle(cluster):
    def nothing_held():
        nodes = cluster.status()["nodes"]
        return all(node["up"] and node.get("running_requests", 0) == 0 and
                   node.get("leases", 0) == 0 and node.get("slots_private", 0) == 0
                   for node in nodes)
    wait_until(nothing_held, 20, "all leases and private slots to return")


def test_more_than_there_is_room_for(cluster):
    chance = random.Random(7)
    contexts = [prose(700 + i, words) for i, words in enumerate((20, 100, 300, 450))]
    wanted = [(f"{chance.choice(contexts)} Question {chance.randrange(3)}?",
               chance.choice([1, 5, 17])) for _ in range(24)]

    def ask(one):
        return cluster.chat(one[0], max_tokens=one[1], ignore_eos=True)
    with ThreadPoolExecutor(len(wanted)) as pool:
        answers = list(pool.map(ask, wanted))
    idle(cluster)
    assert any(answer.code == 200 for answer in answers)
    for (question, tokens), answer in zip(wanted, answers):
        if answer.code == 200:
            fresh = cluster.chat(question, max_tokens=tokens, ignore_eos=True,
                                 kvist={"cache_mode": "bypass"})
            assert answer.text == fresh.text, f"{answer.text!r}, alone {fresh.text!r}"
        else:
            assert answer.code == 429 and answer.error(), answer.body


def test_clients_that_vanish(cluster):
    def vanish(seed):
        stream = cluster.stream(prose(720 + seed % 4, 60 * (seed % 4)), max_tokens=60,
                                ignore_eos=True)
        stream.read(lambda s: len(s.text) >= 7 * seed)
        stream.close()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(vanish, range(12)))
    idle(cluster)
    assert cluster.chat("Hello", max_tokens=4).code == 200


def stranger(cluster, name, expected, *options):
    """A decode node that wants to join; the prefill node's log, once it says what is expected."""
    listing = cluster.kvist("status", "--dir", cluster.folder).stdout
    prefill = re.search(r"peer prefill-0 \(prefill\) at (\S+):", listing).group(1)
    node = subprocess.Popen(
        [os.path.join(cluster.binaries, "kvist-decode"), f"--node.name={name}",
         f"--cluster.key_file={cluster.folder}/cluster.key",
         f"--node.admin={cluster.parent}/stranger.sock", f"--decode.prefill_nodes={prefill}",
         f"--model.path={os.environ['KVIST_MODEL']}", "--store.directory=none",
         "--store.host_bytes=0", *options], stderr=subprocess.DEVNULL)

    def log():
        with open(cluster.nodes()["prefill-0"]["log"], encoding="utf-8") as file:
            return file.read()
    try:
        wait_until(lambda: expected in log(), 20, f"{expected!r} in the prefill node's log")
        time.sleep(1)  # it knocks again
    finally:
        node.terminate()
        node.wait(20)
    return log()


def test_a_layout_that_differs_is_named(cluster):
    log = stranger(cluster, "stranger", "blocks of 32 tokens", "--model.block_tokens=32")
    assert "blocks of 16 tokens" in log and "model.block_tokens" in log, log


def test_a_name_that_is_taken(cluster):
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            lambda: cluster.chat("Tell me a story.", max_tokens=100, ignore_eos=True))
        log = stranger(cluster, "decode-0", "'decode-0' is connected already")
        answer = running.result()
    assert answer.code == 200, answer.error()
    assert log.count("peer down name decode-0") == 0, log
    answer = cluster.chat(prose(730, 50), max_tokens=2)
    assert answer.usage["kvist"]["prefilled_by"] == "prefill-0", answer.usage
