"""fastgpt: fused Triton kernels for GPT training, and the GPT that they serve.

model = fastgpt.GPT(fastgpt.GPTConfig.preset("gpt2"))
loss = model(idx, targets).loss
print(fastgpt.implementations(model))      # what computes each part here, and why
fastgpt.patch(other_model)                 # the fused modules inside a model of torch's or transformers'
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# In a source tree the kernels lie beside this folder, not in it. Who starts Python or pytest at the root of the tree
# imports this folder whatever is installed, and gets the kernels of the same tree.
if not (_here := Path(__file__).parent).joinpath("kernels").exists():
    __path__.append(str(_here.parent))

from . import kernels, nn
from .config import GPTConfig
from .impl import implementations
from .interop.patch import patch
from .model import GPT
from .one_head import OneHeadLM

if TYPE_CHECKING:
    from .tokenizer import Tokenizer
    from .trainer import TrainConfig, Trainer

__version__ = "0.1.0"

__all__ = [
    "GPT",
    "GPTConfig",
    "OneHeadLM",
    "Tokenizer",
    "TrainConfig",
    "Trainer",
    "implementations",
    "kernels",
    "nn",
    "patch",
]

_LOADED_ON_DEMAND = {"Tokenizer": ".tokenizer", "TrainConfig": ".trainer", "Trainer": ".trainer"}


def __getattr__(name: str) -> Any:
    """Training and tokenizing load what they need when they are first used, so that `import fastgpt` stays quick."""
    if name in _LOADED_ON_DEMAND:
        return getattr(import_module(_LOADED_ON_DEMAND[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LOADED_ON_DEMAND})
