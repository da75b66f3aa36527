"""Kernels compiled ahead of a GPU session, and the GPU that is not there, over which the session is tried."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
from scripts.gpu import cache

ROOT = Path(__file__).parents[2]
SITE = ROOT / "scripts" / "gpu" / "site"
needs_gcc = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="the driver that does nothing is a C file, and gcc is missing"
)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """What `cache.environment` sets is undone."""
    for name in ("TRITON_CACHE_DIR", "TRITON_STORE_BINARY_ONLY", "FASTGPT_FAKE_GPU", "PYTHONPATH"):
        monkeypatch.setenv(name, "")


def on_fake_gpu(code: str, mode: str, folder: Path) -> str:
    environment = os.environ | {
        "FASTGPT_FAKE_GPU": mode, "PYTHONPATH": str(SITE), "TRITON_CACHE_DIR": str(folder), "TRITON_INTERPRET": "0",
        "TRITON_STORE_BINARY_ONLY": "1",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# A launch with tensor maps, one without, two dtypes, autocast, gradients; and what a tensor on a GPU says of itself.
LAUNCHES = """
import ctypes, os, torch
from fastgpt.kernels import flash_attention, layer_norm

x = torch.randn(64, 768, device="cuda", requires_grad=True)
assert torch.cuda.is_available() and x.is_cuda and x.device == torch.device("cuda", 0)
assert x[1:].is_cuda and (x + 1).is_cuda and x.detach().clone().is_cuda and torch.tensor([1], device="cuda").is_cuda
assert not x.cpu().is_cuda and not x.to("cpu").is_cuda and not torch.zeros(3).is_cuda and torch.zeros(3).cuda().is_cuda
assert torch.nn.Linear(3, 4).to("cuda").weight.is_cuda
layer_norm(x, (768,)).sum().backward()
assert x.grad.is_cuda
with torch.autocast("cuda", torch.bfloat16):
    assert layer_norm(x.bfloat16(), (768,)).dtype == torch.float32  # as CUDA's autocast has it, and the CPU's has not
q = torch.randn(1, 512, 3, 2, 64, device="cuda", dtype=torch.bfloat16).permute(2, 0, 3, 1, 4)
assert flash_attention(*q).is_cuda
large = torch.randn(1 << 14, 1 << 14, device="cuda")
assert (large @ large).is_cuda  # takes no time
driver = ctypes.CDLL(os.path.join(os.environ["TRITON_LIBCUDA_PATH"], "libcuda.so.1"))
print(driver.softgpu_launches(), driver.softgpu_tensor_maps())
"""


GENERATES = """
import torch
from fastgpt import GPT, GPTConfig

model = GPT(GPTConfig(vocab_size=61, max_len=32, n_layers=1, n_heads=2, d_model=32)).to("cuda").eval()
torch.nn.init.constant_(model.token_emb.weight, float("nan"))
print(model.generate(torch.zeros(1, 4, dtype=torch.int64, device="cuda"), 8, temperature=0.0).shape[1])
"""


@needs_gcc
def test_generation_goes_on_where_no_kernel_computes(tmp_path):
    """Each step of it launches: keys of other lengths are other kernels."""
    assert on_fake_gpu(GENERATES, f"record:{tmp_path / 'specs'}", tmp_path / "unused") == "12\n"


@needs_gcc
@pytest.mark.timeout(1200)  # three processes that import torch and one C compiler: 15 s of a core, if one is free
def test_what_was_noted_and_compiled_is_all_that_a_launch_needs(tmp_path):
    """As `make gpu-cache` and the session do it, with a few launches in place of all."""
    specs = tmp_path / "specs"
    assert on_fake_gpu(LAUNCHES, f"record:{specs}", tmp_path / "unused") == "0 0\n"
    noted = cache.recorded(specs)
    assert not list((tmp_path / "unused").rglob("*.cubin"))
    entries, failed = cache.compile_all(noted, tmp_path / "built", jobs=1)
    assert not failed
    assert len(list((tmp_path / "built").rglob("*.cubin"))) == len(noted) >= 4
    assert cache.pack(tmp_path / "built", entries, tmp_path / "archive.tar.xz") < 1 << 20
    there = tmp_path / "there"
    assert cache.unpack(tmp_path / "archive.tar.xz", there) == 0
    before = {p: p.stat().st_mtime_ns for p in there.rglob("*") if p.is_file()}
    assert len([p for p in before if p.suffix == ".cubin"]) == len(noted)
    launches, tensor_maps = map(int, on_fake_gpu(LAUNCHES, "1", there).split())
    assert launches == len(noted)
    assert tensor_maps == 4  # queries, keys, values and outputs: the kernel for Hopper
    assert {p: p.stat().st_mtime_ns for p in there.rglob("*") if p.is_file()} == before


def made(folder: Path) -> Path:
    """A cache with one kernel, as Triton writes it."""
    entry = folder / "ENTRY"
    entry.mkdir(parents=True)
    for name, data in (("k.cubin", b"binary"), ("k.json", b"{}"), ("k.source", b"text"), ("k.ptx", b"text")):
        (entry / name).write_bytes(data)
    paths = {name: str(entry / name) for name in ("k.cubin", "k.json", "k.source")}
    (entry / "__grp__k.json").write_text(json.dumps({"child_paths": paths}))
    (folder / "STALE").mkdir()
    (folder / "STALE" / "old.cubin").write_bytes(b"of an older kernel")
    return folder


def test_archive_holds_what_a_launch_reads_and_finds_it_in_another_folder(tmp_path, capsys):
    cache.pack(made(tmp_path / "here"), {"ENTRY"}, tmp_path / "a.tar.xz")
    shutil.rmtree(tmp_path / "here")
    there = tmp_path / "there"
    assert cache.unpack(tmp_path / "a.tar.xz", there) == 0
    assert sorted(str(p.relative_to(there)) for p in there.rglob("*") if p.is_file()) == [
        "ENTRY/__grp__k.json", "ENTRY/k.cubin", "ENTRY/k.json",
    ]  # fmt: skip
    paths = json.loads((there / "ENTRY" / "__grp__k.json").read_text())["child_paths"]
    assert {name: Path(path).read_bytes() for name, path in paths.items()} == {"k.cubin": b"binary", "k.json": b"{}"}


@pytest.mark.parametrize(
    ("other", "said", "left"),
    [
        ("triton", "kernels are of another triton", {"l.so"}),
        ("ptxas", "kernels are of another ptxas", {"l.so"}),
        ("python", "launchers are of another python", {"k.cubin", "k.json", "__grp__k.json"}),
        ("machine", "launchers are of another machine", {"k.cubin", "k.json", "__grp__k.json"}),
    ],
)
def test_of_another_machines_archive_what_fits_is_used(tmp_path, monkeypatch, capsys, other, said, left):
    mine = cache.key()
    monkeypatch.setattr(cache, "key", lambda: mine | {other: "another"})
    here = made(tmp_path / "here")
    (here / "LAUNCHER").mkdir()
    (here / "LAUNCHER" / "l.so").write_bytes(b"module")
    cache.pack(here, {"ENTRY", "LAUNCHER"}, tmp_path / "a.tar.xz")
    monkeypatch.setattr(cache, "key", lambda: mine)
    assert cache.unpack(tmp_path / "a.tar.xz", tmp_path / "there") == 1
    assert said in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "there").rglob("*") if p.is_file()} == left


def test_launchers_are_found_where_the_command_file_is_missing(tmp_path):
    """Python's platform.architecture() runs it, and Triton's key of a launcher holds the answer."""
    keys = set()
    (tmp_path / "file").write_text("#!/bin/sh\necho ELF 64-bit\n")
    (tmp_path / "file").chmod(0o755)
    for path in ("/nowhere", str(tmp_path), os.environ["PATH"]):
        environment = os.environ | {"PYTHONPATH": str(SITE), "FASTGPT_FAKE_GPU": "", "PATH": path}
        code = (
            "from triton.runtime import build; from scripts.gpu import cache; print(build.platform_key(), cache.key())"
        )
        done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        keys.add(done.stdout)
    assert len(keys) == 1


def test_no_archive_is_said(tmp_path, capsys):
    assert cache.unpack(tmp_path / "a.tar.xz", tmp_path / "there") == 1
    assert "make gpu-cache" in capsys.readouterr().out


def test_keys_do_not_depend_on_what_was_launched_before(tmp_path):
    """In Triton a kernel's key lacks the constants of device functions that have not been hashed yet."""
    keys = set()
    for first in ("forward.loss_kernel", "device.load_logits"):
        code = (
            "from fastgpt.kernels.linear_cross_entropy import device, forward\n"
            f"{first}.cache_key; print(forward.loss_kernel.cache_key)"
        )
        environment = os.environ | {"PYTHONPATH": str(SITE), "FASTGPT_FAKE_GPU": "", "TRITON_INTERPRET": "0"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        keys.add(done.stdout)
    assert len(keys) == 1


def test_a_damaged_archive_leaves_only_whole_files(tmp_path, capsys):
    """Triton believes what it finds, so half a file would fail at every launch of its kernel."""
    archive = tmp_path / "a.tar.xz"
    here = made(tmp_path / "here")
    (here / "ENTRY" / "k.cubin").write_bytes(os.urandom(1 << 20))  # which does not compress
    cache.pack(here, {"ENTRY"}, archive)
    whole = archive.read_bytes()
    middle = len(whole) // 2
    for damaged in (
        b"",
        b"no archive",
        whole[:100],
        whole[: middle // 2],
        whole[:middle] + b"!?" * 9 + whole[middle + 18 :],
    ):
        archive.write_bytes(damaged)
        assert cache.unpack(archive, tmp_path / "there") == 1
        assert "damaged or cannot be unpacked" in capsys.readouterr().out
        for file in (tmp_path / "there").rglob("*.*"):
            assert file.read_bytes() == (here / file.relative_to(tmp_path / "there")).read_bytes()
    archive.write_bytes(whole)
    (tmp_path / "file").touch()
    assert cache.unpack(archive, tmp_path / "file") == 1
    assert "cannot be unpacked (" in capsys.readouterr().out


def test_a_file_that_was_cut_is_not_under_its_name(tmp_path, monkeypatch):
    cache.pack(made(tmp_path / "here"), {"ENTRY"}, tmp_path / "a.tar.xz")

    def killed(path, data):
        with path.open("wb") as file:
            file.write(data[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        cache.unpack(tmp_path / "a.tar.xz", tmp_path / "there")
    assert [p.name for p in (tmp_path / "there").rglob("*") if p.is_file()] == ["part"]


def test_what_only_the_fake_gpu_fails_is_told_apart(tmp_path):
    failed = {
        "a": "RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run",
        "b": "worker 'gw0' crashed while running 'tests/kernels/test_special_tensors.py::test_types[ffn-wrapper]'",
        "c": "worker 'gw0' crashed while running 'tests/kernels/test_special_tensors.py::test_types[ffn-buffer]'",
        "d": "assert 1\n == 2",
    }
    rows = [{"test": test, "outcome": "failed", "message": message} for test, message in failed.items()]
    rows.append({"test": "e", "outcome": "passed"})
    (tmp_path / "tests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "log.txt").write_text(
        "FAILED a: cudaGetDeviceCount()\n"
        "FAILED benchmarks/test_a.py::test[1 - flex] - RuntimeError: it does nothing on a GPU that is not there\n"
        "FAILED benchmarks/test_a.py::test[2] - ValueError: M = 0\n"
        "ERROR benchmarks/test_b.py\n"
    )
    known, others = cache.failures(tmp_path)
    assert list(known.values()) == [1, 1, 1]
    assert others == [
        ("c", failed["c"]),
        ("d", "assert 1 == 2"),
        ("benchmarks/test_a.py::test[2]", "ValueError: M = 0"),
        ("benchmarks/test_b.py", ""),
    ]


def test_steps_that_did_not_end_as_they_may_are_named(tmp_path):
    ends = {
        "cache": "exit 1 after 1 s (of 300); kernels: 0", "verify": "exit 1 after 9 s", "tests": "exit 1 after 5 s",
        "peers": "exit 70 after 5 s", "peers-again": "exit 0 after 5 s", "peers-compiled": "exit 5 after 5 s",
        "sweep": "no time left",
    }  # fmt: skip
    (tmp_path / "steps.txt").write_text("".join(f"{name}: {said}\n" for name, said in ends.items()))
    assert cache.broken_steps(tmp_path) == [(name, ends[name]) for name in ("verify", "peers", "sweep")]
