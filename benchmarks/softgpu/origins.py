"""Which parameters the addresses of a kernel's accesses to global memory come from.

An address is computed from a parameter that holds a pointer, whatever is added to it. So an access has a tensor: one
that lands in another argument's memory is out of bounds, though the launch was given that memory too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .registers import Step

MOST = 63  # parameters that can be told apart
ANYWHERE = 1 << MOST  # as in machine.h: the address may have been found in memory

_LOADS = frozenset({"ld", "atom"})
_ARITHMETIC = frozenset({"add", "sub", "mad"})


def origins(
    keys: Sequence[str], steps: Sequence[Step], params: Sequence[int | None], addresses: Sequence[int | None],
    register_bytes: Sequence[int],
) -> tuple[list[int], list[int]]:  # fmt: skip
    """The offsets of the parameters that are pointers, perhaps, and of each instruction the bits of those that its
    address comes from (0: nobody knows).

    params      of each instruction: the offset of the parameter of 8 bytes that it loads
    addresses   of each instruction: the register with its address in global memory
    """
    pointers = sorted({offset for offset in params if offset is not None})[:MOST]
    bit = {offset: 1 << k for k, offset in enumerate(pointers)}
    names = [key.split(".")[0] for key in keys]

    def param(k: int) -> int | None:
        if names[k] not in _LOADS:
            return None
        return 0 if params[k] is None else bit.get(params[k], ANYWHERE)

    from_params = _spread(steps, register_bytes, param, lambda k, found: found)

    def loaded(k: int) -> int | None:
        if names[k] not in _LOADS:
            return None
        return ANYWHERE if params[k] is None else 0

    def unless_index(k: int, found: int) -> int:
        """What is added to a parameter's pointer is none."""
        added = names[k] in _ARITHMETIC and any(from_params.get(register) for register in steps[k].reads)
        return 0 if added else found

    from_memory = _spread(steps, register_bytes, loaded, unless_index)
    return pointers, [
        0 if register is None else from_params.get(register, 0) | from_memory.get(register, 0)
        for register in addresses
    ]  # fmt: skip


def _spread(
    steps: Sequence[Step], register_bytes: Sequence[int], source: Callable[[int], int | None],
    passed: Callable[[int, int], int],
) -> dict[int, int]:  # fmt: skip
    """Register -> bits: of `source`, where an instruction has one, or what its operands have that is `passed` on."""
    found: dict[int, int] = {}
    changed = True
    while changed:
        changed = False
        for k, step in enumerate(steps):
            bits = source(k)
            if bits is None:
                bits = 0
                for register in step.reads:
                    bits |= found.get(register, 0)
                bits = passed(k, bits) if bits else 0
            if not bits:
                continue
            for register in step.writes:
                if register_bytes[register] == 8 and bits & ~found.get(register, 0):
                    found[register] = found.get(register, 0) | bits
                    changed = True
    return found
