#!/usr/bin/env python3
"""The page (GET / of the gateway) in a browser without a window: in front of a real one-machine
cluster, and of a gateway that is played, with more than a small machine makes.

usage: run.py [--bin FOLDER] [--screens FOLDER] [NAME...]
  --bin FOLDER      where Kvist's programs are (default: build/bin)
  --screens FOLDER  keeps the screenshots there
  NAME...           cases, such as Played.test_key; without: all

The last line is "page: N passed, N failed, N skipped"; all are skipped, with the reason, where
there is no Chromium.
"""
import argparse
import os
import shutil
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [HERE, os.path.join(ROOT, "tests", "e2e")]

import browser  # noqa: E402
import cluster  # noqa: E402
import figures  # noqa: E402

WIDTHS = (400, 1600)
DRAW_MS_MAX, LOAD_BYTES_MAX = 100, 100_000
CONTRAST_MIN = 4.5  # WCAG 2.2, 1.4.3

options = None
SHOWN = "!!document.querySelector('#main') && !document.querySelector('#main').hidden"
ASKS_FOR_KEY = "!!document.querySelector('#key') && !document.querySelector('#key').hidden"

# Bytes of the first answer of each path: what a first look loads.
FIRST_LOAD = """(() => {
  const first = new Map();
  for (const kind of ["navigation", "resource"]) {
    for (const { name, transferSize } of performance.getEntriesByType(kind)) {
      const { pathname } = new URL(name);
      if (!first.has(pathname)) first.set(pathname, transferSize);
    }
  }
  return [...first.values()].reduce((bytes, more) => bytes + more, 0);
})()"""

# Every text that can be seen, against what is behind it: [contrast, text], the worst first.
CONTRASTS = """(() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = color.slice(0, 3).map((value) => value / 255)
      .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = channels(getComputedStyle(node).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const text = [...node.childNodes].filter((child) => child.nodeType === 3)
      .map((child) => child.data.trim()).join(" ").trim();
    const box = node.getBoundingClientRect();
    if (!text || box.width < 2 || node.closest("svg, option") || node.disabled) continue;
    const [one, other] = [light(channels(getComputedStyle(node).color)), light(behind(node))];
    found.push([(Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), text]);
  }
  return found.sort((a, b) => a[0] - b[0]).slice(0, 5);
})()"""


class Case(unittest.TestCase):
    """One browser for all cases of a class."""

    @classmethod
    def setUpClass(cls):
        cls.browser = browser.Browser(browser.find())

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()

    def setUp(self):
        self.browser.fresh()

    def show(self, url, width=1600, dark=False):
        self.browser.shape(width, dark=dark)
        self.browser.open(url)
        self.browser.until(SHOWN)

    def text(self, selector):
        return self.browser.run(f"document.querySelector({selector!r}).textContent")

    def check_layout(self, name):
        """At both widths and in both schemes: nothing sticks out, every text can be read."""
        for width in WIDTHS:
            for dark in (False, True):
                scheme = "dark" if dark else "light"
                with self.subTest(width=width, scheme=scheme):
                    self.browser.shape(width, dark=dark)
                    self.browser.run("new Promise(requestAnimationFrame)")
                    out = self.browser.run(
                        "(({scrollWidth: all, clientWidth: shown}) => all - shown)"
                        "(document.documentElement)")
                    self.assertLessEqual(out, 0, "the page is wider than its window")
                    for contrast, text in self.browser.run(CONTRASTS):
                        self.assertGreaterEqual(contrast, CONTRAST_MIN, text)
                    height = self.browser.run("document.documentElement.scrollHeight")
                    self.browser.shape(width, height, dark)
                    self.browser.screenshot(
                        os.path.join(options.screens, f"{name}-{width}-{scheme}.png"))

    def check_names(self):
        """Everything that can be operated has a name that a screen reader can say."""
        nodes = self.browser.call("Accessibility.getFullAXTree")["nodes"]
        operated = [node for node in nodes if not node.get("ignored") and node.get("role", {}).get(
            "value") in ("button", "radio", "combobox", "slider", "textbox", "link", "region",
                         "table", "navigation", "group")]
        self.assertGreater(len(operated), 10)
        for node in operated:
            named = node["role"]["value"] in ("table", "group") or node.get("name", {}).get("value")
            self.assertTrue(named, f"{node['role']['value']} without a name: {node}")


class Real(Case):
    """In front of the real programs and the real model."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.cluster = cluster.Cluster(options.bin, "--embedded", "--model", cluster.find_model())
        try:
            cls.cluster.up()
            prompt = "Once upon a time there was a cache that forgot nothing at all. " * 20
            for question in ("Why?", "Why?", "When?"):
                answer = cls.cluster.chat(prompt + question, max_tokens=4)
                assert answer.code == 200, answer.body
        except BaseException:
            cls.tearDownClass()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.cluster.close(False)
        super().tearDownClass()

    def test_what_it_shows(self):
        self.show(self.cluster.endpoint + "/")
        self.browser.until("document.querySelectorAll('.tier').length >= 4")  # of both nodes
        self.browser.until("document.querySelectorAll('#contexts tr').length > 0")
        self.assertEqual(self.browser.run("document.querySelectorAll('#requests tr').length"), 3)
        told = self.cluster.request("/v1/overview").json["windows"]["start"]["tokens"]
        rate = 100 * sum(told["hit"].values()) / told["prompt"]
        self.assertGreater(rate, 30)
        self.assertEqual(self.text("#rate"), f"{rate:.1f}")
        shown = self.browser.run(
            "[...document.querySelectorAll('#parts b')].map((b) => parseFloat(b.textContent))")
        self.assertAlmostEqual(sum(shown), 100, delta=0.5)
        nodes = self.browser.run("[...document.querySelectorAll('.node h3')].map((h) => "
                                 "h.firstChild.data)")
        self.assertEqual(nodes, ["decode-0", "prefill-0"])
        self.check_layout("real")
        self.check_names()
        self.assertEqual(self.browser.complaints, [])

    def test_keyboard(self):
        self.show(self.cluster.endpoint + "/")
        self.browser.until("document.querySelectorAll('#requests tr').length === 3")
        self.browser.run("document.querySelector('#pause').focus()")
        self.browser.press("Enter")
        self.browser.until(
            "document.querySelector('#pause').getAttribute('aria-pressed') === 'true'")
        self.browser.run("document.querySelector('#requests button').focus()")
        self.browser.press("Enter")
        self.browser.until("document.querySelectorAll('#requests .detail').length === 1")
        self.assertIn("chatcmpl-", self.text("#requests .detail"))
        self.assertEqual(self.browser.run("document.activeElement.getAttribute('aria-expanded')"),
                         "true")
        self.browser.press("Enter")
        self.browser.until("document.querySelectorAll('#requests .detail').length === 0")
        self.browser.run("document.querySelector('#plot').focus()")
        self.browser.press("Home")
        self.browser.until("document.querySelector('#plot').getAttribute('aria-valuenow') === '0'")
        self.assertIn("hit", self.browser.run(
            "document.querySelector('#plot').getAttribute('aria-valuetext')"))
        self.assertEqual(self.browser.complaints, [])


class Played(Case):
    """In front of a gateway that is played."""

    def setUp(self):
        super().setUp()
        self.played = self.enterContext(figures.Played())

    def test_layout_and_markup(self):
        self.show(self.played.url)
        self.browser.until("document.querySelectorAll('#requests tr').length >= 25")
        self.browser.until("document.querySelectorAll('#contexts tr').length > 0")
        self.check_layout("played")
        self.check_names()
        self.assertEqual(self.text("#model"), figures.MARKUP)
        self.assertEqual(self.browser.run("document.images.length"), 0)
        self.assertEqual(self.browser.complaints, [])

    def test_draws_quickly_and_loads_little(self):
        """What the browser's thread works for one look, waiting not counted; and what comes."""
        self.browser.call("Performance.enable", timeDomain="threadTicks")
        self.show(self.played.url)
        self.browser.until("document.querySelectorAll('#audits article').length > 0")
        loaded = self.browser.run(FIRST_LOAD)
        self.assertLess(loaded, LOAD_BYTES_MAX)
        costs = []
        for _ in range(5):
            before, looks = self.work_ms(), self.looks()
            self.browser.until(f"performance.getEntriesByName('draw').length > {looks}")
            self.browser.run("new Promise(requestAnimationFrame)")
            costs.append((self.work_ms() - before) / (self.looks() - looks))
        print(f"draws in {min(costs):.1f} to {max(costs):.1f} ms, loads {loaded} bytes")
        self.assertLess(sorted(costs)[len(costs) // 2], DRAW_MS_MAX)
        self.assertEqual(self.browser.complaints, [])

    def looks(self):
        return self.browser.run("performance.getEntriesByName('draw').length")

    def work_ms(self):
        metrics = {metric["name"]: metric["value"]
                   for metric in self.browser.call("Performance.getMetrics")["metrics"]}
        return 1000 * (metrics["ScriptDuration"] + metrics["LayoutDuration"] +
                       metrics["RecalcStyleDuration"])

    def test_pages_of_contexts(self):
        self.show(self.played.url)
        self.browser.until("document.querySelectorAll('#contexts tr').length === 20")
        self.browser.run("document.querySelector('#older').click()")
        self.browser.until("document.querySelector('#place').textContent.startsWith('21 to 40')")
        self.browser.run("document.querySelector('#newer').click()")
        self.browser.until("document.querySelector('#place').textContent.startsWith('1 to 20')")
        self.assertTrue(self.browser.run("document.querySelector('#newer').disabled"))

    def test_a_week(self):
        self.show(self.played.url)
        self.browser.run("document.querySelector('input[value=week]').click()")
        self.browser.until("document.querySelector('#plot').getAttribute('aria-valuemax') > 900")
        self.assertEqual(self.browser.complaints, [])

    def test_key(self):
        """Without a key nothing is shown; a wrong one is told so; a good one is remembered."""
        self.played.server.wants_key = True
        self.browser.shape(1600)
        self.browser.open(self.played.url)
        self.browser.until(ASKS_FOR_KEY)
        self.assertTrue(self.browser.run("document.querySelector('#main').hidden"))
        for key, shown in (("wrong", False), (figures.KEY, True)):
            self.browser.run(f"document.querySelector('#key-text').value = {key!r};"
                             "document.querySelector('#key button').click()")
            self.browser.until(SHOWN if shown else
                               "document.querySelector('#key-error').textContent !== ''")
        self.browser.open(self.played.url)
        self.browser.until(SHOWN)
        # A 401 is written to the console by the browser itself; nothing else was.
        self.assertEqual([line for line in self.browser.complaints if "401" not in line], [])

    def test_the_gateway_goes_away(self):
        self.show(self.played.url)
        self.played.server.is_gone = True
        self.browser.until("document.querySelector('#state').textContent.includes('not answer')")
        self.assertFalse(self.browser.run("document.querySelector('#main').hidden"))


def main():
    global options
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", default=os.path.join(ROOT, "build", "bin"))
    parser.add_argument("--screens")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    if browser.find() is None:
        print(f"skipped: none of {', '.join(browser.NAMES)} is installed (Debian: chromium)")
        print("page: 0 passed, 0 failed, 1 skipped")
        return 0
    kept = options.screens
    options.screens = kept or tempfile.mkdtemp(prefix="kvist-page-screens-")
    os.makedirs(options.screens, exist_ok=True)
    loader = unittest.TestLoader()
    here = sys.modules[__name__]
    suite = (loader.loadTestsFromNames(options.names, here) if options.names
             else loader.loadTestsFromModule(here))
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite)
    if kept is None:
        shutil.rmtree(options.screens, ignore_errors=True)
    failed = len(result.failures) + len(result.errors)
    passed = result.testsRun - len({case.id().split(" (")[0] for case, _ in
                                    result.failures + result.errors})
    print(f"page: {max(passed, 0)} passed, {failed} failed, {len(result.skipped)} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
