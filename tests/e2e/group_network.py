"""Real nodes in network namespaces, a relay between them: killed, stopped, cut off, in each phase.

The default run takes the worst of each kind. KVIST_TEST_LONG=1 draws KVIST_EVENTS (180) of all,
from KVIST_SEED.
"""
import os
import random

import network
from matrix import OPTIONS, Matrix, draw
from nodes import NodeCluster

LONG = os.environ.get("KVIST_TEST_LONG") == "1"
SEED = int(os.environ.get("KVIST_SEED", "1"))

_matrix = {}


def why_not():
    return network.why_not()


def make_cluster(binaries):
    return NodeCluster(binaries, prefill_count=2, decode_count=2, options=OPTIONS)


def matrix_of(cluster):
    if cluster not in _matrix:
        _matrix[cluster] = Matrix(cluster, SEED)
    return _matrix[cluster]


def test_wires(cluster):
    """Shared memory among nodes of one namespace, tcp between namespaces: never the other way."""
    wires = {(name, peer["name"]): peer["wire"]
             for name in cluster.names("decode")
             for peer in cluster.status(name)["peers"] if peer["role"] == "prefill"}
    assert wires == {(decode, prefill): "shm" if (decode, prefill) == ("decode-1", "prefill-1")
                     else "tcp"
                     for decode in cluster.names("decode")
                     for prefill in cluster.names("prefill")}, wires


def test_kills(cluster):
    matrix = matrix_of(cluster)
    for role, phase in (("prefill", "streaming"), ("prefill", "fetch"), ("prefill", "starting"),
                        ("decode", "reserving"), ("decode", "streaming"), ("decode", "decoding"),
                        ("decode", "storing"), ("gateway", "decoding")):
        matrix.event(role, phase, "kill")


def test_stops(cluster):
    matrix = matrix_of(cluster)
    for role, phase, fault in (("prefill", "streaming", "stop_long"),
                               ("decode", "streaming", "stop_long"),
                               ("gateway", "decoding", "stop_long")):
        matrix.event(role, phase, fault)


def test_bad_network(cluster):
    matrix = matrix_of(cluster)
    for role, phase, fault in (("prefill", "streaming", "reset"),
                               ("prefill", "streaming", "half_from"),
                               ("prefill", "streaming", "deaf_long"),
                               ("decode", "streaming", "link"),
                               ("prefill", "idle", "cut_inside")):
        matrix.event(role, phase, fault)


def test_clients_that_go_away(cluster):
    matrix = matrix_of(cluster)
    for phase in ("reserving", "streaming", "fetch"):
        matrix.event("client", phase, "abort")
    matrix.report()


def test_reconnects_leave_nothing(cluster):
    matrix_of(cluster).reconnect(100 if LONG else 10)


def whole_matrix(cluster):
    """A failure does not end it: all of them are told at the end."""
    matrix = Matrix(cluster, SEED)
    events = draw(random.Random(SEED), int(os.environ.get("KVIST_EVENTS", "180")))
    failures = []
    for number, event in enumerate(events):
        try:
            matrix.event(*event)
        except AssertionError as error:
            failures.append(f"event {number} of KVIST_SEED={SEED}: {error}")
            print("         FAILED " + failures[-1], flush=True)
            cluster.up()
    matrix.table()
    matrix.report()
    assert not failures, f"{len(failures)} of {len(events)} events failed\n" + "\n".join(failures)


if LONG:
    def test_the_whole_matrix(cluster):
        whole_matrix(cluster)
