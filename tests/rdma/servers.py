"""Our server writes by RDMA into another of ours, and into the client's own Python server.

    python3 servers.py PYTHON OUTBOARD

PYTHON is an interpreter that has tinygrad, or nothing; OUTBOARD the server's program. The one that
writes has device rxe0, the others have rxe1. What a server holds is what the kernel counts for its
device.
"""

import os
import subprocess
import sys
import threading
import time

from reference import Host, hashlib, resources, wait_until

SIZES = [4, 4096, (1 << 20) + 3]
LONG = 32 << 20
# Long enough for its pages to be given back when it is freed.
RECYCLED = 1 << 20
HELD = ["qp", "mr"]
# By device, where nobody is connected.
IDLE = {}


def upload(host, number, data):
    name = hashlib.sha256(data).hexdigest()
    host.run(
        f"BufferAlloc({number}, {len(data)}, BufferSpec()", f"CopyIn({number}, '{name}'", blobs=(data,)
    )


def check(source, sink):
    """One by one, then all at once."""
    source, sink = source.another(), sink.another()
    datas = [os.urandom(size) for size in SIZES]
    for number, data in enumerate(datas):
        upload(source, number, data)
        sink.run(f"BufferAlloc({number}, {len(data)}, BufferSpec()")
        begin = time.monotonic()
        source.run(f"Transfer({number}, {sink.session}, {number}")
        print(f"{len(data)} bytes in {time.monotonic() - begin:.3f} s")
        assert sink.run(f"CopyOut({number}") == data, f"{len(data)} bytes came as others"
    for number, data in enumerate(datas):
        sink.run(f"BufferAlloc({10 + number}, {len(data)}, BufferSpec()")
    sources = ", ".join(f"({source.session}, {number})" for number in range(len(SIZES)))
    sinks = ", ".join(f"({sink.session}, {10 + number})" for number in range(len(SIZES)))
    source.run(f"BatchTransfer([{sources}], [{sinks}]")
    for number, data in enumerate(datas):
        assert sink.run(f"CopyOut({10 + number}") == data, f"{len(data)} bytes came as others"
    held = [resources(kind) for kind in HELD]
    source.end()
    sink.end()
    return held


def fails(source, command):
    try:
        source.run(command)
    except AssertionError as failure:
        return str(failure)
    raise SystemExit(f"{command} worked")


def check_errors(source, sink):
    source, sink = source.another(), sink.another()
    upload(source, 0, bytes(4))
    sink.run("BufferAlloc(20, 5, BufferSpec()")
    text = fails(source, f"Transfer(0, {sink.session}, 20")
    assert "they must be equal" in text, text
    text = fails(source, f"Transfer(0, {sink.session}, 99")
    assert "unknown buffer 99" in text, text
    source.end()
    sink.end()


def check_places(source, sink):
    """A number that is used again names another place, and one that is not names none."""
    source, sink = source.another(), sink.another()
    for data in (b"once", b"more"):
        upload(source, 1, data)
        sink.run("BufferAlloc(1, 4, BufferSpec()")
        source.run(f"Transfer(1, {sink.session}, 1")
        assert sink.run("CopyOut(1") == data
        source.run("BufferFree(1")
        sink.run("BufferFree(1")
    upload(source, 1, b"none")
    text = fails(source, f"Transfer(1, {sink.session}, 1")
    assert "unknown buffer 1" in text, text
    source.end()
    sink.end()


def check_memory_used_again(source, sink):
    """Buffers that lie where others were, behind long work that is to do with those."""
    source, sink = source.another(), sink.another()
    data = os.urandom(RECYCLED)
    upload(source, 1, data)

    def alloc(number, size=RECYCLED):
        return f"BufferAlloc({number}, {size}, BufferSpec()"

    def copy(host, number, to):
        return f"Transfer({number}, {host.session}, {to}"

    def long_work(host):
        return [alloc(90, 24 << 20), alloc(91, 24 << 20), *[copy(host, 90, 91)] * 8]

    # What lies there is written, its pages are given back, and it is made anew.
    sink.run(alloc(1), alloc(2))
    sink.run(*long_work(sink), copy(sink, 1, 2), "BufferFree(2", alloc(2))
    source.run(alloc(2), alloc(3))
    source.run(
        *long_work(source),
        copy(source, 1, 3),
        "BufferFree(2",
        alloc(2),
        copy(source, 3, 2),
        f"Transfer(2, {sink.session}, 2",
    )
    assert sink.run("CopyOut(2") == data, "a buffer where another was came as other bytes"
    source.end()
    sink.end()


def check_clients(source, sink):
    """Clients whose sessions live on different shards of the same server."""
    data = os.urandom(4096)
    pairs = [(source.another(), sink.another()) for _ in range(6)]
    for source, sink in pairs:
        upload(source, 1, data)
        sink.run(f"BufferAlloc(1, {len(data)}, BufferSpec()")
    for _ in range(2):
        for source, sink in pairs:
            source.run(f"Transfer(1, {sink.session}, 1")
    for source, sink in pairs:
        assert sink.run("CopyOut(1") == data
        source.end()
        sink.end()


class LongWrite:
    """A write of some seconds, of which some has arrived."""

    def __init__(self, source, sink):
        self.source, self.sink, self.said = source.another(), sink.another(), []
        self.data = os.urandom(1 << 20) * (LONG >> 20)
        upload(self.source, 9, self.data)
        self.sink.run(
            f"BufferAlloc(9, {LONG}, BufferSpec()",
            "BufferOffset(30, 64, 0, 9",
            f"BufferOffset(31, 64, {LONG - 64}, 9",
        )
        self.thread = threading.Thread(target=self.write)
        self.thread.start()
        wait_until(lambda: self.sink.run("CopyOut(30") != bytes(64), "something arrives")
        assert self.sink.run("CopyOut(31") == bytes(64), "all was written already"

    def write(self):
        try:
            self.source.run(f"Transfer(9, {self.sink.session}, 9")
            self.said.append("")
        except (AssertionError, OSError) as failure:
            self.said.append(str(failure))

    def outcome(self):
        """What the writer's client was told, or nothing if all is well."""
        begin = time.monotonic()
        self.thread.join(60)
        assert self.said, "nothing was said of a write"
        print(f"{time.monotonic() - begin:.2f} s later: {self.said[0] or 'it is done'}")
        return self.said[0]


def check_frees(source, sink):
    """Either end's buffer is freed in the middle of a write, by another connection of its client."""
    write = LongWrite(source, sink)
    # The device reads on where the buffer was; its memory is not anybody else's meanwhile.
    beside = Host(source.port)
    beside.session = write.source.session
    beside.run("BufferFree(9", f"BufferAlloc(9, {LONG}, BufferSpec()")
    assert not write.outcome()
    assert write.sink.run("CopyOut(9") == write.data, "what was freed came as other bytes"
    write.source.end()
    write.sink.end()

    write = LongWrite(source, sink)
    write.sink.run("BufferFree(9")
    said = write.outcome()
    assert write.sink.name in said and "RDMA" in said, said
    begin = write.sink.run("CopyOut(30")
    write.source.end()
    assert write.sink.run("CopyOut(30") == begin
    write.sink.end()
    check(source, sink)


def check_death_of_sink(source, sink, process):
    write = LongWrite(source, sink)
    process.kill()
    process.wait()
    said = write.outcome()
    assert sink.name in said, said
    write.source.end()
    seconds = wait_until(lambda: held("rxe0") == IDLE["rxe0"], "the writer has let go of its link")
    print(f"the writer held nothing {seconds:.2f} s later")


def check_death_of_writer(source, process, sink):
    write = LongWrite(source, sink)
    process.kill()
    process.wait()
    write.outcome()
    seconds = wait_until(lambda: resources("qp") == IDLE["rxe1"][0], "the queue pair is gone")
    print(f"the writer's queue pair went {seconds:.2f} s after the writer")
    arrived = write.sink.run("CopyOut(9")
    assert arrived != bytes(LONG) and len(arrived) == LONG
    write.sink.end()
    wait_until(lambda: held("rxe1") == IDLE["rxe1"], "nothing is registered")


def held(device):
    return [resources(kind, device) for kind in HELD]


def start(outboard, device, port, shards=1):
    arguments = [outboard, "--listen", f"127.0.0.1:{port}", "--rdma-device", device, "--no-cache"]
    server = subprocess.Popen([*arguments, "--shards", str(shards), "--device", "cpu"])
    host = Host(port)
    host.wait()
    return host, server


def start_reference(python):
    names = {"DEV": "CPU", "IB_DEV": "1", "DEFAULT_GID": "1", "PORT": "6683"}
    arguments = [python, "-m", "tinygrad.runtime.ops_remote"]
    return Host(6683), subprocess.Popen(arguments, env={**os.environ, **names})


def main():
    python, outboard = sys.argv[1:]
    processes = []
    IDLE.update({device: held(device) for device in ("rxe0", "rxe1")})
    try:
        source, writer = start(outboard, "rxe0", 6681)
        processes.append(writer)
        sink, process = start(outboard, "rxe1", 6682, shards=2)
        processes.append(process)
        pairs, registered = check(source, sink)
        assert registered > 0 and pairs > IDLE["rxe1"][0], "it went over HTTP"
        if python:
            reference, other = start_reference(python)
            processes.append(other)
            reference.wait()
            check(source, reference)
            # Its end of a connection spins when it is asked to end.
            other.kill()
            other.wait()
        # After a pause, if there was that; else by the same link.
        check(source, sink)
        check_errors(source, sink)
        check_places(source, sink)
        check_memory_used_again(source, sink)
        check_clients(source, sink)
        check_frees(source, sink)
        check_death_of_sink(source, sink, process)
        sink, process = start(outboard, "rxe1", 6684)
        processes.append(process)
        check(source, sink)
        check_death_of_writer(source, writer, sink)
        source, writer = start(outboard, "rxe0", 6685)
        processes.append(writer)
        check(source, sink)
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    main()
