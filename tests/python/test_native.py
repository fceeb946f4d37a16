"""What the package declares is what its library has."""
import unittest

from kvist.native import lib


class Native(unittest.TestCase):
    def test_every_function_that_is_declared_is_there(self):
        # vLLM looks at all that imported modules have: each function is looked up then.
        functions = [name for name in vars(lib) if name.startswith("kv")]
        self.assertIn("kvist_match", functions)
        self.assertGreater(len(functions), 30)


if __name__ == "__main__":
    unittest.main()
