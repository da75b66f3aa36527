"""`OneHeadLM`, "Model 3": a language model with one attention head and nothing else, written to be read in class.

Every name ends in its shape: B sequences, T tokens, D width, V vocabulary. Each line is one formula.

    model = OneHeadLM(vocab_size=4096, d_model=64, max_len=128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for idx_BxT, targets_BxT in batches:                       # targets_BxT[:, t] follows idx_BxT[:, t]
        model(idx_BxT, targets_BxT).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.generate(idx_BxT[:1], 50)

`fastgpt train --preset one-head` does the same with a tokenizer, a schedule and checkpoints.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .one_head_base import OneHeadBase


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

    @property
    def loss(self) -> None:
        """There are no targets."""
        return None


class OneHeadOutputWithLoss(NamedTuple):
    """The same steps, and where they lead: the mean cross-entropy, a scalar."""

    logits: Tensor
    causal_mask: Tensor
    qk_scaled: Tensor
    qk_softmax: Tensor
    loss: Tensor


class OneHeadLM(OneHeadBase):
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
        super().__init__(vocab_size, d_model, max_len)
        self.token_emb = nn.Embedding(vocab_size, d_model)
        self.pos_emb = nn.Embedding(max_len, d_model)
        self.ln = nn.LayerNorm(d_model)
        self.W_Q = nn.Linear(d_model, d_model, bias=False)
        self.W_K = nn.Linear(d_model, d_model, bias=False)
        self.W_V = nn.Linear(d_model, d_model, bias=False)
        self.W_0 = nn.Linear(d_model, d_model, bias=False)
        for matrix in (self.token_emb, self.pos_emb, self.W_Q, self.W_K, self.W_V, self.W_0):
            nn.init.normal_(matrix.weight, std=0.02)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> OneHeadOutput | OneHeadOutputWithLoss:
        """Next-token logits, the steps that led there, and the loss against `targets`, if there are some.

        Both are (B, T) token ids; targets[:, t] follows idx[:, t], and -100 does not count.

        Raises:
            ValueError: T > max_len, or targets of another shape. TypeError: no tensors of integers.
            IndexError: an id outside the vocabulary.
        """
        idx_BxT, targets_BxT = self._checked_both(idx, targets)
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

        steps = OneHeadOutput(logits_BxTxV, causal_mask_TxT, qk_scaled_BxTxT, qk_softmax_BxTxT)
        if targets_BxT is None:
            return steps
        loss = F.cross_entropy(logits_BxTxV.flatten(0, 1), targets_BxT.flatten().long())
        return OneHeadOutputWithLoss(*steps, loss)

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of the next token; targets[:, t] follows idx[:, t]."""
        return self(idx, targets).loss
