"""The GPT and what it is made of: its config, its blocks, sampling, OneHeadLM; in `formats`, what they are on disk.

The names below load torch when they are first used: the command line reads configs without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .. import _moved

if TYPE_CHECKING:
    from .gpt import GPT, Block, KVCache

__all__ = ["GPT", "Block", "KVCache"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(".gpt", __name__), name)
    return _moved.old_name(__name__, name)
