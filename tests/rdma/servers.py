"""Our server writes by RDMA into another of ours, and into the client's own Python server.

    python3 servers.py PYTHON OUTBOARD

PYTHON is an interpreter that has tinygrad, or nothing; OUTBOARD the server's program. The one that
writes has device rxe0, the others have rxe1.
"""

import os
import subprocess
import sys
import threading
import time

from reference import Host, hashlib, resources

SIZES = [4, 4096, (1 << 20) + 3]
LONG = 32 << 20


def upload(host, number, data):
    name = hashlib.sha256(data).hexdigest()
    host.run(
        f"BufferAlloc({number}, {len(data)}, BufferSpec()", f"CopyIn({number}, '{name}'", blobs=(data,)
    )


def check(source, sink):
    """One by one, then all at once, to a view too."""
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


def fails(source, command):
    try:
        source.run(command)
    except AssertionError as failure:
        return str(failure)
    raise SystemExit(f"{command} worked")


def check_ours(source, sink, process):
    check(source, sink)
    assert resources("mr") > 0, "nothing was registered: it went over HTTP"
    sink.run("BufferAlloc(20, 5, BufferSpec()")
    text = fails(source, f"Transfer(0, {sink.session}, 20")
    assert "they must be equal" in text, text
    text = fails(source, f"Transfer(0, {sink.session}, 99")
    assert "unknown buffer 99" in text, text
    upload(source, 9, os.urandom(LONG))
    sink.run(f"BufferAlloc(9, {LONG}, BufferSpec()", "BufferOffset(30, 64, 0, 9")
    said = []
    writer = threading.Thread(
        target=lambda: said.append(fails(source, f"Transfer(9, {sink.session}, 9"))
    )
    writer.start()
    begin = time.monotonic()
    while sink.run("CopyOut(30") == bytes(64):
        assert time.monotonic() - begin < 60, "nothing was written"
    process.kill()
    begin = time.monotonic()
    writer.join(60)
    print(f"{time.monotonic() - begin:.2f} s after the end: {said}")
    assert said and sink.name in said[0], said


def start(outboard, device, port):
    arguments = [outboard, "--listen", f"127.0.0.1:{port}", "--rdma-device", device, "--no-cache"]
    server = subprocess.Popen([*arguments, "--shards", "1", "--device", "cpu"])
    host = Host(port)
    host.wait()
    return host, server


def main():
    python, outboard = sys.argv[1:]
    processes = []
    try:
        source, process = start(outboard, "rxe0", 6681)
        processes.append(process)
        if python:
            names = {"DEV": "CPU", "IB_DEV": "1", "DEFAULT_GID": "1", "PORT": "6683"}
            arguments = [python, "-m", "tinygrad.runtime.ops_remote"]
            processes.append(subprocess.Popen(arguments, env={**os.environ, **names}))
            reference = Host(6683)
            reference.wait()
            check(source, reference)
            source.run("SessionFree(")
        sink, process = start(outboard, "rxe1", 6682)
        processes.append(process)
        check_ours(source, sink, process)
        source.run("SessionFree(")
        again, process = start(outboard, "rxe1", 6684)
        processes.append(process)
        check(source, again)
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    main()
