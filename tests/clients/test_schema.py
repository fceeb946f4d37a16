"""docs/openapi.json, held to the gateway: schemathesis draws requests that the description allows
and ones that it does not (the same ones each time), and whatever is asked, the answer is one that
the description has: its code, its type, its schema. What it does not allow is refused."""
import json
import os
import unittest

import hypothesis
import requests
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

import service

DESCRIPTION = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../docs/openapi.json")
SEED = int(os.environ.get("KVIST_SEED", "1"), 0)
EXAMPLES = 200 if os.environ.get("KVIST_TEST_LONG") else 20  # of each operation and kind
# The answers are as many as the requests, and the model computes each token of them.
TOKENS_MAX = 2
# What makes answers long or many, and its bound.
COUNTS = {"max_tokens": 2**31 - 1, "max_completion_tokens": 2**31 - 1, "n": 128,
          "maxOutputTokens": 2**31 - 1, "candidateCount": 8}

CHECKS = [not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
          checks.response_headers_conformance, checks.response_schema_conformance,
          checks.unsupported_method, checks.allow_header_conformance]

with open(DESCRIPTION, encoding="utf-8") as file:
    described = json.load(file)


def settle(body):
    """The model that is served, and few tokens: each is one that the model computes. What is
    beyond its bound stays there."""
    if not isinstance(body, dict):
        return
    if isinstance(body.get("model"), str):
        body["model"] = service.model
    config = body.get("generationConfig")
    for where in (body, config if isinstance(config, dict) else {}):
        for name, most in COUNTS.items():
            if isinstance(where.get(name), (int, float)) and TOKENS_MAX < where[name] <= most:
                where[name] = TOKENS_MAX


def post(path, body, **headers):
    answer = requests.post(service.endpoint + path, json=body, headers=headers,
                           timeout=service.ANSWER_LIMIT_S)
    answer.raise_for_status()
    return answer.json()


def make_session():
    """With a context, so that it can be moved."""
    opened = post("/v1/sessions", {})["id"]
    post("/v1/completions", {"prompt": service.prompt(30), "max_tokens": 1},
         **{"x-kvist-session": opened})
    return opened


def make_content():
    made = post("/v1beta/cachedContents", {
        "model": service.model, "contents": [{"parts": [{"text": service.prompt(30)}]}]})
    return made["name"].split("/")[1]


def ids_of(operation):
    """What a path's {id} is in turn: one that is there (made anew where it goes by being asked
    for), and one that is drawn."""
    make = make_session if "sessions" in operation.path else make_content
    lasting = None if operation.method == "delete" else make()
    while True:
        yield lasting or make()
        yield None


def judge(operation, mode, more):
    """The codes of the answers, each of which was as described."""
    codes = set()
    path = {"model": service.model} if "{model}" in operation.path else None
    ids = ids_of(operation) if "{id}" in operation.path else None
    # Gemini's other version is the same code behind another path.
    again = operation.definition.raw["operationId"].endswith("V1")
    examples = EXAMPLES // 4 if again else EXAMPLES
    with requests.Session() as session:
        @hypothesis.seed(SEED)
        @hypothesis.settings(database=None, deadline=None, max_examples=examples,
                             phases=[hypothesis.Phase.generate],
                             suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode, path_parameters=path))
        def ask(case):
            settle(case.body)
            if (not more and operation.path.endswith("/cachedContents")
                    and isinstance(case.body, dict)):
                # What is drawn is seldom as long as a block, which is the least that is kept.
                case.body["contents"] = [{"parts": [{"text": service.prompt(30)}]}]
            there = ids and next(ids)
            if there:
                case.path_parameters["id"] = there
            answer = case.call_and_validate(base_url=service.endpoint, session=session,
                                            checks=[*CHECKS, *more],
                                            timeout=service.ANSWER_LIMIT_S)
            codes.add(answer.status_code)
        ask()
    return codes


class Description(unittest.TestCase):
    """A case for each operation and kind is added below."""

    def test_it_is_what_the_gateway_serves(self):
        served = requests.get(service.endpoint + "/openapi.json", timeout=service.ANSWER_LIMIT_S)
        self.assertEqual(served.json(), described)


def add_cases():
    for result in schemathesis.openapi.from_dict(described).get_all_operations():
        operation = result.ok()
        name = operation.definition.raw["operationId"]

        def allowed(case, operation=operation):
            case.assertIn(200, judge(operation, GenerationMode.POSITIVE, []))

        def not_allowed(case, operation=operation):
            judge(operation, GenerationMode.NEGATIVE, [checks.negative_data_rejection])
        setattr(Description, f"test_{name}", allowed)
        if operation.body:
            setattr(Description, f"test_{name}_not_allowed", not_allowed)


add_cases()
