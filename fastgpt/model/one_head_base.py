"""What `OneHeadLM` has in common with every model: checks, sampling, attention maps, files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import sharding
from .formats.folder import filled
from .formats.one_head import load_one_head, save_one_head
from .indices import chosen_indices
from .modes import evaluating
from .one_head_config import OneHeadConfig
from .sampling import Generates
from .size import check_can_be_made, check_maps_fit
from .token_ids import checked_ids, checked_targets

if TYPE_CHECKING:
    from typing_extensions import Self


class OneHeadBase(Generates):
    """Everything but the formulas. The constructor's arguments are OneHeadConfig's fields."""

    def __init__(self, vocab_size: int, d_model: int, max_len: int) -> None:
        super().__init__()
        self.config = OneHeadConfig(vocab_size, d_model, max_len)
        check_can_be_made(self.config)
        self.register_load_state_dict_pre_hook(sharding.load_whole)

    def num_parameters(self) -> int:
        """Trainable numbers."""
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def attention_maps(
        self, idx: Tensor, layers: Sequence[int] | int | None = None, heads: Sequence[int] | int | None = None
    ) -> dict[int, Tensor]:
        """qk_softmax on idx (B, T) in the form that `GPT.attention_maps` has: {0: (B, len(heads), T, T)}.

        Raises:
            IndexError: a layer or head but 0 (or -1, the last).
        """
        chosen, numbers = chosen_indices("layer", layers, 1), chosen_indices("head", heads, 1)
        check_maps_fit(self._checked(idx), 1)
        with evaluating(self):
            weights = self(idx).qk_softmax
        return {layer: weights[:, None].expand(-1, len(numbers), -1, -1) for layer in chosen}

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json ("model_type": "fastgpt-one-head") and model.safetensors to `folder`.

        Files are written under a temporary name and renamed, so that a full disk leaves the previous ones intact. Of
        one that FSDP2 has sharded, all ranks call this, and the first writes it whole (`GPT.save_pretrained`).
        """
        state = self.state_dict(keep_vars=True)
        sharding.by_first(state, lambda whole: save_one_head(self.config, whole, folder))

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Read a folder that `save_pretrained` wrote, in eval mode. device: torch's default; dtype: the file's.

        Raises:
            FileNotFoundError: no such folder, or no weights in it. ValueError: of another model, or corrupted.
        """
        config, state = load_one_head(path)
        fields = config.to_dict()
        source = {"source": str(path), "config": ", ".join(f"{name}={size}" for name, size in fields.items())}
        return filled(lambda: cls(**fields), state, **source, device=device, dtype=dtype).eval()

    def _limits(self) -> tuple[int, int]:
        return self.config.vocab_size, self.config.max_len

    def _checked(self, idx: Any) -> Tensor:
        vocab_size, max_len = self._limits()
        way_out = "make it with a larger vocab_size"
        return checked_ids("OneHeadLM", idx, vocab_size=vocab_size, max_len=max_len, vocabulary=way_out)

    def _checked_both(self, idx: Any, targets: Any) -> tuple[Tensor, Tensor | None]:
        idx = self._checked(idx)
        if targets is None:
            return idx, None
        return idx, checked_targets("OneHeadLM", targets, idx, vocab_size=self.config.vocab_size)

    def _next_logits(self, idx: Tensor, cache: Any) -> Tensor:
        return self(idx).logits[:, -1]
