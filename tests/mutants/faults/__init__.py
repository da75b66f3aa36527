"""The faults: mistakes easy to make and hard to see in a loss curve. Each file here lists those of one part."""

from __future__ import annotations

import importlib
import pkgutil

MUTANTS = tuple(
    mutant
    for file in pkgutil.iter_modules(__path__)
    for mutant in importlib.import_module(f"{__name__}.{file.name}").MUTANTS
)
