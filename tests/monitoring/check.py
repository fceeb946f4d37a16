#!/usr/bin/env python3
"""Monitoring: the Prometheus rules and the Grafana dashboard of docs/, held to promtool.

usage: check.py

What needs a page of metrics from a running gateway is checked by tests/e2e (group_why.py), with the
functions of this file. The last line is "monitoring: N passed, N failed, 0 skipped".
"""
import json
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
DOCS = os.path.join(os.path.dirname(os.path.dirname(HERE)), "docs")
RULES = os.path.join(DOCS, "prometheus", "kvist-alerts.yml")
DASHBOARD = os.path.join(DOCS, "grafana", "kvist.json")
FIRED = os.path.join(HERE, "alerts_test.yml")
COLUMNS = 24


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def promtool(*arguments, text=""):
    """What it says, having agreed."""
    try:
        run = subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True,
                             check=False)
    except FileNotFoundError:
        raise AssertionError("promtool is missing: tools/setup installs it") from None
    assert run.returncode == 0, f"promtool {' '.join(arguments)}: {run.stdout}{run.stderr}"
    return run.stdout + run.stderr


# ---- the dashboard ----

def dashboard():
    return json.loads(read(DASHBOARD))


def variables(board):
    """{name: what it may stand for}."""
    listed = {one["name"]: one for one in board["templating"]["list"]}
    return {"$job": [".*"], "$by": listed["by"]["query"].split(","), "$__rate_interval": ["5m"]}


def expressions(board):
    """Every panel's, with its variables filled in, each value of them once."""
    values = variables(board)
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            texts = [target["expr"]]
            for name, choices in values.items():
                forms = (name, "${" + name[1:] + "}")
                texts = [filled.replace(forms[1], choice).replace(forms[0], choice)
                         for filled in texts for choice in choices]
            for text in dict.fromkeys(texts):
                yield panel["title"], text


def metric_names(text):
    """Kvist's own in an expression; a histogram's by its parts."""
    return set(re.findall(r"\bkvist_[a-z0-9_]+", text))


def names_used():
    """By the dashboard and the rules, without what the rules record."""
    names = set()
    for _, text in expressions(dashboard()):
        names |= metric_names(text)
    rules = "\n".join(line for line in read(RULES).splitlines()
                      if not line.lstrip().startswith(("#", "description:", "summary:")))
    return names | metric_names(rules)


# ---- a page of metrics ----

def check_page(page, names):
    """A page is what promtool takes, and has these names."""
    promtool("check", "metrics", text=page)
    there = set(re.findall(r"^(kvist_[a-z0-9_]+)", page, re.MULTILINE))
    missing = sorted(names - there)
    assert not missing, f"nothing on the page is called {missing}"


# ---- cases ----

def rules_are_rules():
    said = promtool("check", "rules", RULES)
    assert "SUCCESS" in said, said


def each_alert_fires_once():
    promtool("test", "rules", FIRED)
    alerts = set(re.findall(r"- alert: (\w+)", read(RULES)))
    # An expectation that is not empty goes on in lines of its own.
    fired = set(re.findall(r"alertname: (\w+)\n\s+eval_time: \S+\n\s+exp_alerts:\n", read(FIRED)))
    assert alerts and fired == alerts, f"never made to fire: {sorted(alerts - fired)}"
    # The tool can fail: the same alerts with another threshold.
    with tempfile.TemporaryDirectory() as folder:
        rules, tests = os.path.join(folder, "rules.yml"), os.path.join(folder, "tests.yml")
        with open(rules, "w", encoding="utf-8") as file:
            file.write(read(RULES).replace("ratio_5m < 0.70", "ratio_5m < 0.60"))
        with open(tests, "w", encoding="utf-8") as file:
            file.write(read(FIRED).replace("../../docs/prometheus/kvist-alerts.yml", rules))
        try:
            promtool("test", "rules", tests)
        except AssertionError as error:
            assert "KvistHitRateLow" in str(error), error
        else:
            raise AssertionError("another threshold, and nothing was said")


def panels_have_room_and_units():
    board = dashboard()
    taken = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS, f"{panel['title']} is too far right"
        for column in range(place["x"], place["x"] + place["w"]):
            for row in range(place["y"], place["y"] + place["h"]):
                other = taken.setdefault((column, row), panel["title"])
                assert other == panel["title"], f"{panel['title']} lies on {other}"
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"].get("unit"), f"{panel['title']} has no unit"
            assert panel["targets"], f"{panel['title']} asks for nothing"
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers), "two panels have one id"


def panels_ask_in_promql():
    rules = []
    for number, (title, text) in enumerate(expressions(dashboard())):
        assert "$" not in text, f"{title}: {text}"
        rules.append({"record": f"panel:{number}", "expr": text})
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "panels.yml")
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"groups": [{"name": "panels", "rules": rules}]}, file)  # YAML too
        said = promtool("check", "rules", path)
    assert f"{len(rules)} rules" in said, said


def main():
    failed = 0
    cases = (rules_are_rules, each_alert_fires_once, panels_have_room_and_units,
             panels_ask_in_promql)
    for case in cases:
        try:
            case()
            print(f"ok       monitoring.{case.__name__}", flush=True)
        except (AssertionError, KeyError) as error:
            failed += 1
            print(f"FAILED   monitoring.{case.__name__}\n         {error}", flush=True)
    print(f"monitoring: {len(cases) - failed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
