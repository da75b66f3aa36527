"""Sampling from a language model: temperature, top-k, top-p; one token at a time, with or without a key/value cache.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..base.settings import SettingError, SettingTypeError, check_flag, check_integer, check_number, nearest
from ..kernels import support
from . import sharding
from .modes import evaluating


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn.

    temperature  logits are divided by it; 0 takes the likeliest token
    top_k        draw from the k likeliest tokens, k at most V
    top_p        draw from the fewest likeliest tokens whose probabilities reach p (arXiv 1904.09751)
    seed         of a generator made for this call; None: the generator passed, or torch's own
    eos          a token id, or several, after which a row stops

    Raises:
        ValueError, TypeError: a setting that cannot be.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    eos: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        off = "; leave it out to draw from all tokens"
        checked: dict[str, Any] = {
            "temperature": check_number(
                "generate", "temperature", self.temperature, least=0, hint="; 0 takes the likeliest token"
            )
        }
        if self.top_k is not None:
            checked["top_k"] = check_integer("generate", "top_k", self.top_k, least=1, hint=off)
        if self.top_p is not None:
            checked["top_p"] = check_number("generate", "top_p", self.top_p, above=0, most=1, hint=off)
        if self.seed is not None:  # what torch.Generator takes
            checked["seed"] = check_integer("generate", "seed", self.seed, least=-(2**63), most=2**64 - 1)
        if self.eos is not None:
            several = self.eos if isinstance(self.eos, (list, tuple, set, frozenset)) else (self.eos,)
            checked["eos"] = tuple(check_integer("generate", "eos", token, least=0) for token in several)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def ends(self) -> tuple[int, ...]:
        """The token ids that end a text: `eos`, as many as there are."""
        return self.eos if isinstance(self.eos, tuple) else ()

    @classmethod
    def of(cls, settings: dict[str, Any], vocab_size: int) -> SamplingConfig:
        """The keyword arguments of a call, checked against the model's vocabulary too.

        Raises:
            ValueError, TypeError: a setting that cannot be, or that is none.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in names:
                meant = nearest(name, names) or f"there are {', '.join(names)}"
                raise TypeError(f"generate: there is no setting {name!r}; {meant}")
        config = cls(**settings)
        if config.top_k is not None and config.top_k > vocab_size:
            raise SettingError(
                "generate", "top_k", config.top_k, f"must be at most {vocab_size}, the model's vocabulary"
            )
        for token in config.ends:
            if token >= vocab_size:
                raise SettingError("generate", "eos", token, f"must be a token id in [0, {vocab_size})")
        return config


class Generates(nn.Module):
    """`generate` and `stream` for a language model, which says what it takes and what follows a text."""

    def generate(
        self, idx: Tensor, max_new_tokens: int, *, use_cache: bool = True, generator: torch.Generator | None = None,
        **sampling: Any,
    ) -> Tensor:  # fmt: skip
        """Continue each row of idx (B, T): (B, T + n), n <= max_new_tokens.

        Past max_len tokens the window slides: the model sees the last max_len. `sampling` are the fields of
        `SamplingConfig`: temperature (0: greedy), top_k, top_p, seed, eos. A row that has drawn an
        `eos` is filled with it; generation ends when every row has. Modules keep the mode (train, eval) they are in.

        Of a model that FSDP2 has sharded, all ranks call this, with the same max_new_tokens; their rows may differ, and
        with `eos` all end when the rows of all have. Equal rows continue equally with temperature=0, or one `seed`.

        Raises:
            ValueError, TypeError, IndexError: bad sampling settings or token ids, as in `forward`.
            FloatingPointError: the model's logits are not numbers to draw by.
        """
        idx = self._checked(idx)
        tokens = self._tokens(idx, max_new_tokens, use_cache, generator, sampling, contextlib.nullcontext)
        with evaluating(self):  # for the whole of it: nobody can train in between
            new = list(tokens)
        return torch.cat([idx, torch.stack(new, dim=1)], dim=1) if new else idx.clone()

    def stream(
        self, idx: Tensor, max_new_tokens: int, *, use_cache: bool = True, generator: torch.Generator | None = None,
        **sampling: Any,
    ) -> Iterator[Tensor]:  # fmt: skip
        """As `generate`, but an iterator over the new tokens, (B,) at a time, each yielded as soon as it is drawn.

        Settings are checked at once, not with the first token. Between two tokens modules are in their own modes.
        """
        idx = self._checked(idx)
        evaluated = functools.partial(evaluating, self)
        return self._tokens(idx, max_new_tokens, use_cache, generator, sampling, evaluated)

    def _tokens(
        self, idx: Tensor, max_new_tokens: int, use_cache: bool, generator: torch.Generator | None,
        sampling: dict[str, Any], around: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> Iterator[Tensor]:  # fmt: skip
        """What `stream` yields; the model is asked for each token inside of an `around()`."""
        vocab_size, max_len = self._limits()
        if idx.shape[1] == 0:
            raise ValueError("generate: idx has no tokens; start with at least one, e.g. the end-of-text token")
        max_new_tokens = check_integer("generate", "max_new_tokens", max_new_tokens, least=0)
        check_flag("generate", "use_cache", use_cache)
        config = SamplingConfig.of(sampling, vocab_size)
        generator = _checked_generator(generator, config.seed, idx.device)
        cache = self._new_cache(min(max_len, idx.shape[1] + max_new_tokens)) if use_cache else None
        return _stream(self, idx, max_new_tokens, max_len, config, cache, generator, around)

    # ---- what the model says --------------------------------------------------------------------------------------

    def _checked(self, idx: Any) -> Tensor:
        """idx (B, T), T <= max_len, as the model takes it, or an error."""
        raise NotImplementedError

    def _limits(self) -> tuple[int, int]:
        """vocab_size and max_len."""
        raise NotImplementedError

    def _new_cache(self, capacity: int) -> Any:
        """An empty cache with a `length`, for at most `capacity` tokens; None: the model has none."""
        return None

    def _next_logits(self, idx: Tensor, cache: Any) -> Tensor:
        """Logits (B, V) after the last of the tokens idx (B, T), which follow those in the cache."""
        raise NotImplementedError


def _checked_generator(
    generator: torch.Generator | None, seed: int | None, device: torch.device
) -> torch.Generator | None:
    if seed is not None:
        if generator is not None:
            raise ValueError("generate: pass seed or generator, not both")
        return torch.Generator(device=device).manual_seed(seed)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise SettingTypeError("generate", "generator", generator, "must be a torch.Generator; for a number use seed")
    if generator is not None and generator.device.type != device.type:
        need = f"must be on the device of idx: torch.Generator(device={str(device)!r})"
        raise SettingError("generate", "generator", str(generator.device), need)
    return generator


def _stream(
    model: Generates,
    idx: Tensor,
    max_new_tokens: int,
    max_len: int,
    config: SamplingConfig,
    cache: Any,
    generator: torch.Generator | None,
    around: Callable[[], contextlib.AbstractContextManager[None]],
) -> Iterator[Tensor]:
    seen, unread = idx, idx  # `unread` are the tokens that the cache does not hold yet
    finished = torch.zeros(idx.shape[0], dtype=torch.bool, device=idx.device)
    token = idx[:, -1]
    all_of = sharding.everywhere(model) if config.eos else Tensor.all
    unchecked: Tensor | None = None
    for _ in range(max_new_tokens):
        if cache is not None and cache.length + unread.shape[1] > max_len:
            cache = None  # the window slides from here on, and every position in it changes
        with torch.no_grad(), around():
            logits = model._next_logits(seen[:, -max_len:] if cache is None else unread, cache)
        drawn, undrawable = _draw(logits, config, generator)
        _refuse(unchecked if _looking_waits(idx.device) else undrawable)
        unchecked = undrawable
        if config.eos:
            token = torch.where(finished, token, drawn)
            for eos in config.ends:
                finished = finished | (token == eos)
        else:
            token = drawn
        yield token
        if config.eos and bool(all_of(finished)):
            break
        unread = token[:, None].to(idx.dtype)
        seen = torch.cat([seen, unread], dim=1)
    _refuse(unchecked)


def _looking_waits(device: torch.device) -> bool:
    """On a GPU, looking at values waits for it. So it is done one token late: the next one's work is under way then."""
    return device.type != "cpu"


def sample(logits: Tensor, config: SamplingConfig, generator: torch.Generator | None = None) -> Tensor:
    """Draw one token a row: logits (B, V) -> (B,) int64. top_k keeps all that tie with the k-th.

    Raises:
        FloatingPointError: a row with NaN or +inf, or of -inf only.
    """
    token, undrawable = _draw(logits, config, generator)
    _refuse(undrawable)
    return token


class _Drawn(NamedTuple):
    token: Tensor  # (B,) int64
    undrawable: Tensor  # (B,) bool: rows whose token means nothing


def _draw(logits: Tensor, config: SamplingConfig, generator: torch.Generator | None) -> _Drawn:
    highest = logits.amax(dim=-1, keepdim=True)  # (B, 1); NaN where the row has one
    undrawable = ~highest.isfinite()
    if config.temperature == 0.0:
        return _Drawn(logits.argmax(dim=-1), undrawable.squeeze(-1))
    ids = None
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        logits, ids = _top_k(logits, config.top_k)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    # From the highest down, so that no temperature divides to infinity: the likeliest token stays at 0.
    logits = (logits - highest).masked_fill(undrawable, 0.0) / max(config.temperature, torch.finfo(torch.float32).tiny)
    weights = logits.softmax(dim=-1)
    if config.top_p is not None and config.top_p < 1.0:
        if ids is None:
            weights, ids = _from_the_likeliest(weights, config.top_p)
        before = weights.cumsum(dim=-1) - weights  # mass of the likelier tokens
        least = max(config.top_p, torch.finfo(torch.float32).tiny)  # in float32, less is 0, which nothing is before
        weights = weights.masked_fill(before >= least, 0.0)
    token = _pick(weights, generator)
    return _Drawn((token if ids is None else ids.gather(-1, token)).squeeze(-1), undrawable.squeeze(-1))


def _top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
    """The k highest of logits (B, V), from the highest down, and their ids, both (B, k).

    Where others tie with the k-th, or to look would wait: all of them, the others than those -inf, and None.
    """
    values, ids = logits.topk(k, dim=-1)
    kth = values[:, -1:]
    if support.can_be_read(logits) and not _looking_waits(logits.device) and (logits >= kth).sum() == ids.numel():
        return values, ids
    return logits.masked_fill(logits < kth, float("-inf")), None


def _from_the_likeliest(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """probabilities (B, V) from the highest down, and their ids: the first n of them, which hold all that top_p keeps.

    Together, those below (1 - top_p) / V are less than 1 - top_p, so the others reach top_p alone. They are some
    hundreds, and to sort those is ten times as fast.
    """
    V = probabilities.shape[-1]
    if not support.can_be_read(probabilities) or _looking_waits(probabilities.device) or not len(probabilities):
        return probabilities.sort(dim=-1, descending=True)
    bound = 0.9 * (1.0 - top_p) / V  # sums have errors of rounding
    return probabilities.topk(int((probabilities >= bound).sum(dim=-1).max()), dim=-1)


def _pick(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """One index a row, with the probabilities that the weights (B, N) have to each other: (B, 1) int64."""
    if weights.device.type != "cpu":
        return torch.multinomial(weights, 1, generator=generator)
    # torch.multinomial draws N random numbers a row, where one does: of 50,257 weights, 0.9 ms in place of 0.04.
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    whole = cumulative[:, -1:]
    at = torch.rand(whole.shape, dtype=torch.float64, device=whole.device, generator=generator) * whole
    at = at.minimum(whole.nextafter(torch.zeros_like(whole)))  # rounded up to the whole, it would be past every weight
    return torch.searchsorted(cumulative, at, right=True)


def _refuse(undrawable: Tensor | None) -> None:
    if undrawable is not None and support.can_be_read(undrawable) and undrawable.any():
        rows = undrawable.nonzero().flatten().tolist()
        raise FloatingPointError(
            f"generate: the logits of rows {rows} hold NaN or infinity, or -inf only, and no token can be drawn by "
            "them; look for weights that are not finite, or load the last checkpoint before they were"
        )
