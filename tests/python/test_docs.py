"""docs/python.md: its example runs, and it has every public name."""
import os
import re
import subprocess
import sys
import tempfile
import unittest

import kvist

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Docs(unittest.TestCase):
    def setUp(self):
        with open(os.path.join(ROOT, "docs", "python.md"), encoding="utf-8") as file:
            self.text = file.read()

    def test_first_steps(self):
        example = re.search(r"^## First steps$.*?^```python\n(.*?)^```$", self.text, re.M | re.S)
        with tempfile.TemporaryDirectory() as folder:
            said = [self.run_program(example.group(1), folder) for _ in range(2)]
        last = "after the restart every byte is as it was stored"
        self.assertEqual(said[0], ["found 0 of 64 blocks, why not more: NEW", last])
        self.assertEqual(said[1], ["found 64 of 64 blocks, why not more: SHORT", last])

    def run_program(self, program, *arguments):
        done = subprocess.run([sys.executable, "-c", program, *arguments], text=True,
                              capture_output=True, check=False, timeout=300)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout.splitlines()

    def test_every_public_name(self):
        missing = [name for name in kvist.__all__ if f"{name}`" not in self.text
                   and f"`{name}" not in self.text and f".{name}`" not in self.text]
        self.assertEqual(missing, [])
        calls = [name for name in dir(kvist.Store) if not name.startswith("_")]
        missing = [name for name in calls if name not in ("handle", "closed")
                   and not re.search(rf"`[^`]*\b{name}\b[^`]*`", self.text)]
        self.assertEqual(missing, [])


if __name__ == "__main__":
    unittest.main()
