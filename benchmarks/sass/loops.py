"""The natural loops of a program.

A back edge goes from a block to a block that dominates it; its loop is what can reach the edge's start without passing
its target. Dominance, not "jumps upwards", because compilers move the waiting loops of barriers out of line.
(Aho, Lam, Sethi, Ullman: Compilers, section 9.6.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .parser import Instruction, Program

SPIN_LENGTH = 8  # shorter loops only wait for a barrier


@dataclass(frozen=True)
class Loop:
    """A natural loop: the blocks of all back edges into one header."""

    header: int  # index of its first instruction
    instructions: tuple[Instruction, ...]
    innermost: bool  # holds no other loop, spin loops aside
    indices: tuple[int, ...] = ()  # of the instructions, in the program

    def count(self, weight: Callable[[Instruction], int]) -> int:
        """How many instructions satisfy a predicate, or the sum of their weights."""
        return sum(map(weight, self.instructions))


def find_loops(program: Program) -> list[Loop]:
    """All loops longer than a spin loop, in the order of their headers."""
    instructions = program.instructions
    if not instructions:
        return []
    starts, ends, successors = blocks(program)
    order = _reverse_postorder(successors)
    predecessors: dict[int, list[int]] = {b: [] for b in order}
    for block in order:
        for successor in successors[block]:
            predecessors[successor].append(block)
    dominators = _dominators(order, predecessors)

    bodies: dict[int, set[int]] = {}
    for block in order:
        for header in successors[block]:
            if dominators[block] >> header & 1:
                bodies.setdefault(header, {header}).update(_reaching(block, header, predecessors))

    members = {header: [i for b in sorted(body) for i in range(starts[b], ends[b])] for header, body in bodies.items()}
    real = [header for header in sorted(bodies) if len(members[header]) > SPIN_LENGTH]
    return [
        Loop(
            starts[header],
            tuple(instructions[i] for i in members[header]),
            innermost=not any(bodies[other] < bodies[header] for other in real),
            indices=tuple(members[header]),
        )
        for header in real
    ]


def hot_loop(loops: list[Loop], tensor_work: Callable[[Instruction], int]) -> Loop | None:
    """The innermost loop that a kernel spends its time in: most tensor-core work for its length, else the longest."""
    inner = [loop for loop in loops if loop.innermost]
    tensor = [loop for loop in inner if loop.count(tensor_work)]
    if tensor:
        # A masked copy of the main loop holds the same tensor-core work and more of everything else.
        return max(tensor, key=lambda loop: (loop.count(tensor_work) / len(loop.instructions), -loop.header))
    return max(inner, key=lambda loop: (len(loop.instructions), -loop.header), default=None)


def blocks(program: Program) -> tuple[list[int], list[int], list[list[int]]]:
    """Basic blocks as (first instruction, one past the last, successor blocks), the latter by block number."""
    instructions, labels = program.instructions, program.labels
    leaders = {0}
    for i, instruction in enumerate(instructions):
        if instruction.ends_block:
            leaders.add(i + 1)
            leaders.update(labels[t] for t in instruction.targets if t in labels)
    starts = sorted(leader for leader in leaders if leader < len(instructions))
    number = {start: block for block, start in enumerate(starts)}
    ends = [*starts[1:], len(instructions)]
    successors = []
    for end in ends:
        last = instructions[end - 1]
        following = [labels[t] for t in last.targets if t in labels]
        if last.falls_through:
            following.append(end)
        successors.append([number[i] for i in dict.fromkeys(following) if i in number])
    return starts, ends, successors


def _reverse_postorder(successors: list[list[int]]) -> list[int]:
    """The blocks that block 0 reaches, each after its predecessors, back edges aside."""
    order, seen, stack = [], {0}, [(0, iter(successors[0]))]
    while stack:
        block, following = stack[-1]
        step = next((b for b in following if b not in seen), None)
        if step is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(step)
            stack.append((step, iter(successors[step])))
    return order[::-1]


def _dominators(order: list[int], predecessors: dict[int, list[int]]) -> dict[int, int]:
    """For each block the set of blocks that every path to it passes, as a bit mask."""
    everything = sum(1 << block for block in order)
    dominators = dict.fromkeys(order, everything)
    dominators[order[0]] = 1 << order[0]
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            mask = everything
            for predecessor in predecessors[block]:
                mask &= dominators[predecessor]
            mask |= 1 << block
            if mask != dominators[block]:
                dominators[block], changed = mask, True
    return dominators


def _reaching(block: int, header: int, predecessors: dict[int, list[int]]) -> set[int]:
    """The blocks from which `block` can be reached without passing `header`."""
    body, todo = {header}, [block]
    while todo:
        current = todo.pop()
        if current not in body:
            body.add(current)
            todo.extend(predecessors[current])
    return body
