"""python -m benchmarks.module_checks: microseconds a call that modules take to see that nothing was done to children.

CPU time, the least of several rounds; the budget is 2 microseconds a module. Beside it stands the cost of one call of
an empty module, which a fused module saves for every child.
"""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable

from torch import nn

import fastgpt
from fastgpt.model.blocks import FeedForward, why_head_runs
from fastgpt.nn import _exact, attention

BUDGET = 2.0  # microseconds a call


def checks() -> dict[str, Callable[[], object]]:
    """What each module asks in its forward pass; transformers' where it is installed."""
    config = fastgpt.GPTConfig(32, 8, 1, 1, 16)
    model, ffn = fastgpt.GPT(config), FeedForward(config)
    mha = fastgpt.nn.FlashMultiheadAttention(16, 1)
    found = {
        "GPT's FeedForward": ffn.why_children,
        "GPT's Head": lambda: why_head_runs(model.head),
        "GELUFFN": fastgpt.nn.GELUFFN(16).why_children,
        "GELUFFN with dropout": fastgpt.nn.GELUFFN(16, dropout=0.1).why_children,
        "FlashMultiheadAttention (fallback)": lambda: _exact.why_children_run((mha.out_proj,), attention._OUT_PROJ),
        "LinearCrossEntropyLoss": fastgpt.nn.LinearCrossEntropyLoss(16, 32).why_children,
    }
    try:
        import transformers
    except ImportError:
        return found
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=1, n_head=1, vocab_size=32))
    fastgpt.patch(gpt2)
    return found | {
        "transformers' GPT2MLP": gpt2.transformer.h[0].mlp.why_children,
        "transformers' GPT2LMHeadModel": gpt2.why_children,
    }


def microseconds(function: Callable[[], object], number: int = 10000, rounds: int = 15) -> float:
    """CPU time of one call, in the quickest of some rounds."""
    return min(timeit.repeat(function, timer=time.process_time, number=number, repeat=rounds)) / number * 1e6


def main() -> int:
    """Print the table; 1 if a check is over its budget."""
    cost = {name: microseconds(function) for name, function in checks().items()}
    module = nn.Identity()
    empty = microseconds(lambda: module(None))
    print(f"{'check of its children in':36} microseconds a call (a call of nn.Identity: {empty:.2f})")
    for name, spent in cost.items():
        print(f"{name:36} {spent:.2f}{'  OVER' if spent > BUDGET else ''}")
    return int(max(cost.values()) > BUDGET)


if __name__ == "__main__":
    raise SystemExit(main())
