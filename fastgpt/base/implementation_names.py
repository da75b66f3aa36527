"""The implementations that each part of a model has, and the modes of activation checkpointing, by name."""

from __future__ import annotations

from .settings import check_choice

IMPLEMENTATIONS = {
    "attn": ("auto", "triton", "sdpa", "reference"),
    "norm": ("auto", "triton", "torch", "reference"),
    "ffn": ("auto", "triton", "torch", "reference"),
    "loss": ("auto", "triton", "torch", "reference"),
}

REMAT_MODES = ("none", "selective", "full")  # see fastgpt.model.remat


def check_implementation(part: str, requested: str, *, owner: str = "fastgpt") -> None:
    """Raise unless `requested` is an implementation of `part` ("attn", "norm", "ffn" or "loss").

    Raises:
        ValueError: another name. TypeError: no string.
    """
    check_choice(owner, f"{part}_impl", requested, IMPLEMENTATIONS[part])
