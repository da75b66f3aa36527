"""`fastgpt show block`: one block of a GPT on a short text, step by step, as one page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from ..base.settings import SettingError

if TYPE_CHECKING:
    from ..data.tokenizer import Tokenizer
    from ..model.gpt import GPT

COMMAND = "show block"


@dataclass
class Command:
    """Draw what one block of a GPT does to a short text: residual stream, LayerNorm, Q, K, V, scores, mask, softmax,
    weighted sum, output projection, residual, LayerNorm, FFN, residual, logit lens. One page, each number of which can
    be pointed at; layer and head are chosen on it, unless all of them would make it larger than 5 MB.

    Without --model a small one (3 layers, 4 heads, 64 wide) learns the embedded Shakespeare first, on the CPU, for 10
    seconds.
    """

    prompt: Positional[Annotated[str | None, arg(metavar="TEXT")]] = None
    """The text; up to 24 tokens or so are easy to read. "-": read it from stdin. A line of Shakespeare if not given."""
    layer: int = 0
    """Layer to show first, from 0; negative numbers count from the end."""
    head: int = 0
    """Head to show first, from 0; negative numbers count from the end."""
    out: str = "block.html"
    """File to write; a page of an earlier call is replaced."""
    model: str | None = None
    """A run (runs/<name>) or a model's folder, transformers' GPT-2 too."""
    tokenizer: str | None = None
    """The tokenizer of --model, where its folder holds none: "gpt2", "shakespeare" or a .tiktoken file."""
    untrained: bool = False
    """Show the small model as it is before training."""
    seconds: float | None = None
    """Seconds for which the small model is trained; 10 if not given."""
    steps: int | None = None
    """Steps for which it is trained instead: the same number and seed make the same model on the same machine."""
    seed: int | None = None
    """Seed of its weights and of the order of its data; 0 if not given."""

    def run(self) -> int:
        from ..study.block_page import block_page
        from . import _small
        from ._outputs import check_page

        check_page(COMMAND, "out", self.out)
        how = {"untrained": self.untrained, "seconds": self.seconds, "steps": self.steps, "seed": self.seed}
        _small.check_options(COMMAND, self.model, self.tokenizer, **how)
        try:
            model, tokenizer, about, rows, ids = self._opened() if self.model is not None else self._trained(how)
            layer, head = self.layer % model.config.n_layers, self.head % model.config.n_heads
            block_page(model, tokenizer, ids, layer, head, about=about, provenance=rows).save(self.out)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("nothing was written") from None
        print(self.out)
        return 0

    def _opened(self) -> tuple[GPT, Tokenizer, str, list[tuple[str, object]], list[int]]:
        import torch

        from ..model.one_head import OneHeadLM
        from . import _inputs, _small

        assert self.model is not None
        model, tokenizer = _inputs.open_model(self.model, torch.device("cpu"), self.tokenizer)
        if isinstance(model, OneHeadLM):
            need = f"holds a model of one head; see it with fastgpt show one-head --model {self.model}"
            raise SettingError(COMMAND, "model", self.model, need)
        self._check(model.config.n_layers, model.config.n_heads)
        ids = _small.token_ids(COMMAND, self.prompt, tokenizer, model.config.max_len)
        rows = [("model", self.model), *_sizes(model)]
        return model, tokenizer, f"The model is {self.model}.", rows, ids

    def _trained(self, how: dict[str, Any]) -> tuple[GPT, Tokenizer, str, list[tuple[str, object]], list[int]]:
        from ..data.tokenizer import Tokenizer
        from ..model.config import GPTConfig
        from ..model.gpt import GPT
        from . import _small

        max_len, n_layers, n_heads, d_model = 64, 3, 4, 64
        self._check(n_layers, n_heads)
        ids = _small.token_ids(COMMAND, self.prompt, Tokenizer.named("shakespeare"), max_len)

        def make(vocab_size: int) -> GPT:
            return GPT(GPTConfig(vocab_size, max_len, n_layers, n_heads, d_model))

        small = _small.train_here(COMMAND, f"a GPT of {n_layers} layers", make, lr=3e-3, **how)
        model, rows = small.model, _small.provenance(small, self.seed)
        assert isinstance(model, GPT)
        return model, small.tokenizer, _small.about(small), [*_sizes(model), *rows], ids

    def _check(self, n_layers: int, n_heads: int) -> None:
        """Raise SettingError for a layer or head that the model has not."""
        for name, number, count in (("layer", self.layer, n_layers), ("head", self.head, n_heads)):
            if not -count <= number < count:
                need = f"must lie between {-count} and {count - 1}: the model has {count} {name}s"
                raise SettingError(COMMAND, name, number, need)


def _sizes(model: GPT) -> list[tuple[str, object]]:
    config = model.config
    sizes = f"{config.n_layers} layers, {config.n_heads} heads, {config.d_model} wide, {config.vocab_size:,} token ids"
    return [("model size", f"{model.num_parameters():,} parameters: {sizes}"), ("max_len", config.max_len)]
