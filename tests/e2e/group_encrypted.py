"""Encryption at rest, with real nodes: nothing in clear on disk, wrong keys, a dropped tenant."""
import json
import os
import struct

from cluster import Cluster, prose

QUESTION = prose(911, 300) + " What was it about?"


def make_cluster(binaries):
    cluster = Cluster(binaries, "--model", os.environ["KVIST_MODEL"])
    cluster.key_file = os.path.join(cluster.parent, "store.key")
    made = cluster.kvist("keys", "new", cluster.key_file)
    assert made.returncode == 0, made.stderr
    cluster.options += (f"--store.key_file={cluster.key_file}",)
    return cluster


def token_runs(cluster):
    """Some four tokens in a row of the question, as a record in clear has them."""
    run = cluster.kvist("tokenize", "--model", os.environ["KVIST_MODEL"],
                        text=json.dumps({"id": 1, "text": QUESTION}) + "\n")
    assert run.returncode == 0, run.stderr
    tokens = json.loads(run.stdout)["ids"]
    assert len(tokens) > 200, tokens
    return [struct.pack("<4I", *tokens[at:at + 4]) for at in range(0, len(tokens) - 16, 22)]


def count_found(folder, wanted):
    """How many of the runs stand in any file of the folder, and how many bytes were looked at."""
    found, size = set(), 0
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.isfile(path):
                continue
            with open(path, "rb") as file:
                content = file.read()
            size += len(content)
            found.update(run for run in wanted if run in content)
    return len(found), size


def ask(cluster):
    answer = cluster.chat(QUESTION)
    assert answer.code == 200, answer.error()
    return answer


def test_nothing_in_clear_is_on_disk(cluster):
    runs = token_runs(cluster)
    ask(cluster)
    cluster.flush()
    found, size = count_found(cluster.folder, runs)
    assert found == 0 and size > 1 << 20, (found, size)
    status = cluster.kvist("status", "--dir", cluster.folder)
    assert "encrypts what it writes" in status.stdout, status.stdout
    clear = Cluster(cluster.binaries, "--model", os.environ["KVIST_MODEL"])
    try:  # and the search would find them
        clear.up()
        ask(clear)
        clear.flush()
        found, _ = count_found(clear.folder, runs)
        assert found > len(runs) // 2, (found, len(runs))
    finally:
        clear.close(False)


def test_it_is_found_after_a_restart(cluster):
    ask(cluster)
    cluster.flush()
    cluster.down()
    cluster.up()
    assert ask(cluster).cached > 200


def test_a_wrong_key_is_said(cluster):
    ask(cluster)
    cluster.flush()
    cluster.down()
    aside = cluster.key_file + ".aside"
    os.rename(cluster.key_file, aside)
    try:
        assert cluster.kvist("keys", "new", cluster.key_file).returncode == 0
        run = cluster.kvist("up", "--dir", cluster.folder, *cluster.options)
        assert run.returncode != 0, run.stdout
        assert "is not the key that the blocks in" in run.stdout + run.stderr, run.stderr
    finally:
        os.rename(aside, cluster.key_file)
    cluster.up()
    assert ask(cluster).cached > 200


def test_a_dropped_key_takes_all_with_it(cluster):
    ask(cluster)
    cluster.flush()
    run = cluster.kvist("keys", "drop", "--nobody", "--dir", cluster.folder, "--json")
    assert run.returncode == 0, run.stderr
    assert sum(node["object_count"] for node in json.loads(run.stdout)) > 12, run.stdout
    assert ask(cluster).cached == 0  # device memory of attached nodes is empty too
    cluster.flush()
    run = cluster.kvist("keys", "drop", "--nobody", "--dir", cluster.folder)
    assert run.returncode == 0 and "store-0" in run.stdout, run.stdout + run.stderr
    cluster.down()
    cluster.up()
    assert ask(cluster).cached == 0
    refused = cluster.kvist("keys", "drop", "never seen", "--dir", cluster.folder)
    assert refused.returncode == 1 and "nothing is stored" in refused.stderr, refused.stderr
