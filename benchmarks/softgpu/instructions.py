"""What lower.py must know of an opcode: its key, its results, the types of its literals, what it accesses."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

_TYPE = re.compile(
    r"pred|[busf](?:8|16|32|64|128|1024)|b?f16(?:x2)?|tf32|(?:e4m3|e5m2|e3m2|e2m3|e2m1)(?:x[24])?|ue8m0(?:x2)?"
)
_HINT = re.compile(r"\.L[12]::\w+")
_CACHE_OPERATORS = frozenset({"ca", "cg", "cs", "lu", "cv", "wb", "wt"})

# Opcodes without a result. All others write their first operand: a register, a vector or a pair `p|q`.
_NO_RESULT = frozenset(
    (
        *("applypriority", "discard", "prefetch", "prefetchu"),
        *("bra", "brx", "exit", "ret", "trap", "brkpt", "nanosleep", "pmevent", "setmaxnreg", "griddepcontrol"),
        *("cp", "red", "st", "stmatrix", "tensormap"),
        *("fence", "membar"),
    )
)
_NO_RESULT_OF = {
    "bar": ("sync", "arrive", "warp", "cta"),
    "barrier": ("sync", "arrive", "cluster", "cta"),
    "mbarrier": ("init", "inval", "expect_tx", "complete_tx"),
    "wgmma": ("fence", "commit_group", "wait_group"),
    "multimem": ("st", "red"),
    "clusterlaunchcontrol": ("try_cancel",),
    "tcgen05": (
        *("alloc", "dealloc", "relinquish_alloc_permit", "st", "mma", "commit", "cp", "shift"),
        *("wait::ld", "wait::st", "fence::before_thread_sync", "fence::after_thread_sync"),
    ),
}


def type_bytes(name: str) -> int:
    """Bytes of a value of a PTX type; 0 for a predicate."""
    if name == "pred":
        return 0
    if name == "tf32":
        return 4
    packed = re.fullmatch(r"(?:e\dm\d|ue8m0)(?:x(\d))?|(b?f16)x2", name)
    if packed:
        return 4 if packed[2] else int(packed[1] or 1)
    return int(re.sub(r"\D+", "", name)) // 8


@dataclass(frozen=True)
class Access:
    """What an instruction touches in memory; `bytes` 0: an operand says it (cp.async)."""

    shared: bool
    is_global: bool
    bytes: int
    writes_shared: bool


@dataclass(frozen=True)
class Opcode:
    key: str
    parts: tuple[str, ...]
    has_result: bool
    is_wgmma: bool  # its registers are in flight until a wait
    has_cache_policy: bool  # its last operand is one
    type: str  # of literals, where `types` names none
    types: dict[int, str]  # of the operand at a position
    access: Access | None
    address: int | None  # behind the results: the operand with the address of what it touches in global memory
    is_atomic: bool  # may order CTAs


@functools.cache
def opcode(text: str) -> Opcode:
    """The facts of `text`, an opcode as it stands in PTX."""
    key = _HINT.sub("", text)
    parts = key.split(".")
    if parts[0] in ("ld", "st") or parts[:2] == ["cp", "async"]:
        parts = [part for part in parts if part not in _CACHE_OPERATORS]
    key = ".".join(parts)
    types = [part for part in parts if _TYPE.fullmatch(part)]
    name = parts[0]
    has_result = name not in _NO_RESULT
    if name in _NO_RESULT_OF:
        has_result = parts[1] not in _NO_RESULT_OF[name] or (name in ("bar", "barrier") and "red" in parts)
    return Opcode(
        key=key,
        parts=tuple(parts),
        has_result=has_result,
        is_wgmma=parts[:2] == ["wgmma", "mma_async"],
        has_cache_policy=".L2::cache_hint" in text,
        type=_literal_type(parts, types),
        types=_literal_types(parts, types),
        access=_access(parts, types),
        address=_address(parts),
        is_atomic=_is_atomic(parts),
    )


def _literal_type(parts: list[str], types: list[str]) -> str:
    if parts[0] in ("bar", "barrier", "mbarrier", "cp", "shfl", "wgmma", "tcgen05", "fence") or not types:
        return "u32"
    if parts[0] == "slct":
        return types[0]
    return types[-1]


def _literal_types(parts: list[str], types: list[str]) -> dict[int, str]:
    """Where a literal has another type than the instruction: operand -> type."""
    name = parts[0]
    if name in ("shl", "shr", "szext", "mapa", "match"):
        return {2: "u32"}
    if name in ("bfe", "bfi"):
        return {2: "u32", 3: "u32"} if name == "bfe" else {3: "u32", 4: "u32"}
    if name in ("mul", "mad") and "wide" in parts:
        return {3: f"{types[0][0]}{type_bytes(types[0]) * 16}"}
    if name in ("selp", "set", "setp"):
        return {3: "pred"}
    if name == "slct":
        return {3: types[-1]}
    if name == "lop3":
        return {5: "pred"}
    if name == "vote":
        return {1: "pred", 2: "u32"}
    if name == "cvt" and "rs" in parts:
        return {3: "u32"}
    if name == "createpolicy":
        return {1: "f32", 2: "f32"}
    if name == "tensormap" and "replace" in parts:
        return {1: "u32"} if parts[3] in ("box_dim", "global_dim", "global_stride", "element_stride") else {}
    if parts[:2] == ["wgmma", "mma_async"]:
        return {3: "pred"}  # scale-d
    if parts[:2] == ["tcgen05", "mma"]:
        return {4: "pred"}  # enable-input-d
    if parts[:3] == ["cp", "async", "bulk"] and "multicast::cluster" in parts:
        return {3: "u16"} if "tensor" in parts else {4: "u16"}
    return {}


def _access(parts: list[str], types: list[str]) -> Access | None:
    name = parts[0]
    shared = any(part.startswith("shared") for part in parts)
    is_global = "global" in parts
    if name in ("ld", "st", "atom", "red"):
        if "param" in parts or "local" in parts or "const" in parts:
            return None
        lanes = next((int(part[1:]) for part in parts if part in ("v2", "v4", "v8")), 1)
        generic = not shared and not is_global
        size = type_bytes(types[-1]) * lanes if types else 1
        return Access(shared or generic, is_global or generic, size, name != "ld" and (shared or generic))
    if name == "mbarrier" or parts[:2] == ["tcgen05", "commit"]:
        return Access(True, False, 8, True)
    if parts[:2] == ["tcgen05", "alloc"]:
        return Access(True, False, 4, True)
    if name in ("ldmatrix", "stmatrix"):
        return Access(True, False, 16, name == "stmatrix")
    if parts[:3] == ["cp", "async", "bulk"] or parts[:4] == ["cp", "reduce", "async", "bulk"]:
        if "prefetch" in parts or not shared:
            return None
        to = next(part for part in parts if part == "global" or part.startswith("shared"))
        return Access(True, is_global, 16, to != "global")
    if parts[:2] == ["cp", "async"]:
        return Access(True, is_global, 0, True) if shared and is_global else None
    if name == "tensormap":
        return Access(shared, is_global, 4, shared)
    return None


def _address(parts: list[str]) -> int | None:
    shared = any(part.startswith("shared") for part in parts)
    if parts[0] in ("ld", "st", "atom", "red"):
        return None if shared or {"param", "local", "const"} & set(parts) else 0
    if parts[0] != "cp" or "global" not in parts or "tensor" in parts or not shared:
        return None  # (a tensor map has its own bounds)
    spaces = [part for part in parts if part == "global" or part.startswith("shared")]
    return spaces.index("global")


def _is_atomic(parts: list[str]) -> bool:
    if parts[0] in ("atom", "red"):
        return True
    if parts[0] in ("ld", "st", "fence", "membar"):
        beyond_cta = {"gpu", "sys", "cluster", "gl"} & set(parts)
        return bool(beyond_cta) and (parts[0] == "membar" or bool({"acquire", "release", "acq_rel", "sc"} & set(parts)))
    return False
