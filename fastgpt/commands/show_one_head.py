"""`fastgpt show one-head`: the one-head model on a short text, step by step, as one page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, arg

from ..base.settings import SettingError

COMMAND = "show one-head"


@dataclass
class Command:
    """Draw what a model of one attention head computes for a short text: token ids, embeddings, LayerNorm, Q, K, V,
    scores, mask, softmax, weighted sum, W0, residual, logits. One page, each number of which can be pointed at.

    Without --model a small one (32 wide) learns the embedded Shakespeare first, on the CPU, for 10 seconds.
    """

    prompt: Positional[Annotated[str | None, arg(metavar="TEXT")]] = None
    """The text; up to 24 tokens or so are easy to read. "-": read it from stdin. A line of Shakespeare if not given."""
    out: str = "one-head.html"
    """File to write; a page of an earlier call is replaced."""
    model: str | None = None
    """A run of `fastgpt train --preset one-head` (runs/<name>), or the folder of such a model."""
    tokenizer: str | None = None
    """The tokenizer of --model, where its folder holds none: "gpt2", "shakespeare" or a .tiktoken file."""
    untrained: bool = False
    """Show the small model as it is before training: attention is near uniform."""
    seconds: float | None = None
    """Seconds for which the small model is trained; 10 if not given."""
    steps: int | None = None
    """Steps for which it is trained instead: the same number and seed make the same model on the same machine."""
    seed: int | None = None
    """Seed of its weights and of the order of its data; 0 if not given."""

    def run(self) -> int:
        from ..study.one_head_page import one_head_page
        from . import _small
        from ._outputs import check_page

        check_page(COMMAND, "out", self.out)
        how = {"untrained": self.untrained, "seconds": self.seconds, "steps": self.steps, "seed": self.seed}
        _small.check_options(COMMAND, self.model, self.tokenizer, **how)
        try:
            model, tokenizer, about, rows, ids = self._opened() if self.model is not None else self._trained(how)
            page = one_head_page(model, tokenizer, ids, about=about, provenance=rows)
            page.save(self.out)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("nothing was written") from None
        print(self.out)
        return 0

    def _opened(self) -> tuple[Any, ...]:
        import torch

        from ..model.one_head import OneHeadLM
        from . import _inputs, _small

        assert self.model is not None
        model, tokenizer = _inputs.open_model(self.model, torch.device("cpu"), self.tokenizer)
        if not isinstance(model, OneHeadLM):
            need = f"holds a GPT of {model.config.n_layers} layers; see it with fastgpt show block --model {self.model}"
            raise SettingError(COMMAND, "model", self.model, need)
        ids = _small.token_ids(COMMAND, self.prompt, tokenizer, model.config.max_len)
        rows = [("model", self.model), *_sizes(model)]
        return model, tokenizer, f"The model is {self.model}.", rows, ids

    def _trained(self, how: dict[str, Any]) -> tuple[Any, ...]:
        from ..data.tokenizer import Tokenizer
        from ..model.one_head import OneHeadLM
        from . import _small

        width, max_len = 32, 64
        ids = _small.token_ids(COMMAND, self.prompt, Tokenizer.named("shakespeare"), max_len)
        small = _small.train_here(
            COMMAND, "a model of one head", lambda vocab_size: OneHeadLM(vocab_size, width, max_len), **how
        )
        rows = [*_sizes(small.model), *_small.provenance(small, self.seed)]
        return small.model, small.tokenizer, _small.about(small), rows, ids


def _sizes(model: Any) -> list[tuple[str, object]]:
    config = model.config
    return [
        (
            "model size",
            f"{model.num_parameters():,} parameters: {config.d_model} wide, {config.vocab_size:,} token ids",
        ),
        ("max_len", config.max_len),
    ]
