"""Two of our servers beside perftest: a long write, many short ones, and who works meanwhile.

    python3 figures.py OUTBOARD [glance]

OUTBOARD is the server's program. Everything is measured in turns with what it is compared to, and
medians are compared: an emulated processor is as fast as the machine that emulates it is idle. A
glance is shorter and measures once: it shows figures and compares none.
"""

import os
import socket
import statistics
import struct
import subprocess
import sys
import time

from servers import start, upload

GLANCE = sys.argv[2:] == ["glance"]
PIECE = 16 << 20
PIECES = 2 if GLANCE else 16
LONG = PIECE * PIECES
MESSAGE = 1 << 20
SHORT = 4096
ROUNDS = 1 if GLANCE else 3
# Short writes, a few at a time.
SHORTS, SHORTS_EACH = (100, 25) if GLANCE else (1000, 25)
# What is to be kept, by the ratio of medians in one boot.
LONG_SHARE_MIN = 0.9
SHORT_SHARE_MAX = 1.5
# A server that looked for completions again and again would have all of a processor. What ticks by
# time while a request is under way is hundreds of times cheaper where nothing is emulated.
PROCESSOR_SHARE_MAX = 0.25


def perftest(program, size, count, *options):
    """The columns of one run between the two devices."""
    common = ["-x", "1", "-s", str(size), "-n", str(count), *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([program, "-d", "rxe1", *common], **quiet) as other:
        while not is_listening(18515):
            assert other.poll() is None, f"{program} did not start"
            time.sleep(0.05)
        command = [program, "-d", "rxe0", *common, "10.9.0.2"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
        other.wait(60)
    lines = [line.split() for line in shown.stdout.splitlines()]
    return [float(word) for line in lines if line[:1] == [str(size)] for word in line]


def is_listening(port):
    with open("/proc/net/tcp") as v4, open("/proc/net/tcp6") as v6:
        rows = [line.split() for line in (*v4, *v6)]
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


def processor_seconds(process):
    """What the server's threads have used, in user mode and in the kernel."""
    with open(f"/proc/{process.pid}/stat") as stat:
        words = stat.read().rsplit(")", 1)[1].split()
    return [int(word) / os.sysconf("SC_CLK_TCK") for word in words[11:13]]


class Fast:
    """Requests that are made beforehand: the client's own time counts in every figure."""

    def __init__(self, host, command):
        body = f"[{command}, session={host.session})]".encode()
        body = bytes(32) + struct.pack("<Q", len(body)) + body
        head = f"POST /batch HTTP/1.1\r\nHost: {host.name}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.request = head.encode() + body
        self.socket = socket.create_connection(host.name.split(":"))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def seconds(self):
        begin = time.perf_counter()
        self.socket.sendall(self.request)
        reply = self.socket.recv(4096)
        seconds = time.perf_counter() - begin
        assert reply.startswith(b"HTTP/1.1 200"), reply
        return seconds


def long_write(source, sink, servers):
    data = os.urandom(PIECE)
    upload(source, 1, data)
    for host in (source, sink):
        host.run(f"BufferAlloc(100, {LONG}, BufferSpec()")
        views = [f"BufferOffset({101 + at}, {PIECE}, {at * PIECE}, 100" for at in range(PIECES)]
        host.run(*views)
    for at in range(PIECES):
        source.run(f"Transfer(1, {source.session}, {101 + at}")
    source.run(f"CopyOut({100 + PIECES}")
    batch = f"BatchTransfer([({source.session}, 100)], [({sink.session}, 100)]"
    ours, theirs, shares = [], [], []
    for _ in range(ROUNDS):
        columns = perftest("ib_write_bw", MESSAGE, 64, "-t", "64", "-Q", "64")
        theirs.append(columns[3] * 1.048576)
        before = [processor_seconds(process) for process in servers]
        begin = time.monotonic()
        source.run(batch)
        seconds = time.monotonic() - begin
        ours.append(LONG / seconds / 1e6)
        after = [processor_seconds(process) for process in servers]
        shares.append([
            max(now[mode] - then[mode] for now, then in zip(after, before)) / seconds
            for mode in (0, 1)
        ])
    for at in range(PIECES):
        assert sink.run(f"CopyOut({101 + at}") == data, f"other bytes in piece {at}"
    share = statistics.median(ours) / statistics.median(theirs)
    user, kernel = (statistics.median(each) for each in zip(*shares))
    print(
        f"FIGURE {LONG >> 20} MiB by BatchTransfer, messages of 1 MiB: "
        f"{statistics.median(ours):.1f} MB/s, {share:.2f} of ib_write_bw "
        f"({statistics.median(theirs):.1f}); each {show(ours)}, {show(theirs)}"
    )
    print(
        f"FIGURE the busier server meanwhile: {user * 100:.2f} % of a processor in user mode, "
        f"{kernel * 100:.2f} % in the kernel"
    )
    return share, user


def show(numbers):
    return " ".join(f"{number:.1f}" for number in numbers)


def short_writes(source, sink):
    for host in (source, sink):
        host.run(f"BufferAlloc(50, {SHORT}, BufferSpec()", f"BufferAlloc(51, {SHORT}, BufferSpec()")
    write = Fast(source, f"Transfer(50, {sink.session}, 50")
    # The same command, to a buffer of its own server.
    command = Fast(source, f"Transfer(50, {source.session}, 51")
    theirs, ours, own = [], [], []
    for _ in range(ROUNDS):
        theirs.append(perftest("ib_write_lat", SHORT, 300)[4] / 1e6)
        for _ in range(SHORTS // SHORTS_EACH // ROUNDS):
            own += [command.seconds() for _ in range(SHORTS_EACH)]
            ours += [write.seconds() for _ in range(SHORTS_EACH)]
    median = statistics.median
    count = len(ours)
    ours, own, theirs = median(ours), median(own), median(theirs)
    share = ours / (own + theirs)
    print(
        f"FIGURE 4 KiB by Transfer, {count} times: median {ours * 1e6:.0f} us, "
        f"{share:.2f} of ib_write_lat ({theirs * 1e6:.0f}) and a command's round trip "
        f"({own * 1e6:.0f})"
    )
    return share


def main():
    outboard = sys.argv[1]
    processes = []
    try:
        source, process = start(outboard, "rxe0", 6691)
        processes.append(process)
        sink, process = start(outboard, "rxe1", 6692)
        processes.append(process)
        short = short_writes(source, sink)
        long, user = long_write(source, sink, processes)
        if GLANCE:
            return
        assert user <= PROCESSOR_SHARE_MAX, f"{user:.3f} of a processor while the device writes"
        assert short <= SHORT_SHARE_MAX, f"{short:.2f} of ib_write_lat and a round trip"
        assert long >= LONG_SHARE_MIN, f"{long:.2f} of ib_write_bw"
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    main()
