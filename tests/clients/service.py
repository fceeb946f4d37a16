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

# After so many questions that were answered by a call the small model answers the next one so too:
# each token of that call is e times as likely as any other, or much more.
CITIES = ("Oslo", "Rome", "Lima", "Bern", "Kyiv")
QUESTION, WEATHER, ASKED_CITY = "Weather in {}?", "Rain.", "Paris"
FORECAST, FORECAST_TEXT = "forecast", "Weather of a city."
FORECAST_TAKES = {"type": "object", "properties": {"city": {"type": "string"}},
                  "required": ["city"]}

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
