"""Makes the client's Python environment and unpacks tinygrad's own tests, once.

    python3 prepare.py DIRECTORY

DIRECTORY (a folder under `target/`) gets `venv/`, made from requirements.txt, and `sdist/`, with
the tests as published. A stamp tells whether both still fit the pins and the interpreter; a lock
lets several processes ask at once. The last line printed is a JSON object: `python`, the
environment's interpreter; `tests`, the folder of test files; `cc`, a C compiler for the client's
own CPU device, `cc_kind`, `clang` or `gcc`, or null where there is none.

Exit code 3, with the reason as the last line, says that this machine cannot have the environment:
the interpreter is too old, or it has neither ensurepip nor pip.
"""

import fcntl
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

HERE = pathlib.Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"
CLIENT = "tinygrad==0.11.0"
UNPACKED = "tinygrad-0.11.0"
IMPOSSIBLE = 3
# Newest first; plain `clang` last, because it is often the oldest: Debian 12's has no bfloat16.
COMPILERS = [f"clang-{version}" for version in range(22, 13, -1)] + ["clang"]


def impossible(reason):
    print(reason)
    sys.exit(IMPOSSIBLE)


def run(*command):
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)


def make_venv(folder):
    """Makes the environment and returns the command that runs pip for it."""
    python = folder / "bin" / "python"
    if importlib.util.find_spec("ensurepip"):
        run(sys.executable, "-m", "venv", folder)
        return [python, "-m", "pip"]
    if importlib.util.find_spec("pip"):
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        return [sys.executable, "-m", "pip", "--python", python]
    impossible(f"{sys.executable} has neither ensurepip nor pip: install python3-venv")


def make(root):
    venv, sdist = root / "venv", root / "sdist"
    for old in (venv, sdist):
        shutil.rmtree(old, ignore_errors=True)
    sdist.mkdir(parents=True)
    pip = make_venv(venv)
    run(*pip, "install", "--quiet", "--requirement", REQUIREMENTS)
    # Where pip takes packages from a folder, asking it would need what builds the archive, too.
    archive = pathlib.Path(os.environ.get("PIP_FIND_LINKS", sdist)) / f"{UNPACKED}.tar.gz"
    if not archive.exists():
        # Only the client from source: setuptools, which builds its metadata, may be a wheel.
        source = ["--no-deps", "--no-binary", "tinygrad", "--dest", sdist]
        run(*pip, "download", "--quiet", *source, CLIENT)
        archive = sdist / archive.name
    with tarfile.open(archive) as archive:
        # Older releases have no filters; the archive is the one that pip has just checked.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        wanted = [m for m in archive.getmembers() if m.name.startswith(f"{UNPACKED}/test/")]
        archive.extractall(sdist, wanted)


def compiler():
    """A compiler that takes clang's arguments."""
    for name in COMPILERS:
        if path := shutil.which(name):
            return path, "clang"
    if shutil.which("gcc"):
        return str(HERE / "gcc-as-clang"), "gcc"
    return None, None


def main():
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        impossible(f"{sys.executable} is Python {sys.version.split()[0]}, 3.10 to 3.13 is needed")
    root = pathlib.Path(sys.argv[1]).absolute()
    root.mkdir(parents=True, exist_ok=True)
    wanted = f"{sys.executable} {sys.version}\n{root}\n{REQUIREMENTS.read_text()}"
    stamp = root / "stamp"
    with open(root / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            stamp.unlink(missing_ok=True)
            make(root)
            stamp.write_text(wanted)
    cc, cc_kind = compiler()
    print(json.dumps({
        "python": str(root / "venv" / "bin" / "python"),
        "tests": str(root / "sdist" / UNPACKED / "test"),
        "cc": cc,
        "cc_kind": cc_kind,
    }))


if __name__ == "__main__":
    main()
