#!/usr/bin/env python3
"""The wheel: what is in it, and that it needs nothing of the machine that it is installed on.

usage: check_wheel.py --build FOLDER

FOLDER/wheel has the wheel (tools/wheel), FOLDER/venv is an environment in which it is installed
(tools/test python). The last line is "wheel: N passed, N failed, N skipped".
"""
import argparse
import email
import glob
import os
import re
import sys
import tempfile
import zipfile

from check import ROOT, Skipped, read, run, try_all

# Opens a store with a disk tier, so that RocksDB and io_uring are at work; says what is mapped.
PROBE = """
import sys, kvist
part = kvist.Part(kvist.PartKind.OPAQUE, heads=1, dims=4096, element_bytes=1)
layout = kvist.Layout(block_tokens=16, groups=[kvist.Group(
    kind=kvist.GroupKind.FULL, layers=range(2), window_tokens=0, parts=[part])])
with kvist.Store(layout, directory=sys.argv[1], disk_bytes=64 << 20, host_bytes=16 << 20,
                 segment_bytes=8 << 20) as store:
    with open("/proc/self/maps", encoding="utf-8") as maps:
        print("\\n".join(sorted({line.split(maxsplit=5)[-1].strip() for line in maps
                                if ".so" in line})))
"""


class Wheel:
    """The wheel's file, and the environment in which it is installed."""

    def __init__(self, build):
        found = glob.glob(os.path.join(build, "wheel", "*.whl"))
        assert len(found) == 1, f"wheels in {build}/wheel: {found}; do: tools/wheel"
        self.path, self.build = found[0], build
        self.python = os.path.join(build, "venv", "bin", "python")
        with zipfile.ZipFile(self.path) as archive:
            self.names = archive.namelist()
            self.metadata = email.message_from_bytes(archive.read(self.dist_info("METADATA")))
            self.tags = email.message_from_bytes(archive.read(self.dist_info("WHEEL")))

    def dist_info(self, name):
        return next(path for path in self.names
                    if re.fullmatch(rf"kvist-[^/]*\.dist-info/{name}", path))

    def bundled(self):
        """Libraries beside libkvist.so, by the beginning of their names: {"librocksdb": path}."""
        found = [path for path in self.names if path.startswith("kvist.libs/") and ".so" in path]
        return {re.match(r"(lib.+?)-[0-9a-f]{8}\.so", os.path.basename(path)).group(1): path
                for path in found}

    def probe(self, *before):
        """What a process that uses an open store has mapped; `before` is put before the command."""
        with tempfile.TemporaryDirectory() as folder:
            # -I: neither this folder nor PYTHONPATH, the installed package alone.
            done = run(*before, self.python, "-I", "-c", PROBE, folder)
        assert done.returncode == 0, f"{done.stdout[-500:]}{done.stderr[-1500:]}"
        return done.stdout.split("\n")


def check_tags_and_metadata(wheel):
    """any Python 3, one platform; version, licence and needs are the project's"""
    tag = wheel.tags["Tag"]
    assert re.fullmatch(r"py3-none-manylinux_2_\d+_x86_64", tag), tag
    assert os.path.basename(wheel.path).endswith(f"-{tag}.whl"), wheel.path
    version = re.search(r"^project\(kvist VERSION (\S+)", read(ROOT, "CMakeLists.txt"), re.M)
    assert wheel.metadata["Version"] == version.group(1), wheel.metadata["Version"]
    assert wheel.metadata["License-Expression"] == "Apache-2.0"
    needs = {re.match(r"[\w-]+", need).group(0) for need in wheel.metadata.get_all("Requires-Dist")}
    assert needs == {"cffi", "numpy"}, needs
    said = run(wheel.python, "-I", "-c", "import kvist; print(kvist.__version__)")
    assert said.stdout.strip() == version.group(1), said.stdout + said.stderr[-500:]


def check_modules(wheel):
    """every module is in it, and nothing else of Python"""
    package = os.path.join(ROOT, "python", "kvist")
    wanted = {os.path.relpath(path, os.path.dirname(package)) for path in
              glob.glob(os.path.join(package, "**", "*.py"), recursive=True)}
    wanted |= {"kvist/_declarations.py", "kvist/_version.py", "kvist/py.typed",
               "kvist/libkvist.so"}
    has = {path for path in wheel.names if path.startswith("kvist/") and not path.endswith("/")}
    assert has == wanted, f"missing {sorted(wanted - has)}, too many {sorted(has - wanted)}"


def check_licences(wheel):
    """each library in it has its licence in it"""
    has = [os.path.basename(path) for path in wheel.names if "/licenses/" in path]
    assert "LICENSE" in has, has
    assert wheel.bundled(), "no library is in it"
    for name in wheel.bundled():
        assert any(licence.startswith(f"{name}.so") for licence in has), \
            f"{name} is in the wheel without its licence; there are {has}"


def check_libraries_are_its_own(wheel):
    """a process that uses it maps each library that it needs out of the wheel"""
    mapped = wheel.probe()
    for name, path in wheel.bundled().items():
        assert any(line.endswith(path) for line in mapped), f"{path} is not mapped: {mapped}"
        # Python's own modules may have theirs of the system beside it.
        others = [line for line in mapped if re.search(rf"/{re.escape(name)}\.so", line)]
        assert not others or name in ("libcrypto", "libbz2", "libzstd"), others


def check_system_has_none(wheel):
    """it works where the system has none of these libraries"""
    hidden = []
    for name in wheel.bundled():
        for folder in ("/lib", "/usr/lib", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"):
            hidden += glob.glob(f"{folder}/{name}.so*")
    hidden = sorted({os.path.realpath(path) for path in hidden})
    assert hidden, "this machine has none of them: nothing to hide"
    # An empty file in the place of each, in a mount namespace that ends with the process.
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else \
        ["unshare", "--user", "--map-root-user", "--mount"]
    hide = " && ".join(f"mount --bind /dev/null {path}" for path in hidden)
    if run(*unshare, "sh", "-c", hide).returncode != 0:
        raise Skipped("no mount namespace can be made here")
    mapped = wheel.probe(*unshare, "sh", "-c", hide + ' && exec "$@"', "sh")
    assert any("librocksdb-" in line for line in mapped), mapped
    assert not set(mapped) & set(hidden), set(mapped) & set(hidden)


def check_half_is_refused(wheel):
    """what pip makes of the sources alone is an error that says what to do"""
    done = run(wheel.python, os.path.join(ROOT, "python", "setup.py"), "--version")
    assert done.returncode != 0 and "tools/wheel" in done.stderr, done.stdout + done.stderr[-500:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", required=True)
    arguments = parser.parse_args()
    checks = [value for name, value in globals().items() if name.startswith("check_")]
    return try_all("wheel", checks, Wheel(os.path.abspath(arguments.build)))


if __name__ == "__main__":
    sys.exit(main())
