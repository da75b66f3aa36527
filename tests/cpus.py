"""Run the numeric tests with the kernels that torch, MKL and OpenBLAS have for older CPUs than this one.

python -m tests.cpus                        default, avx2 and avx512, as far as this CPU has them
python -m tests.cpus --only default -n 2    one of them; what follows goes to pytest

How a library sums depends on the instruction set, and no verdict may depend on that.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

import torch

from fastgpt.tools.budget import REPORT

# In rising order: what tells torch, and the three libraries under it and under numpy, which instructions to use.
SETS = {
    "default": {
        "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OPENBLAS_CORETYPE": "Nehalem",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512", "OPENBLAS_CORETYPE": "SkylakeX",
    },
}  # fmt: skip


def available(capability: str) -> list[str]:
    """The sets that a CPU has for which torch finds `capability` ("AVX2" etc.) by itself; any CPU has the first.

    (Asked for more than the CPU has, torch does as it is told and dies of an illegal instruction.)
    """
    names = list(SETS)
    best = names.index(capability.lower()) if capability.lower() in names else 0
    return names[: best + 1]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.cpus", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(SETS), action="append", help="this set; may be given again")
    args, for_pytest = parser.parse_known_args(argv)
    # With a report asked for (fastgpt.tools.budget), no verdict would fail.
    environment = {k: v for k, v in os.environ.items() if k not in ("ATEN_CPU_CAPABILITY", REPORT)}
    ask = [sys.executable, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability())"]
    capability = subprocess.run(ask, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    failed, lines = [], []
    for name in args.only or SETS:
        if name not in available(capability):
            lines.append(f"{name}: skipped, since torch finds {capability} on this CPU and no more")
            failed += [name] if args.only else []  # what was asked for by name was not done
            continue
        began = time.time()
        command = [sys.executable, "-m", "pytest", "-q", "-m", "numeric and not slow", *for_pytest]
        code = subprocess.run(command, env=environment | SETS[name]).returncode
        failed += [name] if code else []
        lines.append(
            f"{name}: {f'FAILED (pytest exited with {code})' if code else 'passed'}, {time.time() - began:.0f} s"
        )
    print(f"torch {torch.__version__}; this CPU: {capability}", *lines, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
