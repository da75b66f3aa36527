"""`GPTOutput`: what `GPT.forward` returns, to be used as a transformers ModelOutput is."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections import OrderedDict
from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ..kernels import _runtime, support
from ..nn._sharded import is_fsdp, is_sharded
from .sharding import full_tensor, part_versions

_ORDER = ("loss", "logits", "hidden")
_WAY_OUT = "call the model with return_logits=True"
_LOST = f"GPTOutput: the logits were not computed before this copy was made; {_WAY_OUT}"


class GPTOutput(OrderedDict[str, Any]):
    """An ordered dict whose entries are attributes too, without those that are None. Made and used as transformers'
    ModelOutput: `out.loss`, `out["loss"]`, `out[0]`, `out[:2]`, `out.to_tuple()`, `**out`; iterating gives the names.

    loss         scalar, or (B, T) with reduction="none"; None without targets
    logits       (B, T, V)
    hidden       (B, T, d), the output of the final LayerNorm
    head_weight  (V, d), what the logits are made with; an attribute only

    The fused loss never makes the logits. Then they are computed when first asked for, by name or number (`out.logits`,
    `out["logits"]`, `out[1]`, `out.to_tuple()`), and kept. `keys`, `values`, `items`, `len` and `dict(out)` have them
    from the start in evaluation (model.eval() or torch.no_grad()); in training only once they are there, so that no
    library which walks through an output computes them by accident. With FSDP2, ask for them on every rank: they may
    need a gathered weight.

    Raises:
        RuntimeError: logits that were not computed are asked for after the head's weight has changed, or outside of
            the torch.func transform that the model ran in; call the model with return_logits=True.
    """

    def __init__(
        self, loss: Any = None, logits: Tensor | None = None, hidden: Tensor | None = None, *,
        computed_logits: Tensor | None = None, unembedding: Unembedding | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        logits = computed_logits if logits is None else logits
        self.unembedding = unembedding
        self._pending = unembedding is not None and logits is None
        self._lost = False
        if loss is not None and not isinstance(loss, Tensor):
            # A library's copy: type(out)({name: value}), or type(out)((name, value) for ...).
            for name, value in dict(loss).items():
                self[name] = value
            self._lost = self.hidden is not None and "logits" not in self
            loss = None
        for name, value in (("loss", loss), ("logits", logits), ("hidden", hidden)):
            if value is not None:
                super().__setitem__(name, value)

    @property
    def loss(self) -> Tensor | None:
        return super().get("loss")

    @property
    def hidden(self) -> Tensor | None:
        return super().get("hidden")

    @property
    def logits(self) -> Tensor | None:
        if self._pending:
            assert self.unembedding is not None  # what is pending has one, and what it is made of
            assert self.hidden is not None
            super().__setitem__("logits", self.unembedding.logits(self.hidden))
            self._pending = False
        if self._lost:
            raise AttributeError(_LOST)
        return super().get("logits")

    @property
    def computed_logits(self) -> Tensor | None:
        """The logits if they are there already."""
        return super().get("logits")

    @property
    def head_weight(self) -> Tensor | None:
        return None if self.unembedding is None else getattr(self.unembedding.head, "weight", None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ORDER:
            self[name] = value
        else:
            super().__setattr__(name, value)

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "logits":
            self._pending = self._lost = False
        if name not in _ORDER:
            super().__setattr__(name, value)
        if value is not None:
            super().__setitem__(name, value)
        elif super().__contains__(name):
            super().__delitem__(name)

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            if key == "logits" and self._lost:
                raise KeyError(_LOST)
            return self.logits if key == "logits" and self._pending else super().__getitem__(key)
        names = self._names(pending=True)[key]  # only what is asked for is computed
        return self[names] if isinstance(names, str) else tuple(self[name] for name in names)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 (this is get)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (key == "logits" and self._pending)

    def to_tuple(self) -> tuple[Any, ...]:
        """Everything that is not None: loss, logits, hidden."""
        return self[:]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names(pending=self._pending and self._evaluating()))

    def __len__(self) -> int:
        return len(self._names(pending=self._pending and self._evaluating()))

    def _evaluating(self) -> bool:
        return self.unembedding is not None and self.unembedding.evaluating

    # The views of a dict of any kind; OrderedDict's own would not see the logits that are not there yet.
    def keys(self) -> KeysView[str]:  # type: ignore[override]
        return KeysView(self)

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        return ValuesView(self)

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        return ItemsView(self)

    def _names(self, pending: bool) -> list[str]:
        stored = list(super().keys())
        fields = [name for name in _ORDER if name in stored or (name == "logits" and pending and self._pending)]
        return fields + [name for name in stored if name not in _ORDER]

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("GPTOutput: entries can be set (to None: left out), but not removed, merged or moved")

    __delitem__ = pop = popitem = setdefault = update = clear = move_to_end = __ior__ = _refuse

    def __copy__(self) -> GPTOutput:
        return self._with(self._names(pending=False), [dict.__getitem__(self, n) for n in self._names(pending=False)])

    copy = __copy__

    def __deepcopy__(self, memo: dict[int, Any]) -> GPTOutput:
        names = self._names(pending=False)
        return self._with(names, [copy.deepcopy(dict.__getitem__(self, name), memo) for name in names])

    def _with(self, names: Iterable[str], values: Iterable[Any]) -> GPTOutput:
        """Another output with these entries; logits that are still to be computed come from the same head."""
        other = type(self)(unembedding=self.unembedding)
        for name, value in zip(names, values):
            other[name] = value
        other._pending, other._lost = self._pending, self._lost
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(zip(self._names(pending=True), self.to_tuple())),)

    def __repr__(self) -> str:
        words = [f"{name}={_brief(dict.__getitem__(self, name))}" for name in self._names(pending=False)]
        if self._pending:
            words.insert("loss" in self, "logits=<computed when asked for>")
        return f"{type(self).__name__}({', '.join(words)})"

    __str__ = __repr__


class Unembedding:
    """Logits of hidden states, after the forward pass but as it would have computed them.

    head        any module: hidden (B, T, d) -> logits (B, T, V)
    model       whose head it is, if FSDP2 has sharded it
    evaluating  whether the model ran to be evaluated: not in training mode, or without a graph
    """

    def __init__(self, head: nn.Module, hidden: Tensor, *, training: bool, model: nn.Module | None = None) -> None:
        self.head = head
        self.evaluating = not (training and torch.is_grad_enabled())
        self.dtype, self.autocast = hidden.dtype, _runtime.autocast_dtype(hidden)
        self.parameters = dict(head.named_parameters())  # torch.func.functional_call lends others for its call
        self.versions = None if torch.compiler.is_compiling() else [_version(p) for p in self.parameters.values()]
        self.model = model if self.versions is not None and model is not None and is_fsdp(model) else None
        self.part_versions = [] if self.model is None else part_versions(self.model)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (B, T, d) -> logits (B, T, V)."""
        lent = self._lent(hidden)
        hidden = hidden.to(self.dtype)  # FSDP's output_dtype and its like have converted it, but not the weights
        with _autocast(hidden.device.type, self.autocast):
            return self.head(hidden) if lent is None else torch.func.functional_call(self.head, lent, (hidden,))

    def _lent(self, hidden: Tensor) -> dict[str, Tensor] | None:
        """What stands in for the head's own parameters; None: they are what they were in the forward pass."""
        now = dict(self.head.named_parameters())
        parts = [p for p in now.values() if is_sharded(p)]
        if parts and not is_sharded(hidden):
            # FSDP2 has put the parts back since, in the dtype that the optimizer updates.
            if self.model is not None and self.part_versions != part_versions(self.model):
                raise self._changed()
            return {name: full_tensor(p).to(self.dtype) for name, p in now.items()}
        if any(now.get(name) is not p for name, p in self.parameters.items()):
            return {name: _outside_of_transforms(p) for name, p in self.parameters.items()}
        if self.versions is not None and self.versions != [_version(p) for p in now.values()]:
            raise self._changed()
        return None

    def _changed(self) -> RuntimeError:
        return RuntimeError(
            f"GPTOutput: the head's weight has changed since the forward pass, which made no logits; {_WAY_OUT}, or "
            "ask for output.logits before the optimizer's step"
        )

    # Two outputs of one model have the same pytree structure; their weights' versions differ from step to step.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unembedding) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return id(self.head), self.evaluating, self.dtype, self.autocast


def is_exporting() -> bool:
    """torch.compiler.is_exporting(), of which Dynamo up to torch 2.11 says True in torch.compile as well."""
    return getattr(torch.compiler, "_is_exporting_flag", False)


def _version(parameter: Tensor) -> int:
    return 0 if parameter.is_inference() else parameter._version


def _autocast(device_type: str, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    if device_type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device_type, dtype=dtype, enabled=dtype is not None)


def _outside_of_transforms(tensor: Tensor) -> Tensor:
    if torch._C._are_functorch_transforms_active():
        return tensor
    tensor = torch._C._functorch.unwrap_if_dead(tensor)
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise RuntimeError(f"GPTOutput: the logits were not computed inside of the torch.func transform; {_WAY_OUT}")
    return tensor


def _brief(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    if value.dim() == 0 and support.can_be_read(value):
        return f"{value.item():.6g}"
    return f"<{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} {value.device}>"


def _flatten(out: GPTOutput) -> tuple[list[Any], tuple[Any, ...]]:
    names = out._names(pending=False)
    return [dict.__getitem__(out, name) for name in names], (tuple(names), out.unembedding, out._pending)


def _flatten_with_keys(out: GPTOutput) -> tuple[list[Any], tuple[Any, ...]]:
    leaves, context = _flatten(out)
    return [(_pytree.MappingKey(name), leaf) for name, leaf in zip(context[0], leaves)], context


def _unflatten(leaves: Iterable[Any], context: tuple[Any, ...]) -> GPTOutput:
    names, unembedding, pending = context
    out = GPTOutput(unembedding=unembedding)
    for name, leaf in zip(names, leaves):
        out[name] = leaf
    out._pending = pending
    return out


# Wrappers that look for tensors in a module's output find them through pytree, or through the fields of a dataclass:
# neither may meet a parameter (FSDP2 would hook it anew at each forward), nor lose the way to the logits.
_pytree.register_pytree_node(
    GPTOutput, _flatten, _unflatten, serialized_type_name="fastgpt.GPTOutput",
    flatten_with_keys_fn=_flatten_with_keys,
    to_dumpable_context=lambda context: list(context[0]),
    from_dumpable_context=lambda names: (tuple(names), None, False),
)  # fmt: skip
_as_fields = dataclasses.make_dataclass("GPTOutput", ["loss", "computed_logits", "hidden", "unembedding"])
GPTOutput.__dataclass_fields__ = _as_fields.__dataclass_fields__  # type: ignore[attr-defined]
