"""transformers' masks as a few numbers: what the kernels take, in place of a (T_q, T_k) matrix.

transformers builds one mask a forward and hands it to every layer; some models slice, cast or join it on the way. So a
`KeyMask` is a tensor like the one that transformers' own builder for torch's attention returns, (B, 1, T_q, T_k) bool,
True where a query sees a key, whose elements are computed only when some operation asks for them. Whatever comes out
of an operation is an ordinary mask again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ..kernels import reference, support


class KeyMask(Tensor):
    """A (B, 1, T_q, T_k) bool mask that `sees` says in full: keyword arguments of `flash_attention`."""

    sees: dict[str, Any]
    _elements: Tensor | None
    _as_built: bool

    @staticmethod
    def __new__(cls, shape: tuple[int, int, int, int], device: torch.device, sees: dict[str, Any]) -> KeyMask:
        self: KeyMask = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=device)
        self.sees, self._elements, self._as_built = sees, None, True
        return self

    def describes(self, query: Tensor, key: Tensor) -> bool:
        """Whether `sees` holds for this attention: q (B, H, T_q, D), k (B, H_kv, T_k, D)."""
        return self._as_built and self.shape == (query.shape[0], 1, query.shape[2], key.shape[2])

    def dense(self) -> Tensor:
        """The mask as an ordinary tensor, (B, 1, T_q, T_k)."""
        if self._elements is None:
            T_q, T_k = self.shape[2:]
            limits = {name: value for name, value in self.sees.items() if value is not None}
            elements = reference.attention_mask(T_q, T_k, **limits, device=self.device)
            self._elements = elements.expand(self.shape).contiguous()
        return self._elements

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's is in C
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if any(argument.alias_info is not None for argument in func._schema.arguments):
            for x in tree_leaves((args, kwargs)):  # written into, or by a view of it soon: who knows what it then says
                if isinstance(x, KeyMask):
                    x._as_built = False
        args, kwargs = tree_map_only(KeyMask, KeyMask.dense, (args, kwargs or {}))
        return func(*args, **kwargs)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # torch's has the same
        return f"KeyMask(shape={tuple(self.shape)}, {self.sees})"

    def __deepcopy__(self, memo: dict) -> Tensor:
        return self.dense().clone()

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return self.dense().__reduce_ex__(protocol)


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """transformers' mask builder for our attention.

    Returns None where a causal module needs no mask (T_q queries that end with the keys, no padding) or a
    bidirectional one none; a `KeyMask` for causal, bidirectional and sliding-window masks, each with padding at the
    ends; for anything else, and while torch traces, what transformers builds for torch's attention.
    """
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    function = causal_mask_function if mask_function is None else mask_function
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    described = None
    if not traced and not kwargs.get("use_vmap"):
        described = _causal_and_window(function, kv_length)
    elif function is causal_mask_function:
        described = True, None
    if described is not None:
        causal, window = described
        aligned = isinstance(q_offset, int) and q_offset + q_length == kv_offset + kv_length
        if aligned or (not causal and window is None):
            sees: dict[str, Any] = {"causal": causal, "window": window}
            skip = kwargs.get("allow_is_causal_skip", True) if causal else kwargs.get("allow_is_bidirectional_skip")
            if attention_mask is None:
                if skip and window is None:
                    return None
                if not traced:
                    device = torch.device(kwargs.get("device", "cpu"))
                    return KeyMask((batch_size, 1, q_length, kv_length), device, sees)
            elif not traced and attention_mask.dim() == 2 and support.can_be_read(attention_mask):
                kept = _keys_kept(attention_mask, kv_length, kv_offset)
                padded = not bool(kept.all())
                if not padded and skip and window is None:
                    return None
                bounds = _bounds(kept) if padded else (None, None)
                if bounds is not None:
                    sees |= {"key_starts": bounds[0], "key_lengths": bounds[1]}
                    return KeyMask((batch_size, 1, q_length, kv_length), kept.device, sees)
    return sdpa_mask(
        batch_size, q_length, kv_length,
        q_offset,  # type: ignore[arg-type]  # transformers hands a tensor on too
        kv_offset, function, attention_mask,
        **{**kwargs, "allow_is_causal_skip": False},
    )  # fmt: skip


def _keys_kept(attention_mask: Tensor, kv_length: int, kv_offset: int) -> Tensor:
    """(B, kv_length) bool: the mask's columns from `kv_offset` on, for it starts at the first token ever seen, and
    may reach beyond the keys there are yet. Keys beyond the mask are hidden."""
    kept = attention_mask[:, kv_offset : kv_offset + kv_length].bool()
    return torch.nn.functional.pad(kept, (0, kv_length - kept.shape[1]))


def _bounds(kept: Tensor) -> tuple[Tensor, Tensor] | None:
    """(B,) int32 start and end of the keys kept in (B, T_k) bool; None if some row has a hole."""
    j = torch.arange(kept.shape[1], device=kept.device)
    start = torch.where(kept, j, kept.shape[1]).amin(dim=1)
    end = torch.where(kept, j + 1, 0).amax(dim=1)
    if bool((end - start != kept.sum(dim=1)).logical_and(kept.any(dim=1)).any()):
        return None
    return start.int(), end.int()


def _causal_and_window(function: Callable, T_k: int) -> tuple[bool, int | tuple[int, int] | None] | None:
    """(causal, `flash_attention`'s window) of one of transformers' mask functions; None if it is another one.

    transformers makes the windowed ones anew for every mask, from parts that it joins by `and_masks`: they are told by
    the parts. Anything that is not exactly known is no window of ours, only slower.
    """
    from transformers import masking_utils

    plain = {masking_utils.causal_mask_function: True}
    if hasattr(masking_utils, "bidirectional_mask_function"):
        plain[masking_utils.bidirectional_mask_function] = False
    if function in plain:
        return plain[function], None
    parts = _closure(function, "and_masks").get("mask_functions", ())
    if len(parts) != 2 or parts[1] not in plain:
        return None
    causal = plain[parts[1]]
    overlay = "sliding_window_overlay" if causal else "sliding_window_bidirectional_overlay"
    window = _closure(parts[0], overlay).get("sliding_window")
    if type(window) is not int or window < 1:
        return None
    if causal:
        return True, window if window < T_k else None
    return False, (window, window) if window < T_k - 1 else None


def _closure(function: Callable, maker: str) -> dict[str, Any]:
    """What `function` was made with by masking_utils' `maker`; {} if it comes from elsewhere."""
    from transformers import masking_utils

    made_by = getattr(function, "__qualname__", "").startswith(f"{maker}.<locals>.")
    if not made_by or getattr(function, "__module__", "") != masking_utils.__name__:
        return {}
    cells = function.__closure__ or ()
    return dict(zip(function.__code__.co_freevars, (cell.cell_contents for cell in cells)))
