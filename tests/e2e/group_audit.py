"""kvist audit, as somebody runs it: a log in; what parted early, of what kind, at what cost out."""
import json
import os
import subprocess
import tempfile

import prose

KINDS = ["timestamp", "uuid", "counter", "reordered_json_keys", "reordered_tools", "whitespace",
         "rewritten_summary", "template_change"]
CLEAN = ["clean_append", "clean_new", "clean_edit", "clean_fork", "clean_other", "clean_documents"]


class Program:
    """No cluster: an audit needs none."""

    def __init__(self, binaries):
        self.binary = os.path.join(binaries, "kvist")
        self.endpoint = "none"
        self.folder = tempfile.TemporaryDirectory(prefix="kvist-e2e-audit-")

    def nodes(self):
        return {}

    def alive(self):
        return {}

    def close(self, keep):
        self.folder.cleanup()

    def audit(self, text, *options):
        path = os.path.join(self.folder.name, "log.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return subprocess.run([self.binary, "audit", path, *options], capture_output=True,
                              text=True, timeout=300, check=False)


def make_cluster(binaries):
    return Program(binaries)


def judge(program, source, recipes, count, *options):
    """(recipe, kind that was told or none) of so many pairs of each, each a tenant of its own."""
    judged = []
    for recipe in recipes:
        lines = []
        for number in range(count):
            was, later, relation = getattr(source, recipe)()
            named = source.chance.random() < 0.6
            for place, body in enumerate((was, later)):
                line = {"body": body, "tenant": f"t{number}", "id": str(number)}
                if relation == "session":
                    line["session"] = "s"
                elif named:
                    line.update(template="t", session=f"s{place}")
                lines.append(json.dumps(line))
        run = program.audit("\n".join(lines) + "\n", "--json", *options)
        assert run.returncode == 0, run.stderr
        rows = json.loads(run.stdout)["findings"]
        told = {int(row["is_request"]): row["kind"] for row in rows}
        judged += [(recipe, told.get(number, "none")) for number in range(count)]
    return judged


def share_right(judged):
    wrong = [(recipe, kind) for recipe, kind in judged
             if kind != ("none" if recipe.startswith("clean") else recipe)]
    print("judged wrongly:", wrong)
    return 1 - len(wrong) / len(judged)


def test_changes_of_real_prose_are_told_by_kind(program):
    assert share_right(judge(program, prose.Prose(11), KINDS, 40)) >= 0.95


def test_clean_prompts_of_real_prose_are_silent(program):
    assert share_right(judge(program, prose.Prose(12), CLEAN, 50)) >= 0.99


def test_with_a_model_it_counts_tokens_and_seconds(program):
    options = ("--model", os.environ["KVIST_MODEL"], "--tokens-per-second", "1000")
    assert share_right(judge(program, prose.Prose(13), KINDS, 5, *options)) >= 0.95
    was, later, _ = prose.Prose(14).session()
    for body, time in ((was, "10:05"), (later, "10:06")):
        prose.insert_line(body, f"Now: {time}", 0)
    text = "\n".join(json.dumps({"body": body, "session": "s"}) for body in (was, later))
    report = json.loads(program.audit(text, "--json", *options).stdout)
    row = report["findings"][0]
    assert (row["kind"], row["was"], row["is"], row["unit"]) == (
        "timestamp", "10:05", "10:06", "tokens"), row
    assert 5 <= row["at"] <= 12 and row["cost"] == report["cost"] < report["size"], report
    assert abs(row["cost_seconds"] - row["cost"] / 1000) < 1e-9, row
    shown = program.audit(text, *options).stdout
    assert "was  10:05\n  is   10:06\n" in shown and "computed again, " in shown, shown


def test_what_is_no_log_is_refused(program):
    for text, told in [('{"messages": []}\n', "line 1 holds no prompt"),
                       ('{"prompt": "x"}\n\n[]\n', "line 3 is no JSON object"),
                       ('{"prompt": "x"\n', "line 1, column"),
                       ('{"body": {"input": 3}}\n', '"messages", "input"')]:
        run = program.audit(text)
        assert run.returncode == 1 and told in run.stderr, (text, run.stderr)
    assert program.audit("").returncode == 0
    run = program.audit("", "--tokens-per-second", "5")
    assert run.returncode == 2 and "--model" in run.stderr, run.stderr
    run = subprocess.run([program.binary, "audit", "/nowhere"], capture_output=True, text=True,
                         timeout=60, check=False)
    assert run.returncode == 1 and "cannot open /nowhere" in run.stderr, run.stderr
