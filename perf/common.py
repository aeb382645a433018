"""What the instruments share: building, servers as processes, cores, the machine, results."""

import ctypes
import datetime
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "perf" / "results"
START_LIMIT_SECONDS = 60
STOP_LIMIT_SECONDS = 20
# The exit code of an instrument that lacks a program; what to install is said before.
IMPOSSIBLE = 3
# Of one run of the load generator.
LOAD_LIMIT_SECONDS = {"smoke": 60, "quick": 120, "full": 600}
CLONE_NEWNET = 0x40000000
CONGESTION = pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control")


def say(line):
    print(line, file=sys.stderr, flush=True)


def impossible(reason):
    say(f"SKIPPED: {reason}")
    sys.exit(IMPOSSIBLE)


class Cores:
    """Where the server and the load run: a core each, the same one where there is only one."""

    def __init__(self):
        allowed = sorted(os.sched_getaffinity(0))
        self.server, self.load = allowed[0], allowed[-1]
        self.both = sorted({self.server, self.load})
        if self.server == self.load:
            say("there is only one core here: the server and the load share it")


class Server:
    """A server process that has said where it listens; a context that ends it."""

    def __init__(self, name, command, folder, env=None, core=None, listening=None):
        self.name = name
        self.log = open(folder / f"{name}.log", "w+")
        pinned = ["taskset", "-c", core] if core is not None else []
        self.process = subprocess.Popen(
            [str(part) for part in pinned + command], cwd=folder, env=env,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, text=True,
            start_new_session=True)
        self.pid = self.process.pid
        # A server that says nothing, such as nginx, is known by its address.
        self.address = listening or self.announced()
        if listening and not answers(listening):
            self.stop()
            raise RuntimeError(f"{name} did not start: {self.errors()}")
        # Nothing the server writes later may fill the pipe.
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def announced(self):
        # A server that never says anything is killed, which ends the line.
        timer = threading.Timer(START_LIMIT_SECONDS, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        found = re.search(r"listening on (127\.0\.0\.1:\d+)", line)
        if not found:
            self.stop()
            raise RuntimeError(f"{self.name} did not start: {line.strip()}\n{self.errors()}")
        return found[1]

    def errors(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read()[-4000:]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            say(f"{self.name} did not end after SIGTERM")
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def answers(address):
    """Whether something accepts connections there within a while."""
    host, port = address.split(":")
    for _ in range(100):
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return True
        except OSError:
            threading.Event().wait(0.05)
    return False


def output_of(*command):
    """The command's first line, or an empty string."""
    try:
        done = subprocess.run([str(part) for part in command], cwd=ROOT, text=True,
                              capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.partition("\n")[0].strip()


def build(server=None, wanted=True):
    """Builds the load, and the server unless one is given or none is wanted; returns the target
    folder and the server."""
    command = ["cargo", "build", "--release", "--locked", "--example", "load"]
    if not (ROOT / "Cargo.lock").exists():
        command.remove("--locked")
    if wanted and not server:
        command += ["--bin", "outboard"]
    subprocess.run(command, cwd=ROOT, check=True)
    metadata = subprocess.run(["cargo", "metadata", "--no-deps", "--format-version=1"], cwd=ROOT,
                              check=True, capture_output=True, text=True)
    target = pathlib.Path(json.loads(metadata.stdout)["target_directory"])
    return target, (server or target / "release" / "outboard").absolute()


def can_busy_poll(program):
    """Whether the server has the option to spin before it sleeps."""
    done = subprocess.run([program, "serve", "--help"], text=True, capture_output=True, check=True)
    return "--busy-poll" in done.stdout


def start_outboard(program, folder, cores, *options, name="outboard"):
    """Outboard with a shard on each of the cores. Its worker processes run on any core."""
    command = [program, "serve", "--listen", "127.0.0.1:0", "--device",
               "cpu", "--cores", ",".join(map(str, cores)), "--shards", len(cores),
               "--cache-dir", folder / "cache", *options]
    return Server(name, command, folder)


def load(target, cores, effort, *arguments, pid=None):
    """One run of the load generator on its core."""
    command = [target / "release" / "examples" / "load", *arguments, "--core", cores.load,
               "--effort", effort]
    if pid:
        command += ["--pid", pid]
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True,
                          timeout=LOAD_LIMIT_SECONDS[effort])
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[1:])} failed: {done.stderr}")
    return json.loads(done.stdout)


def cpu_seconds(pid):
    """Processor time of a process, its children, and those that have ended."""
    ticks, pids = 0, [pid]
    for pid in pids:
        folder = pathlib.Path("/proc") / str(pid)
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
            for task in (folder / "task").iterdir():
                pids += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def compiler():
    """A C compiler for what the machine's floors need."""
    return next((name for name in ("clang-19", "clang", "cc") if shutil.which(name)), None)


def own_network(congestion):
    """Moves this process into a network of its own with another congestion control: the server's
    sockets have it too, and nobody else's."""
    if ctypes.CDLL(None).unshare(CLONE_NEWNET) != 0:
        impossible("--congestion needs root, to make a network namespace")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        # SIOCGIFFLAGS and SIOCSIFFLAGS with IFF_UP: the loopback device begins switched off.
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16sh22x", fcntl.ioctl(any_socket, 0x8913, request))[1]
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh22x", b"lo", flags | 1))
    try:
        CONGESTION.write_text(congestion)
    except OSError as error:
        impossible(f"{congestion}: {error.strerror}; it has to be in "
                   "net.ipv4.tcp_allowed_congestion_control")


def machine(cores):
    """What the figures depend on."""
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return {
        "cpu": model[1] if model else os.uname().machine,
        "cores": os.cpu_count(),
        "server_core": cores.server,
        "load_core": cores.load,
        "kernel": os.uname().release,
        "congestion_control": CONGESTION.read_text().strip(),
        "load_average_before": os.getloadavg()[0],
        "rustc": output_of("rustc", "--version"),
    }


def record_of(arguments, cores):
    """What every result begins with."""
    commit = output_of("git", "rev-parse", "--short=10", "HEAD") or "unknown"
    if output_of("git", "status", "--porcelain"):
        commit += "-modified"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "effort": arguments.effort,
        "server": "given with --server" if arguments.server else "built from this commit",
        "machine": machine(cores),
    }


def headline(record):
    described = record["machine"]
    return (f"Outboard {record['server']}; {described['cpu']}, {described['cores']} cores, "
            f"Linux {described['kernel']}, {described['congestion_control']}, load average "
            f"{described['load_average_before']:.1f} before; commit {record['commit']}")


def medians(rounds):
    """The median of each name over the rounds that have it."""
    names = {name: None for measured in rounds for name in measured}
    return {name: statistics.median(r[name] for r in rounds if name in r) for name in names}


def number(value):
    if value is None:
        return "-"
    if abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:.0f}" if abs(value) < 1e6 else f"{value / 1e6:.3g}M"


def save(record, drawing, folder, kind=""):
    """Writes DATE-COMMIT-MACHINE.json and the drawing beside it; returns the first path."""
    slug = re.sub(r"[^a-z0-9]+", "-", record["machine"]["cpu"].lower()).strip("-")
    name = f"{record['date'][:10]}-{record['commit']}-{slug}-{record['machine']['cores']}c{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    path.with_suffix(".svg").write_text(drawing)
    return path


def add_common_arguments(parser):
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", dest="effort", action="store_const", const="quick",
                        help="fewer repetitions")
    effort.add_argument("--smoke", dest="effort", action="store_const", const="smoke",
                        help="only show that everything works")
    parser.set_defaults(effort="full")
    parser.add_argument("--congestion", metavar="NAME", help="a congestion control for all "
                        "sockets instead of the system's, such as reno; as root")
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    add_server_argument(parser)


def add_server_argument(parser):
    parser.add_argument("--server", type=pathlib.Path, metavar="BINARY",
                        help="this outboard instead of building one")
