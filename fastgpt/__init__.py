"""fastgpt: fused Triton kernels for GPT training, and the GPT that they serve.

model = fastgpt.GPT(fastgpt.GPTConfig.preset("gpt2"))
loss = model(idx, targets).loss
print(fastgpt.implementations(model))      # what computes each part here, and why
fastgpt.patch(other_model)                 # the fused modules inside a model of torch's or transformers'
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _moved
from ._version import __version__ as __version__

# In a source tree the kernels lie beside this folder, not in it. Who starts Python or pytest at the root of the tree
# imports this folder whatever is installed, and gets the kernels of the same tree.
if not (_here := Path(__file__).parent).joinpath("kernels").exists():
    __path__.append(str(_here.parent))

_moved.install()


def _is_the_command() -> bool:
    """Whether Python was started by `fastgpt ...` or `python -m fastgpt ...`."""
    started = getattr(sys, "argv", [""])[:1]
    if started == ["-m"]:  # what stands there while Python looks for the module
        return not {("-m", "fastgpt"), ("-m", "fastgpt.cli")}.isdisjoint(zip(sys.orig_argv, sys.orig_argv[1:]))
    return bool(started) and Path(started[0]).name == "fastgpt"


# The command loads torch when it needs it: its help comes at once, and Ctrl-C finds a handler from the first moment.
# Everyone else has all of it by `import fastgpt`, the operators of torch.ops.fastgpt among it.
if TYPE_CHECKING or not _is_the_command():
    from . import kernels, nn
    from .interop.patch import patch
    from .model import presets
    from .model.config import GPTConfig
    from .model.gpt import GPT
    from .model.one_head import OneHeadLM
    from .model.output import GPTOutput
    from .nn.implementations import implementations

if TYPE_CHECKING:
    from .data import TokenDataset, prepare
    from .data.tokenizer import Tokenizer
    from .train.trainer import TrainConfig, Trainer

__all__ = [
    "GPT",
    "GPTConfig",
    "GPTOutput",
    "OneHeadLM",
    "TokenDataset",
    "Tokenizer",
    "TrainConfig",
    "Trainer",
    "implementations",
    "kernels",
    "nn",
    "patch",
    "prepare",
    "presets",
]

_HOMES = {
    "GPT": ".model.gpt", "GPTConfig": ".model.config", "GPTOutput": ".model.output", "OneHeadLM": ".model.one_head",
    "TokenDataset": ".data", "Tokenizer": ".data.tokenizer", "TrainConfig": ".train.trainer",
    "Trainer": ".train.trainer", "implementations": ".nn.implementations", "patch": ".interop.patch",
    "prepare": ".data",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Training and tokenizing load what they need when they are first used, so that `import fastgpt` stays quick."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    if name in ("kernels", "nn", "study"):
        return import_module(f".{name}", __name__)
    if name == "presets":
        return import_module(".model.presets", __name__)
    if f"{__name__}.{name}" in _moved.MOVED:
        return import_module(f".{name}", __name__)
    from .base.settings import nearest

    meant = nearest(name, __all__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}" + (f"; {meant}" if meant else ""))


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
