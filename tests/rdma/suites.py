"""tinygrad's own tests on two of our servers, which write to each other by RDMA.

    python3 suites.py PYTHON TESTS OUTBOARD

PYTHON is an interpreter that has tinygrad and pytest, TESTS the folder of its tests, OUTBOARD the
server's program. A compiler that takes a thirtieth of a second elsewhere takes 4 to 30 seconds on an
emulated processor, and each server compiles for itself. So these are few, and all that would give up
waiting is told to have patience; the other tests run outside of the virtual machine, in
tests/tinygrad.rs, on a card that is not there.
"""

import os
import shutil
import subprocess
import sys
import tempfile

from reference import Host

# The third test of that class has hundreds of copies, which take longer than both of these.
FILE = "test_remote.py"
TESTS = ["test_mutlihost_transfer", "test_multihost_matmul_jit_graph"]
DEVICES = 6
PATIENCE_SECONDS = 1800
PATIENCE = [f"--{what}-timeout={PATIENCE_SECONDS}" for what in ("compile", "wait", "peer")]
PORTS = {"rxe0": 6671, "rxe1": 6672}
LOG_LINES_SHOWN = 40


def start(outboard, device, log):
    port = PORTS[device]
    arguments = [outboard, "--listen", f"127.0.0.1:{port}", "--rdma-device", device, "--no-cache"]
    arguments += ["--device", "cpu", *PATIENCE]
    # It takes half of clang's time.
    gcc = shutil.which("gcc")
    if gcc:
        arguments += ["--compiler", gcc]
    return subprocess.Popen(arguments, stderr=log)


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
        for port in PORTS.values():
            Host(port).wait()
        environment = {
            **os.environ,
            "REMOTE": "1",
            "REMOTE_TIMEOUT": str(PATIENCE_SECONDS),
            "HOST": ",".join(f"127.0.0.1:{port}*{DEVICES}" for port in PORTS.values()),
        }
        command = [python, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--durations=4"]
        command += [f"{tests}/{FILE}", "-k", " or ".join(TESTS)]
        subprocess.run(command, env=environment, cwd=os.path.dirname(tests), check=True)
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
