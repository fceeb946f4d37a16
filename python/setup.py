"""The wheel's tag: the modules run on any Python 3, libkvist.so on one platform."""
import os
import sys

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel

LIBRARY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "kvist", "libkvist.so")


class PlatformDistribution(Distribution):
    """libkvist.so makes it one platform's."""

    def has_ext_modules(self) -> bool:
        return True


class PlatformWheel(bdist_wheel):
    """py3-none-PLATFORM: nothing in it is built for one interpreter."""

    def get_tag(self) -> "tuple[str, str, str]":
        return "py3", "none", super().get_tag()[2]


if not os.path.exists(LIBRARY):
    sys.exit(f"error: {LIBRARY} is not there: this folder is only the half of the package that is "
             "Python\n  do:  tools/wheel builds the whole; pip install what it prints")
setup(distclass=PlatformDistribution, cmdclass={"bdist_wheel": PlatformWheel})
