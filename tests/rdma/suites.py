"""tinygrad's own tests on two of our servers, which write to each other by RDMA.

    python3 suites.py PYTHON TESTS OUTBOARD

PYTHON is an interpreter that has tinygrad and pytest, TESTS the folder of its tests, OUTBOARD the
server's program. An emulated processor takes its time for compilers and for Python, so these are
few: those whose tensors are on both hosts.
"""

import os
import subprocess
import sys
import tempfile
import time

from reference import Host

# File, devices of each host, tests. With two devices of the first host REMOTE:1 and REMOTE:2, which
# most tests of several devices take, are on different hosts.
SELECTED = [
    # The third test of that class has hundreds of copies, which take longer than all of these.
    ("test_remote.py", (6, 6), "test_mutlihost_transfer or test_multihost_matmul_jit_graph"),
    (
        "test_multitensor.py",
        (2, 4),
        "test_to or test_shard_plus_one_sum or test_allreduce_naive or test_matmul_shard_0_1 "
        "or test_copy_jit or test_backward_sum",
    ),
]
PORTS = {"rxe0": 6671, "rxe1": 6672}
LOG_LINES_SHOWN = 40


def start(outboard, device, log):
    port = PORTS[device]
    arguments = [outboard, "--listen", f"127.0.0.1:{port}", "--rdma-device", device, "--no-cache"]
    server = subprocess.Popen([*arguments, "--device", "cpu"], stderr=log)
    Host(port).wait()
    return server


def text_of(log):
    log.seek(0)
    return log.read()


def main():
    python, tests, outboard = sys.argv[1:]
    servers, logs = [], []
    try:
        for device in PORTS:
            logs.append(tempfile.TemporaryFile(mode="w+"))
            servers.append(start(outboard, device, logs[-1]))
        for name, devices, words in SELECTED:
            begin = time.monotonic()
            each = [f"127.0.0.1:{port}*{count}" for port, count in zip(PORTS.values(), devices)]
            environment = {**os.environ, "REMOTE": "1", "HOST": ",".join(each)}
            command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=4"]
            command += [f"{tests}/{name}", "-k", words]
            subprocess.run(command, env=environment, cwd=os.path.dirname(tests), check=True)
            print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
        for log in logs:
            assert "connected by RDMA" in text_of(log), "it was not RDMA"
    except BaseException:
        for device, log in zip(PORTS, logs):
            lines = text_of(log).splitlines()[-LOG_LINES_SHOWN:]
            print(f"the server of {device}:", *lines, sep="\n", flush=True)
        raise
    finally:
        for server in servers:
            server.kill()


if __name__ == "__main__":
    main()
