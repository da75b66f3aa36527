"""What launches did, counted by the machine: instructions by kind, memory traffic, bank conflicts, lines reached."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .engine import COUNTS, Result

EXECUTED, LANES, BYTES, TRANSACTIONS, IDEAL = (
    COUNTS.index(name) for name in ("executed", "lanes", "bytes", "transactions", "ideal")
)

# What the table tells apart; the first that an instruction starts with.
KINDS = {
    "tensor": ("mma.", "wgmma.mma_async", "tcgen05.mma"),
    "shared": ("ld.shared", "st.shared", "ldmatrix", "stmatrix", "atom.shared", "red.shared"),
    "global": ("ld.global", "st.global", "atom.global", "red.global"),
    "copy": ("cp.async",),
    "sync": (
        *("bar.", "barrier.", "mbarrier.", "fence.", "membar", "wgmma.", "elect.", "setmaxnreg"),
        *("tcgen05.wait", "tcgen05.fence", "tcgen05.commit", "tcgen05.alloc", "tcgen05.dealloc", "tcgen05.relinquish"),
    ),
    "shuffle": ("shfl.", "vote.", "match.", "redux."),
    "special": ("ex2.", "lg2.", "rcp.", "rsqrt.", "sqrt.", "sin.", "cos.", "tanh.", "div."),
    "convert": ("cvt.",),
    "float": ("fma.", "add.", "sub.", "mul.", "max.", "min.", "neg.", "abs."),  # of floats; else they are "other"
}
_FLOAT = re.compile(r"\.b?f(16|32|64)")

# What an instruction does to global memory, by its opcode. Atomics do both; a copy names first where it goes.
_READ = re.compile(r"(ldu?|atom)\.(.*\.)?global\b|cp\..*\bshared(::\w+)?\.global\b")
_WRITTEN = re.compile(r"(st|red|atom)\.(.*\.)?global\b|cp\..*\bglobal\.shared\b")
SECTOR = 32  # bytes: what global memory moves at least


@dataclass
class KernelCounts:
    """Launches of one kernel for one GPU.

    texts         PTX text (its hash) -> (instructions, indices of those that some warp executed)
    kinds         KINDS' names, and "other" -> instructions executed by warps
    requests, bytes, transactions, ideal  what moves, "read" from global memory, "written" to it or "shared" -> the
                  instructions that ask for it, executed by warps; the bytes that they ask for; in how many sectors of
                  global memory or wavefronts of shared memory, and the least possible
    """

    name: str
    target: str
    launches: int = 0
    ctas: int = 0
    steps: int = 0
    seconds: float = 0.0
    texts: dict[str, tuple[int, frozenset[int]]] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    transactions: Counter[str] = field(default_factory=Counter)
    ideal: Counter[str] = field(default_factory=Counter)

    def __iadd__(self, other: KernelCounts) -> KernelCounts:
        self.launches, self.ctas = self.launches + other.launches, self.ctas + other.ctas
        self.steps, self.seconds = self.steps + other.steps, self.seconds + other.seconds
        for text, (size, reached) in other.texts.items():
            self.texts[text] = (size, self.texts.get(text, (0, frozenset()))[1] | reached)
        for mine, theirs in ((self.kinds, other.kinds), (self.requests, other.requests), (self.bytes, other.bytes),
                             (self.transactions, other.transactions), (self.ideal, other.ideal)):  # fmt: skip
            mine.update(theirs)
        return self

    @property
    def coverage(self) -> float:
        """The part of the instructions of all its texts that some warp executed."""
        total = sum(size for size, _ in self.texts.values())
        return sum(len(reached) for _, reached in self.texts.values()) / total if total else 1.0

    @property
    def read(self) -> int:
        """Bytes of the sectors that were read from global memory."""
        return SECTOR * self.transactions["read"]

    @property
    def written(self) -> int:
        """Bytes of the sectors that were written to global memory."""
        return SECTOR * self.transactions["written"]

    @property
    def request(self) -> float:
        """Bytes of global memory that an instruction of a warp asks for, on average: 512 are 16 bytes a lane."""
        requests = self.requests["read"] + self.requests["written"]
        return (self.bytes["read"] + self.bytes["written"]) / requests if requests else 0.0

    def overhead(self, *moves: str) -> float:
        """Transactions over the least possible: 1 is coalesced, or ("shared") without bank conflicts."""
        least = sum(self.ideal[move] for move in moves)
        return sum(self.transactions[move] for move in moves) / least if least else 1.0


def kind_of(key: str) -> str:
    """The name in KINDS of an instruction with this opcode; "other": integers, predicates, moves, branches."""
    kind = next((kind for kind, starts in KINDS.items() if key.startswith(starts)), "other")
    return "other" if kind == "float" and not _FLOAT.search(key) else kind


def moves_of(key: str) -> list[str]:
    """What an instruction with this opcode moves: "read", "written", "shared"."""
    return [
        move
        for move, is_moved in (
            ("read", _READ.match(key)), ("written", _WRITTEN.match(key)), ("shared", key.startswith(KINDS["shared"])),
        )
        if is_moved
    ]  # fmt: skip


def counts_of(result: Result) -> KernelCounts:
    """Of one launch."""
    program, counts = result.program, result.counts
    text = hashlib.sha256(program.text.encode()).hexdigest()[:16]
    reached = frozenset(int(pc) for pc in (counts[:, EXECUTED] > 0).nonzero()[0])
    found = KernelCounts(
        program.name, program.kernel.target, 1, result.ctas, result.steps, result.seconds,
        {text: (len(counts), reached)},
    )  # fmt: skip
    for record, row in zip(program.lowered.records, counts.tolist(), strict=True):
        kind = kind_of(record.key)
        found.kinds[kind] += row[EXECUTED]
        for move in moves_of(record.key):
            found.requests[move] += row[EXECUTED]
            found.bytes[move] += row[BYTES]
            found.transactions[move] += row[TRANSACTIONS]
            found.ideal[move] += row[IDEAL]
    return found


def by_kernel(counts: Iterable[KernelCounts]) -> list[KernelCounts]:
    """One for each kernel and GPU, in order of names."""
    total: dict[tuple[str, str], KernelCounts] = {}
    for one in counts:
        key = (one.name, one.target)
        if key not in total:
            total[key] = KernelCounts(*key)
        total[key] += one
    return [total[key] for key in sorted(total)]
