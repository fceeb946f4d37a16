"""The cluster that the tests share, and what they ask it."""
import contextlib
import itertools
import os
import types

import cluster as e2e

# One answer of the small model on a slow and busy machine.
ANSWER_LIMIT_S = e2e.ANSWER_LIMIT_S
# Of the model's tokens; a prompt of fewer is stored nowhere.
BLOCK_TOKENS = 16

endpoint = None
model = None
_seeds = itertools.count(9000)


@contextlib.contextmanager
def running(binaries, keep):
    """The cluster is up inside; outcome.good says afterwards whether its logs may go."""
    global endpoint, model
    outcome = types.SimpleNamespace(good=False)
    made = e2e.Cluster(binaries, "--model", e2e.find_model(),
                       "--gateway.default_max_tokens=16")
    try:
        made.up()
        endpoint = made.endpoint
        model = made.request("/v1/models").json["data"][0]["id"]
        yield outcome
    finally:
        made.close(keep=keep and not outcome.good)


def prompt(words=60):
    """Text that nobody asked before: nothing of it is stored."""
    return e2e.prose(next(_seeds), words)
