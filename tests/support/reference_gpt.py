"""The reference multi-block GPT in plain PyTorch: nn.MultiheadAttention and nn.Sequential, nothing of this package.

Its state dict names bind ours, and its numbers are what `fastgpt.GPT` must reproduce.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReferenceBlock(nn.Module):
    """x + attn(ln1(x)), then x + ffn(ln2(x))."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, dropout: float, bias: bool, gelu: str) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(d_model, bias=bias)
        self.ln2 = nn.LayerNorm(d_model, bias=bias)
        self.attn = nn.MultiheadAttention(d_model, n_heads, dropout=dropout, bias=bias, batch_first=True)
        self.ffn = nn.Sequential(
            nn.Linear(d_model, d_ff, bias=bias), nn.GELU(approximate=gelu), nn.Linear(d_ff, d_model, bias=bias)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        h = self.ln1(x)
        attended, _ = self.attn(h, h, h, attn_mask=hidden, need_weights=False)
        x = x + self.drop(attended)
        return x + self.drop(self.ffn(self.ln2(x)))


class ReferenceGPT(nn.Module):
    def __init__(
        self, vocab_size: int, max_len: int, n_layers: int, n_heads: int, d_model: int, d_ff: int | None = None,
        dropout: float = 0.0, bias: bool = True, tie_weights: bool = True, gelu: str = "none",
    ) -> None:  # fmt: skip
        super().__init__()
        d_ff = d_ff or 4 * d_model
        self.token_emb = nn.Embedding(vocab_size, d_model)
        self.pos_emb = nn.Embedding(max_len, d_model)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            ReferenceBlock(d_model, n_heads, d_ff, dropout, bias, gelu) for _ in range(n_layers)
        )
        self.ln_f = nn.LayerNorm(d_model, bias=bias)
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        if tie_weights:
            self.head.weight = self.token_emb.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """idx (B, T) -> logits (B, T, V), mean cross-entropy."""
        T = idx.shape[1]
        hidden = torch.ones(T, T, dtype=torch.bool, device=idx.device).triu(diagonal=1)  # True: not to be seen
        x = self.drop(self.token_emb(idx) + self.pos_emb(torch.arange(T, device=idx.device)))
        for block in self.blocks:
            x = block(x, hidden)
        logits = self.head(self.ln_f(x))
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss
