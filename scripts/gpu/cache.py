#!/usr/bin/env python3
"""The compiled kernels that a GPU session needs, as one archive: made where there is no GPU, unpacked where there is.

    python scripts/gpu/cache.py build [--jobs 2]             `make gpu-cache`: .gpu-cache/cache.tar.xz and COMMIT
    python scripts/gpu/cache.py try                          `make gpu-dry-run`: the whole session, on a GPU that is not
                                                             there, with the kernels of the archive
    python scripts/gpu/cache.py unpack ARCHIVE FOLDER        what the session does first

To build is to run the session itself over a GPU that is not there (`fake_cuda.py`), which notes every specialisation of
every kernel that is launched; then to compile those as Triton would, and the C launchers with them. It must run with
the Python, torch and triton of the GPU machine: Triton's key of a compiled kernel holds its own version, and the
launchers are extension modules. What is in .gpu-build/ from an earlier time is not compiled again.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import os
import pickle
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = ROOT / ".gpu-cache" / "cache.tar.xz"
BUILD = ROOT / ".gpu-build"
ARCH = 90  # H100 and H200
HERE = "@CACHE@"  # stands for the cache's folder in the archive: Triton writes absolute paths
LIMIT = 40 << 20  # bytes; 64 MiB travel to the machine in all, the working tree included


def key() -> dict[str, str]:
    """What must be equal on both machines for the archive to be of use, beside the sources that were compiled."""
    from triton.backends.nvidia.compiler import get_ptxas_version
    from triton.runtime.cache import triton_key

    return {
        "triton": hashlib.sha256(triton_key().encode()).hexdigest(),
        "ptxas": get_ptxas_version(ARCH),
        "python": str(sysconfig.get_config_var("SOABI")),
        "machine": f"{platform.machine()} {platform.system()}",
    }


# What each of these decides. A launcher is found by the source that Triton generates for it, whatever Triton that is.
NEEDED = {"kernels": ("triton", "ptxas"), "launchers": ("python", "machine")}


# ---- unpacking -------------------------------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path) -> int:
    """Put what this machine's Triton can use of the archive into its cache at `folder`; 1 if that is not all of it."""
    if not archive.is_file():
        print(f"no {archive}: kernels will be compiled as they are launched (`make gpu-cache` makes it)")
        return 1
    start, files, unusable = time.monotonic(), 0, {}
    try:
        for name, data in usable(archive, unusable):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.name.startswith("__grp__"):
                data = data.replace(HERE.encode(), str(folder).encode())
            # Whole or not at all, whenever this is cut: Triton believes what is there.
            path.with_name("part").write_bytes(data)
            path.with_name("part").replace(path)
            files += 1
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"{archive} is damaged or cannot be unpacked ({message}): what is missing of it will be compiled")
        return 1
    size = archive.stat().st_size / 2**20
    missing = "".join(f"; its {kind} are of another {' and '.join(of)}, and will be made as they are needed"
                      for kind, of in unusable.items())  # fmt: skip
    print(f"{files} files of {size:.1f} MiB unpacked into {folder} in {time.monotonic() - start:.1f} s{missing}")
    return 1 if unusable else 0


def usable(archive: Path, unusable: dict[str, list[str]]) -> Iterator[tuple[str, bytes]]:
    """(name, contents) of those of an archive's files that a Triton like this machine's could have made.

    unusable: filled with what could not, as a key of NEEDED, and with those of `key` that differ.
    """
    mine = key()
    with tarfile.open(archive, "r:xz") as tar:
        for number, member in enumerate(tar):
            data = tar.extractfile(member).read()
            if number == 0:
                theirs = json.loads(data) if member.name == "key.json" else {}
                for kind, names in NEEDED.items():
                    if differ := [name for name in names if theirs.get(name) != mine[name]]:
                        unusable[kind] = differ
            elif ("launchers" if member.name.endswith(".so") else "kernels") not in unusable:
                yield member.name, data


# ---- building --------------------------------------------------------------------------------------------------------


def session(out: Path, mode: str, cache: Path, archive: Path, jobs: int, tiles: int) -> None:
    """Run gpu_session.sh over a GPU that is not there. mode: what FASTGPT_FAKE_GPU says."""
    environment = os.environ | {
        "FASTGPT_FAKE_GPU": mode, "PYTHON": sys.executable, "TRITON_CACHE_DIR": str(cache), "GPU_CACHE": str(archive),
        "WORKERS": str(jobs),
        "SLOWER": "20", "SWEEP_TILES": str(tiles), "FASTGPT_MOST_ROUNDS": "2",
        # Kernels compute nothing there, so every assertion would fail, and end its test before the next launch.
        "PYTHONOPTIMIZE": "1", "PYTEST_ADDOPTS": "--assert=plain",
    }  # fmt: skip
    for what in ([], ["study"]):
        command = [str(ROOT / "scripts" / "gpu_session.sh"), str(out / "".join(what)), "36000", *what]
        subprocess.run(command, env=environment, check=True)


def recorded(folder: Path) -> list[bytes]:
    """Every specialisation that was noted, once, as `SpecUnpickler` reads it."""
    found = {}
    for file in sorted(folder.glob("*.specs")):
        data, at = file.read_bytes(), 0
        while at < len(data):  # each is its length in 8 bytes, then a pickle
            end = at + 8 + int.from_bytes(data[at : at + 8], "big")
            found[hashlib.sha256(data[at + 8 : end]).digest()] = data[at + 8 : end]
            at = end
    return list(found.values())


class SpecUnpickler(pickle.Unpickler):
    """Kernels and device functions are written by name (`fake_cuda.SpecPickler`)."""

    def persistent_load(self, name: tuple[str, str]) -> Any:
        import importlib

        return getattr(importlib.import_module(name[0]), name[1])


def compile_one(spec: bytes) -> tuple[str, set[str], str | None]:
    """(kernel, the cache's entries that a launch of it reads, an error)."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaLauncher
    from triton.compiler.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    used = watch_cache()
    name = ""
    try:
        module, name, signature, constexprs, attrs, options, target = SpecUnpickler(io.BytesIO(spec)).load()
        function = getattr(importlib.import_module(module), name)
        source = (GluonASTSource if function.is_gluon() else ASTSource)(function, signature, constexprs, attrs)
        kernel = triton.compile(source, target=GPUTarget(*target), options=options)
        if target[:2] == ("cuda", ARCH):
            CudaLauncher(kernel.src, kernel.metadata)
    except Exception as error:
        return name, set(used), f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    return name, set(used), None


def watch_cache() -> list[str]:
    """The names of the cache's entries that this process opens from now on."""
    from triton.runtime.cache import FileCacheManager

    used: list[str] = []
    original = getattr(FileCacheManager, "unwatched", FileCacheManager.__init__)

    def opened(self: Any, key: str, *args: Any, **kwargs: Any) -> None:
        used.append(key)
        original(self, key, *args, **kwargs)

    FileCacheManager.unwatched, FileCacheManager.__init__ = original, opened
    return used


def start_worker() -> None:
    """A process that compiles: Triton's driver module is linked and loaded like the launchers."""
    import torch  # noqa: F401 (with the fake driver behind it)
    from triton.backends.nvidia.driver import CudaUtils

    sys.path.append(str(ROOT))  # for the kernels of tests: multiprocessing hands on this script's path
    CudaUtils()


def build(folder: Path, archive: Path, jobs: int, tiles: int, record: bool) -> int:
    """Note what a session launches (unless the last build's notes are to serve again), compile it, pack it."""
    start, specs = time.monotonic(), folder / "specs"
    of = commit() + "\n" + tree_hash(ROOT) + "\n"
    if record:
        shutil.rmtree(specs, ignore_errors=True)
        shutil.rmtree(folder / "out", ignore_errors=True)
        session(folder / "out", f"record:{specs}", folder / "recording", archive, jobs, tiles)
    noted = recorded(specs)
    print(f"{len(noted)} specialisations noted, {time.monotonic() - start:.0f} s so far", flush=True)
    entries, failed = compile_all(noted, folder / "triton", jobs)
    print(*sorted(set(failed)), sep="\n")
    size = pack(folder / "triton", entries, archive)
    tokens = archive.parent / "tokens"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "gpu" / "study.py"), "tokens", str(tokens)], check=True)
    size += sum(file.stat().st_size for file in tokens.rglob("*") if file.is_file())
    (archive.parent / "COMMIT").write_text(of)
    (archive.parent / "TILES").write_text(f"{tiles}\n")
    print(f"{archive.parent}: {size / 2**20:.1f} MiB, {len(entries)} entries, {time.monotonic() - start:.0f} s")
    if size > LIMIT:
        print(f"error: that is more than the {LIMIT >> 20} MiB that may travel; lower --sweep-tiles", file=sys.stderr)
        return 1
    return 0


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def tree_hash(root: Path) -> str:
    """Of every source whose figures a session takes, as gpu_session.sh hashes them where there is no git."""
    files = (
        p.relative_to(root).as_posix() for f in ("kernels", "fastgpt", "benchmarks") for p in (root / f).rglob("*.py")
    )
    text = "".join(f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n" for name in sorted(files))
    return hashlib.sha256(text.encode()).hexdigest()


def compile_all(specs: list[bytes], cache: Path, jobs: int) -> tuple[set[str], list[str]]:
    """(the entries of Triton's cache at `cache` that launches of `specs` read, errors).

    What is there already is not compiled again.
    """
    import concurrent.futures
    import multiprocessing

    environment(cache)
    context = multiprocessing.get_context("spawn")  # so that sitecustomize runs, in the environment set above
    entries: set[str] = set()
    failed: list[str] = []
    begin = told = time.monotonic()
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context, initializer=start_worker) as pool:
        for done, (name, used, error) in enumerate(pool.map(compile_one, specs, chunksize=4), start=1):
            entries |= used
            if error is not None:
                failed.append(f"{name}: {error}")
            if time.monotonic() - told > 15 or done == len(specs):
                told = time.monotonic()
                remaining = (told - begin) / done * (len(specs) - done)
                print(f"compiled {done} of {len(specs)}, {len(failed)} failed, {remaining:.0f} s left", flush=True)
    return entries | {f.parent.name for f in cache.glob("*/cuda_utils*.so")}, failed


def environment(cache: Path) -> None:
    """What the compiling processes need: the session's settings of Triton, and the driver that is not there."""
    os.environ["TRITON_CACHE_DIR"], os.environ["TRITON_STORE_BINARY_ONLY"] = str(cache), "1"
    os.environ["FASTGPT_FAKE_GPU"] = "1"
    site = str(ROOT / "scripts" / "gpu" / "site")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (site, str(ROOT), os.environ.get("PYTHONPATH"))))


def members(cache: Path, entries: set[str]) -> Iterator[tuple[str, bytes]]:
    """(name, contents) of what a launch reads: the binary, its metadata, the group that names both; launchers."""
    for entry in sorted(entries):
        for file in sorted((cache / entry).glob("*")):
            if file.suffix not in (".cubin", ".json", ".so"):
                continue  # the source that was compiled: Triton keeps it, and does not need it
            data = file.read_bytes()
            if file.name.startswith("__grp__"):
                paths = json.loads(data)["child_paths"]
                kept = {n: f"{HERE}/{entry}/{n}" for n in paths if not n.endswith(".source")}
                data = json.dumps({"child_paths": kept}).encode()
            yield f"{entry}/{file.name}", data


def pack(cache: Path, entries: set[str], archive: Path) -> int:
    """Write the archive; returns its bytes."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    fresh = archive.with_suffix(".new")
    # Like beside like: names end in what a file is, so sorting by the end puts similar kernels next to each other.
    found = sorted(members(cache, entries), key=lambda m: (m[0].rsplit(".", 1)[-1], m[0].split("/")[1]))
    with lzma.open(fresh, "wb", preset=6) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in [("key.json", json.dumps(key()).encode()), *found]:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
    fresh.replace(archive)
    return archive.stat().st_size


def attempt(folder: Path, archive: Path, out: Path, jobs: int, tiles: int) -> int:
    """The session with the archive, in a cache of its own: no step may compile anything."""
    for old in (out, folder / "dry-run"):
        shutil.rmtree(old, ignore_errors=True)
    session(out, "1", folder / "dry-run", archive, jobs, tiles)
    steps = [line for folder in (out, out / "study") for line in (folder / "steps.txt").read_text().splitlines()]
    missed = [line for line in steps if "compiled: 0, launchers built: 0" not in line and not line.startswith("cache:")]
    print(f"archive: {archive.stat().st_size / 2**20:.1f} MiB")
    print("no kernel was compiled" if not missed else "compiled beside the archive:\n" + "\n".join(missed))
    known, others = failures(out)
    others += broken_steps(out) + broken_steps(out / "study")
    print(*(f"{count} failed, as they must here: {why}" for why, count in known.items()), sep="\n")
    print(*(f"FAILED {test}: {message}" for test, message in others), sep="\n")
    return 1 if missed or others or not traced() else 0


# The fake GPU's torch.compile returns what it is given, so that dynamo sees none of the tests' functions. What dynamo
# would meet on a GPU is traced beside the session, by an untouched torch, on CUDA tensors without data.
TRACED = ("tests/kernels/test_traced_on_cuda.py", "tests/fastgpt/nn/test_traced_on_cuda.py")


def traced() -> bool:
    """Whether every kernel and module is traced whole for CUDA tensors."""
    environment = {k: v for k, v in os.environ.items() if k not in ("FASTGPT_FAKE_GPU", "PYTHONPATH")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *TRACED]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    print(*(lines[-1:] if done.returncode == 0 else lines), sep="\n")
    return done.returncode == 0


# What fails for want of a real GPU: what the test says, or its name where it ends its process.
BEYOND_THE_FAKE = {
    r"cudaGetDeviceCount\(\)|API call is not supported in the installed CUDA driver":
        "torch asks the CUDA runtime, past the fake GPU",
    r"(is on cpu but|but \w+ is on cpu;)": "pickles, traces and zero tensors lose the fake GPU's mark",
    r"does nothing on a GPU that is not there": "flex_attention is not compiled",
    r"crashed while running '.*(-wrapper\]|::test_fake_(and_meta_)?tensors)":
        "autograd meets a tensor without storage on CUDA, and aborts where there is none",
}  # fmt: skip


def failures(out: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(how many tests and benchmarks failed for each reason that only the fake GPU has, the others with their words)"""
    found = []
    for line in (out / "tests.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["outcome"] == "failed":
            found.append((row["test"], " ".join(row["message"].split())))
    log = (out / "log.txt").read_text(errors="replace")
    found += re.findall(r"^(?:FAILED|ERROR) (benchmarks/.*?)(?: - (.*))?$", log, flags=re.MULTILINE)
    known: dict[str, int] = {}
    others = []
    for test, message in found:
        why = next((why for pattern, why in BEYOND_THE_FAKE.items() if re.search(pattern, message)), None)
        if why is None:
            others.append((test, message[:300]))
        else:
            known[why] = known.get(why, 0) + 1
    return known, others


# How a step may end beside 0: without an archive, with tests that failed, with none that was chosen.
ENDS = {"cache": (1,), "tests": (1,), "peers": (1,), "peers-compiled": (1, 5)}


def broken_steps(out: Path) -> list[tuple[str, str]]:
    """(its name, what steps.txt says of it) of every step that ended in another way, or did not begin."""
    found = [line.partition(": ") for line in (out / "steps.txt").read_text().splitlines()]
    codes = [re.match(r"exit (\d+) ", said) for _, _, said in found]
    return [
        (name, said)
        for (name, _, said), code in zip(found, codes)
        if code is None or int(code[1]) not in (0, *ENDS.get(name, ()))
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/gpu/cache.py", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("build", "try"):
        command = commands.add_parser(name)
        command.add_argument("--jobs", type=int, default=os.cpu_count() or 2, help="processes")
        command.add_argument("--sweep-tiles", type=int, default=4, help="tiles of each sweep that are compiled ahead")
        command.add_argument("--folder", type=Path, default=BUILD, help="where notes and compiled kernels are kept")
        command.add_argument("--archive", type=Path, default=ARCHIVE)
    command.add_argument("--out", type=Path, default=ROOT / "out" / "dry-run", help="what the session writes")
    commands.choices["build"].add_argument("--noted", action="store_true", help="compile what the last build noted")
    command = commands.add_parser("unpack")
    command.add_argument("archive", type=Path)
    command.add_argument("folder", type=Path)
    args = parser.parse_args(argv)
    if args.command == "unpack":
        return unpack(args.archive, args.folder)
    if args.command == "try":
        return attempt(args.folder, args.archive, args.out, args.jobs, args.sweep_tiles)
    return build(args.folder, args.archive, args.jobs, args.sweep_tiles, not args.noted)


if __name__ == "__main__":
    sys.exit(main())
