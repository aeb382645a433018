"""Makes the folder that `perf/gpu --run` needs on a machine with a GPU and no network."""

import io
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import common
from common import ROOT, say

CLIENT = "tinygrad==0.11.0"
# Beside what the client needs: for an interpreter that comes without it.
PIP = "pip==25.2"
# NVRTC and the headers that sources include. The first version whose headers are separate is 13;
# later ones may write for newer drivers than there are.
COMPILER = ["nvidia-cuda-nvrtc==13.0.88", "nvidia-cuda-runtime==13.0.96"]
HEADERS = ["cuda_bf16.h", "cuda_bf16.hpp", "cuda_fp16.h", "cuda_fp16.hpp"]
# Those headers name them; NVRTC has what is in them built in.
HEADERS_EMPTY = ["vector_functions.h", "vector_types.h"]
PLATFORMS = [f"{name}_x86_64" for name in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17",
                                          "manylinux2014", "manylinux_2_5", "manylinux1")]
SOURCES = ["perf/gpu", "perf/common.py", "perf/bundle.py", "perf/gpu_floor.c", "perf/site",
           "tests/client"]


def run(*command, **options):
    say("+ " + " ".join(map(str, command)))
    return subprocess.run([str(part) for part in command], check=True, **options)


def pip_download(folder, *arguments):
    run(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--dest", folder, *arguments)


def wheels(folder, versions):
    """The client and what it needs, for each of these versions of Python."""
    folder.mkdir(parents=True, exist_ok=True)
    requirements = ROOT / "tests" / "client" / "requirements.txt"
    platforms = [f"--platform={name}" for name in PLATFORMS]
    for version in versions:
        pip_download(folder, "--only-binary=:all:", "--implementation=cp",
                     f"--python-version={version}", *platforms, PIP, "-r", requirements)
    # With the tests, which no wheel has.
    pip_download(folder, "--no-deps", "--no-binary=tinygrad", CLIENT)


def compiler(folder):
    """NVRTC as one archive: a wheel of it holds a second copy, and compresses worse."""
    archive = folder / "cu13.tar.xz"
    if archive.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, tarfile.open(archive, "w:xz", preset=6) as out:
        scratch = pathlib.Path(scratch)
        platforms = [f"--platform={name}" for name in PLATFORMS]
        pip_download(scratch, "--no-deps", "--only-binary=:all:", *platforms, *COMPILER)

        def add(name, data):
            entry = tarfile.TarInfo(f"cu13/{name}")
            entry.size, entry.mode = len(data), 0o644
            out.addfile(entry, io.BytesIO(data))
        for wheel in scratch.glob("*.whl"):
            with zipfile.ZipFile(wheel) as inside:
                for name in inside.namelist():
                    last = name.rpartition("/")[2]
                    if last in HEADERS:
                        add(f"include/{last}", inside.read(name))
                    elif last.startswith("libnvrtc") and ".alt." not in last and ".so" in last:
                        add(f"lib/{last}", inside.read(name))
        for name in HEADERS_EMPTY:
            add(f"include/{name}", b"")


def built(arguments):
    """The programs, by the names that they have in the bundle."""
    target, server = common.build(arguments.server)
    done = run("cargo", "test", "--no-run", "--test", "gpu", "--message-format=json", cwd=ROOT,
               stdout=subprocess.PIPE, text=True)
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    tests = [message["executable"] for message in messages
             if message.get("target", {}).get("name") == "gpu" and message.get("executable")]
    floor = target / "gpu_floor"
    run(common.compiler() or "cc", "-O2", "-D_GNU_SOURCE", ROOT / "perf" / "gpu_floor.c", "-o",
        floor, "-ldl", "-lpthread")
    return {"outboard": server, "load": target / "release" / "examples" / "load",
            "gpu_tests": tests[-1], "gpu_floor": floor}


def copy_sources(folder):
    for name in SOURCES:
        source, to = ROOT / name, folder / name
        to.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, to, dirs_exist_ok=True,
                            ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, to)


def make(arguments):
    folder = arguments.bundle.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bin").mkdir(exist_ok=True)
    for name, program in built(arguments).items():
        run("strip", "-s", program, "-o", folder / "bin" / name)
    copy_sources(folder)
    if arguments.wheels:
        wheels(folder / "wheels", arguments.python)
    if arguments.nvrtc:
        compiler(folder / "nvrtc")
    record = common.record_of(arguments, common.Cores())
    about = {"commit": record["commit"], "built": record["date"], "python": arguments.python,
             "rustc": record["machine"]["rustc"]}
    (folder / "bundle.json").write_text(json.dumps(about, indent=1) + "\n")
    files = [path for path in folder.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    for part in sorted(folder.iterdir()):
        inside = [part] if part.is_file() else [p for p in part.rglob("*") if p.is_file()]
        print(f"{sum(p.stat().st_size for p in inside) / 2**20:8.1f} MiB  {part.name}")
    print(f"{total / 2**20:8.1f} MiB in {folder}\nthere: {folder.name}/perf/gpu --run")
