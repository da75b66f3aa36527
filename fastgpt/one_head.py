"""`OneHeadLM`, "Model 3": a language model with one attention head and nothing else, written to be read in class.

Every name ends in its shape: B sequences, T tokens, D width, V vocabulary. Each line is one formula.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kernels import _runtime


class OneHeadOutput(NamedTuple):
    """What the model computes, step by step.

    logits       (B, T, V) scores of the next token
    causal_mask  (T, T)    bool, True where query t must not see key s: s > t
    qk_scaled    (B, T, T) q·k / √D, before the mask
    qk_softmax   (B, T, T) attention weights: row t is a distribution over the tokens up to t
    """

    logits: Tensor
    causal_mask: Tensor
    qk_scaled: Tensor
    qk_softmax: Tensor


class OneHeadLM(nn.Module):
    """Embeddings, LayerNorm, one causal head, residual, and the token embedding again as unembedding.

    Args:
        vocab_size: V. The default is GPT-2's.
        d_model: D, the width of everything.
        max_len: longest sequence; any T up to it goes.

    At random weights (matrices from N(0, σ²), σ = 0.02) attention is near uniform: h has D components of unit variance,
    so that each component of q and of k has variance Dσ², and a score q·k / √D, a sum of D products divided by √D, has
    standard deviation Dσ² (0.026 at D = 64). Softmax over n such scores strays from 1/n by that much, relatively.
    """

    def __init__(self, vocab_size: int = 50257, d_model: int = 64, max_len: int = 1024) -> None:
        super().__init__()
        for name, value in (("vocab_size", vocab_size), ("d_model", d_model), ("max_len", max_len)):
            if value < 1:
                raise ValueError(f"OneHeadLM: {name} must be at least 1, got {value}")
        self.max_len = max_len
        self.token_emb = nn.Embedding(vocab_size, d_model)
        self.pos_emb = nn.Embedding(max_len, d_model)
        self.ln = nn.LayerNorm(d_model)
        self.W_Q = nn.Linear(d_model, d_model, bias=False)
        self.W_K = nn.Linear(d_model, d_model, bias=False)
        self.W_V = nn.Linear(d_model, d_model, bias=False)
        self.W_0 = nn.Linear(d_model, d_model, bias=False)
        for matrix in (self.token_emb, self.pos_emb, self.W_Q, self.W_K, self.W_V, self.W_0):
            nn.init.normal_(matrix.weight, std=0.02)

    def forward(self, idx_BxT: Tensor) -> OneHeadOutput:
        """Next-token logits, and the steps that led there.

        Raises:
            ValueError: T > max_len. TypeError: ids that are not int64 or int32. IndexError: one outside the vocabulary.
        """
        self._check(idx_BxT)
        T, D = idx_BxT.shape[1], self.token_emb.embedding_dim
        position_T = torch.arange(T, device=idx_BxT.device)

        x_BxTxD = self.token_emb(idx_BxT) + self.pos_emb(position_T)
        h_BxTxD = self.ln(x_BxTxD)

        q_BxTxD = self.W_Q(h_BxTxD)
        k_BxTxD = self.W_K(h_BxTxD)
        v_BxTxD = self.W_V(h_BxTxD)

        qk_scaled_BxTxT = q_BxTxD @ k_BxTxD.transpose(1, 2) / math.sqrt(D)
        causal_mask_TxT = torch.ones(T, T, dtype=torch.bool, device=idx_BxT.device).triu(diagonal=1)
        qk_masked_BxTxT = qk_scaled_BxTxT.masked_fill(causal_mask_TxT, -math.inf)
        qk_softmax_BxTxT = qk_masked_BxTxT.softmax(dim=-1)

        attended_BxTxD = self.W_0(qk_softmax_BxTxT @ v_BxTxD)
        y_BxTxD = x_BxTxD + attended_BxTxD
        logits_BxTxV = y_BxTxD @ self.token_emb.weight.T
        return OneHeadOutput(logits_BxTxV, causal_mask_TxT, qk_scaled_BxTxT, qk_softmax_BxTxT)

    def loss(self, idx_BxT: Tensor, targets_BxT: Tensor) -> Tensor:
        """Mean cross-entropy of the next token; targets_BxT[:, t] follows idx_BxT[:, t]."""
        return F.cross_entropy(self(idx_BxT).logits.flatten(0, 1), targets_BxT.flatten().long())

    def _check(self, idx_BxT: Tensor) -> None:
        if idx_BxT.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"OneHeadLM: token ids must be int64 or int32, got {idx_BxT.dtype}; convert with .long()")
        T, V = idx_BxT.shape[1], self.token_emb.num_embeddings
        if T > self.max_len:  # noqa: SIM300 (T is a size, not a constant)
            raise ValueError(f"OneHeadLM: {T} tokens and max_len is {self.max_len}; make it with max_len={T}")
        if idx_BxT.device.type == "cpu" and idx_BxT.numel() and _runtime.can_be_read(idx_BxT):
            worst = int(idx_BxT.max()) if idx_BxT.min() >= 0 else int(idx_BxT.min())
            if not 0 <= worst < V:
                raise IndexError(f"OneHeadLM: token id {worst} is outside [0, {V}); make it with a larger vocab_size")
