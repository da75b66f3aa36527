"""Where the modules of version 0.1 are now: `import fastgpt.trainer` gives fastgpt.train.trainer, and says so."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

_FOLDERS = {
    "base": "checksums files progress settings user_cache",
    "model": "config modes one_head one_head_base output presets sampling tied token_ids",
    "data": "archives assets dataset mapped preparation pretokens sampler shard_checks shard_writing shards sources "
    "token_cache tokenizer",
    "train": "checkpoint devices evaluation metrics optim overwritten reports run_folder step_folders stopping "
    "train_config trainer training_loop training_state",
    "tools": "budget demo demo_config gpus memory rounding verify verify_cases",
}
_FORMATS = "folder hf_gpt2 locate nanogpt one_head tensor_file transformer_encoder"

MOVED = {f"fastgpt.{name}": f"fastgpt.{folder}.{name}" for folder, names in _FOLDERS.items() for name in names.split()}
MOVED |= {f"fastgpt.interop.{name}": f"fastgpt.model.formats.{name}" for name in _FORMATS.split()}
MOVED |= {"fastgpt.modules": "fastgpt.model.blocks", "fastgpt.impl": "fastgpt.nn.implementations"}


class _OldNames:
    """A finder and a loader: the new module under its old name, not a second one."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, _OldNames) if name in MOVED else None  # type: ignore[arg-type]  # a class will do

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        return None

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        old = module.__name__
        asking = sys._getframe()
        while asking.f_back and asking.f_globals["__name__"].lstrip("_").startswith(("fastgpt", "importlib", "frozen")):
            asking = asking.f_back
        where = asking.f_code.co_filename, asking.f_lineno, asking.f_globals["__name__"]
        warnings.warn_explicit(f"{old} is now {MOVED[old]}", DeprecationWarning, *where)
        sys.modules[old] = import_module(MOVED[old])


def install() -> None:
    """Before all other finders, since they would take a folder of an old name that was left empty for a package."""
    sys.meta_path.insert(0, _OldNames)
