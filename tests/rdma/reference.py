"""The client's own Python server writes into ours by RDMA, and dies in the middle of a write.

    python3 reference.py PYTHON OUTBOARD

PYTHON is an interpreter that has tinygrad, OUTBOARD the server's program. The reference server gets
device rxe0 and ours rxe1; this script is the client of both, by HTTP alone. It has a tensor
transferred to a buffer of ours and one to a view, and reads both back.
"""

import ast
import contextlib
import hashlib
import http.client
import os
import struct
import subprocess
import sys
import threading
import time

NONCE = "0123456789abcdef0123456789abcdef"
SIZE = 1 << 20
OFFSET, PART = 4099, 5000
LONG = 32 << 20


class Host:
    """One server, as a client names it."""

    def __init__(self, port, nonce=NONCE):
        self.port = port
        self.name = f"127.0.0.1:{port}"
        self.session = f"SessionKey(host='{self.name}', idx=0, nonce='{nonce}')"
        self.connection = http.client.HTTPConnection(self.name, timeout=120)

    def run(self, *commands, blobs=()):
        """Commands without their session and the last parenthesis."""
        ends = ["" if command.endswith("(") else ", " for command in commands]
        text = ", ".join(
            f"{command}{end}session={self.session})" for command, end in zip(commands, ends)
        )
        body = b""
        for blob in (*blobs, f"[{text}]".encode()):
            body += hashlib.sha256(blob).digest() + struct.pack("<Q", len(blob)) + blob
        self.connection.request("POST", "/batch", body)
        response = self.connection.getresponse()
        reply = response.read()
        assert response.status == 200, (self.name, response.status, reply)
        return reply

    def another(self):
        """Another client of the same server."""
        return Host(self.port, os.urandom(16).hex())

    def end(self):
        self.run("SessionFree(")
        self.connection.close()

    def wait(self):
        for _ in range(1200):
            try:
                self.connection.connect()
                return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError(f"{self.name} does not answer")


def properties(host):
    reply = host.run("GetProperties(")
    call = ast.parse(reply.decode(), mode="eval").body
    return {keyword.arg: keyword.value for keyword in call.keywords}


def check(theirs, ours):
    assert properties(theirs)["ib_gid"].value is not None, "the reference found no device"
    assert properties(ours)["ib_gid"].value is not None, "we found no device"
    data = os.urandom(SIZE)
    name = hashlib.sha256(data).hexdigest()
    part = data[:PART]
    part_name = hashlib.sha256(part).hexdigest()
    theirs.run(
        f"BufferAlloc(1, {SIZE}, BufferSpec()",
        f"CopyIn(1, '{name}'",
        f"BufferAlloc(2, {PART}, BufferSpec()",
        f"CopyIn(2, '{part_name}'",
        blobs=(data, part),
    )
    ours.run(
        f"BufferAlloc(1, {SIZE}, BufferSpec()",
        f"BufferAlloc(3, {SIZE}, BufferSpec()",
        f"BufferOffset(2, {PART}, {OFFSET}, 3",
    )
    begin = time.monotonic()
    theirs.run(f"Transfer(1, {ours.session}, 1")
    print(f"the reference wrote {SIZE} bytes in {time.monotonic() - begin:.2f} s")
    assert ours.run("CopyOut(1") == data, "a buffer has other bytes"
    theirs.run(f"Transfer(2, {ours.session}, 2")
    whole = ours.run("CopyOut(3")
    expected = bytes(OFFSET) + part + bytes(SIZE - OFFSET - PART)
    assert whole == expected, "a view has other bytes, or others were written"


def resources(kind, device="rxe1"):
    """How many of a kind the kernel counts for a device, which is our server's."""
    shown = subprocess.run(["rdma", "resource", "show"], capture_output=True, text=True).stdout
    words = next(line for line in shown.splitlines() if device in line).split()
    return int(words[words.index(kind) + 1])


def wait_until(holds, what):
    begin = time.monotonic()
    while not holds():
        assert time.monotonic() - begin < 60, f"never happened: {what}"
        time.sleep(0.02)
    return time.monotonic() - begin


def check_death(theirs, ours, reference, idle):
    """The writer is killed in the middle: its queue pair goes, and all else when we say so."""
    data = os.urandom(LONG)
    name = hashlib.sha256(data).hexdigest()
    theirs.run(f"BufferAlloc(9, {LONG}, BufferSpec()", f"CopyIn(9, '{name}'", blobs=(data,))
    ours.run(
        f"BufferAlloc(9, {LONG}, BufferSpec()",
        "BufferOffset(10, 64, 0, 9",
        f"BufferOffset(11, 64, {LONG - 64}, 9",
    )

    def write():
        with contextlib.suppress(OSError, http.client.HTTPException):
            theirs.run(f"Transfer(9, {ours.session}, 9")

    writer = threading.Thread(target=write)
    writer.start()
    begin = time.monotonic()
    while ours.run("CopyOut(10") == bytes(64):
        assert time.monotonic() - begin < 60, "nothing was written"
    assert ours.run("CopyOut(11") == bytes(64), "all was written already"
    reference.kill()
    begin = time.monotonic()
    while resources("qp") > idle:
        assert time.monotonic() - begin < 10, "the queue pair is still there"
        time.sleep(0.05)
    print(f"the writer's queue pair went {time.monotonic() - begin:.2f} s after the writer")
    writer.join()
    ours.run("SessionFree(")
    assert resources("mr") == 0, "registrations outlive their session"
    assert properties(ours)["ib_gid"].value is not None, "we serve no more"


def main():
    python, outboard = sys.argv[1:]
    environment = {**os.environ, "DEV": "CPU", "IB_DEV": "0", "DEFAULT_GID": "1", "PORT": "6671"}
    idle = resources("qp")
    arguments = [python, "-m", "tinygrad.runtime.ops_remote"]
    reference = subprocess.Popen(arguments, env=environment)
    arguments = [outboard, "--listen", "127.0.0.1:6672", "--rdma-device", "rxe1", "--no-cache"]
    # With one shard the reference's connection is where the sessions are.
    server = subprocess.Popen([*arguments, "--shards", "1", "--device", "cpu"])
    try:
        theirs, ours = Host(6671), Host(6672)
        ours.wait()
        theirs.wait()
        check(theirs, ours)
        check_death(theirs, ours, reference, idle)
    finally:
        # The reference's end of a connection spins when it is asked to end.
        reference.kill()
        server.kill()


if __name__ == "__main__":
    main()
