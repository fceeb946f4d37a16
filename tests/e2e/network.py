"""Network namespaces that a test makes itself, joined by a bridge in a hub.

    hub 10.77.0.1, relays 10.77.0.1NN ---- bridge ---- veth ---- eth0 10.77.0.NN of a namespace

Root takes network namespaces alone; everybody else gets a user namespace around them, so that no
privilege is needed where the kernel allows those. Each namespace lives as long as a `cat` in it
whose input is a pipe of this process: however this process ends, nothing of it stays.

What a fault covers: link_down, slow and deaf act on every packet of a node, UCX's included. The
relay (relay.py) acts on control connections and on data fronts alone: UCX's own ports stand in its
worker addresses, past any relay.
"""
import atexit
import os
import subprocess

PROBE = "ip link set lo up && ip link add probe type bridge && " \
        "tc qdisc add dev lo root tbf rate 1gbit burst 256k latency 50ms && exec cat"
HUB, NOBODY = "02:00:00:00:00:02", "02:00:00:00:00:01"  # no interface has the second


def why_not():
    """Why there can be no namespaces here, or None."""
    for program in ("unshare", "nsenter", "setpriv", "ip", "tc"):
        if not any(os.access(os.path.join(folder, program), os.X_OK)
                   for folder in os.environ.get("PATH", "").split(":") + ["/usr/sbin", "/sbin"]):
            return f"there is no {program} (Debian: util-linux, iproute2)"
    run = subprocess.run([*_unshare(), "sh", "-c", PROBE], stdin=subprocess.DEVNULL,
                         capture_output=True, text=True, env=_environment())
    if run.returncode != 0:
        return "network namespaces cannot be made: " + " ".join(run.stderr.split())
    return None


def _unshare():
    return ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user",
                                                           "--net"]


def _environment():
    return {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}


class Network:
    """Namespaces by name. Use it from one thread: children die with the thread that made them."""

    def __init__(self):
        self.holders = {}
        self.numbers = {}
        self.relay_count = 0
        self.hub = self._hold(_unshare())
        self.holders["hub"] = self.hub
        # An address of its own: one that is taken from a port changes as ports come and go.
        self.run("hub", "sh", "-c", f"ip link set lo up && ip link add kvist address {HUB} "
                 "type bridge && ip addr add 10.77.0.1/24 dev kvist && ip link set kvist up")
        atexit.register(self.close)

    def _hold(self, unshare):
        holder = subprocess.Popen([*unshare, "sh", "-c", "echo here && exec cat"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  env=_environment())
        assert holder.stdout.readline() == b"here\n", "a namespace could not be made"
        return holder

    def enter(self, name):
        """The words before a command that run it in that namespace, to die with this process."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", "--target", str(self.holders[name].pid), *user, "--net", "setpriv",
                "--pdeathsig", "KILL"]

    def run(self, name, *command):
        run = subprocess.run([*self.enter(name), *command], capture_output=True, text=True,
                             env=_environment())
        assert run.returncode == 0, f"{' '.join(command)} in {name}: {run.stderr}"
        return run.stdout

    def start(self, name, command, **options):
        return subprocess.Popen([*self.enter(name), *command], env=_environment(), **options)

    def add(self, name):
        """A namespace with an address of its own."""
        number = 10 + len(self.holders)
        self.numbers[name] = number
        holder = self._hold([*self.enter("hub"), "unshare", "--net"])
        self.holders[name] = holder
        self.run("hub", "sh", "-c",
                 f"ip link add v{number} type veth peer name eth0 netns {holder.pid} && "
                 f"ip link set v{number} master kvist up")
        self.run(name, "sh", "-c", "ip link set lo up && "
                 f"ip addr add {self.address(name)}/24 dev eth0 && ip link set eth0 up")

    def address(self, name):
        return f"10.77.0.{self.numbers[name]}"

    def add_relay(self):
        """One more address in the hub."""
        self.relay_count += 1
        address = f"10.77.0.{100 + self.relay_count}"
        self.run("hub", "ip", "addr", "add", address + "/24", "dev", "kvist")
        return address

    # Faults.

    def link_down(self, name):
        """The cable is pulled: both directions, all traffic, and nobody is told."""
        self.run("hub", "ip", "link", "set", f"v{self.numbers[name]}", "nomaster")

    def link_up(self, name):
        self.run("hub", "ip", "link", "set", f"v{self.numbers[name]}", "master", "kvist")

    def slow(self, name, bytes_per_second):
        """What the node sends passes at this rate and no faster."""
        self.run(name, "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate",
                 f"{int(bytes_per_second) * 8}bit", "burst", "128k", "latency", "100ms")

    def fast(self, name):
        """Undoes slow."""
        self.run(name, "sh", "-c", "tc qdisc del dev eth0 root 2>/dev/null || true")

    def deaf(self, name, sender):
        """One direction dies: what sender sends to name goes to nobody."""
        self.run(sender, "ip", "neigh", "replace", self.address(name), "lladdr", NOBODY, "nud",
                 "permanent", "dev", "eth0")

    def heard(self, name, sender):
        """Undoes deaf."""
        self.run(sender, "ip", "neigh", "del", self.address(name), "dev", "eth0")

    def close(self):
        for holder in reversed(list(self.holders.values())):
            holder.stdin.close()
            holder.stdout.close()
            holder.wait(10)
        self.holders.clear()
