"""Where the modules of version 0.1 are now: `import fastgpt.trainer` gives fastgpt.train.trainer, and says so.

What such a module gives no longer, being elsewhere, it still has under its old path: `fastgpt.trainer.build_adamw`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_FOLDERS = {
    "base": "checksums files progress settings user_cache",
    "model": "config modes one_head one_head_base output presets sampling tied token_ids",
    "data": "archives assets dataset mapped preparation pretokens sampler shard_checks shard_writing shards sources "
    "token_cache tokenizer",
    "train": "checkpoint devices evaluation metrics optim overwritten reports run_folder step_folders stopping "
    "train_config trainer training_loop training_state",
    "study": "demo demo_config",
    "tools": "budget gpus memory rounding verify verify_cases",
}
_FORMATS = "folder hf_gpt2 locate nanogpt one_head tensor_file transformer_encoder"

MOVED = {f"fastgpt.{name}": f"fastgpt.{folder}.{name}" for folder, names in _FOLDERS.items() for name in names.split()}
MOVED |= {f"fastgpt.interop.{name}": f"fastgpt.model.formats.{name}" for name in _FORMATS.split()}
MOVED |= {"fastgpt.modules": "fastgpt.model.blocks", "fastgpt.impl": "fastgpt.nn.implementations"}
MOVED |= {"fastgpt.study.charts": "fastgpt.pages.charts", "fastgpt.study.report": "fastgpt.pages.page"}

_ELSEWHERE = {  # {module of version 0.1: {where they are now: names that it had}}
    "data": {"data.tokenizer": "END_OF_TEXT Tokenizer"},
    "impl": {"nn.impl": "FALLBACK check_constructible choose explain", "kernels.support": "MAX_HEAD_DIM"},
    "interop": {
        "model.formats.folder": "filled load model_type read_config save skeleton",
        "model.formats.one_head": "load_one_head save_one_head",
    },
    "model": {
        "model.blocks": "AddLayerNorm CausalSelfAttention FeedForward Head LayerCache",
        "model.config": "GPTConfig",
        "model.indices": "chosen_indices",
        "model.output": "GPTOutput Unembedding",
        "model.sampling": "Generates",
    },
    "trainer": {
        "base.settings": "SettingError",
        "data.sampler": "BatchSampler",
        "train.evaluation": "fitting_seq_len",
        "train.optim": "build_adamw learning_rate",
    },
}

MOVED_NAMES = {
    f"fastgpt.{module}": {name: f"fastgpt.{home}" for home, names in homes.items() for name in names.split()}
    for module, homes in _ELSEWHERE.items()
}


def old_name(module: str, name: str) -> Any:
    """What `module` had by this name in version 0.1, from where it is now: a `__getattr__` for the module of today."""
    home = MOVED_NAMES[module].get(name)
    if home is None:
        raise AttributeError(f"module {sys.modules[module].__name__!r} has no attribute {name!r}")
    warnings.warn(f"{module}.{name} is now {home}.{name}", DeprecationWarning, stacklevel=3)
    found = getattr(import_module(home), name)
    setattr(sys.modules[module], name, found)  # said once, though `from ... import` asks a package twice
    return found


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
        if old in MOVED_NAMES:
            vars(sys.modules[old])["__getattr__"] = lambda name: old_name(old, name)


def install() -> None:
    """Before all other finders, since they would take a folder of an old name that was left empty for a package."""
    sys.meta_path.insert(0, _OldNames)
