"""Where registers lie: those that live at once have places of their own, and an undefined one stays undefined."""

from __future__ import annotations

import random
import re

from benchmarks.softgpu.lower import Lowered
from benchmarks.softgpu.registers import Step, allocate, live_ranges

from .programs import WGMMA, program


def registers_of(lowered: Lowered) -> dict[str, set[int]]:
    """Names of the kernel's registers -> units where they lie."""
    places: dict[str, set[int]] = {}
    for record in lowered.records:
        names = re.findall(r"%(?:rd|rs|r|p)\d+", record.text)
        names = names[1:] if record.pred >= 0 else names
        units = [unit for unit in record.operands if unit not in {c.unit for c in lowered.constants}]
        for name, unit in zip(names, units):
            places.setdefault(name, set()).add(unit)
    return places


def test_a_register_has_one_place_and_dead_ones_give_theirs_back():
    lowered = program("\n".join(f"add.s32 %r{n + 1}, %r{n}, %r{n};" for n in range(1, 100)))
    places = registers_of(lowered)
    assert all(len(units) == 1 for units in places.values())
    assert lowered.num_units == 2 * 2  # the source and the result of an instruction


def test_a_result_never_lies_over_a_source_of_the_same_instruction():
    lowered = program("mov.b32 %r1, 1; mov.b32 %r2, 2; mov.b64 %rd1, {%r1, %r2}; mov.b64 {%r3, %r4}, %rd1;")
    for record in lowered.records[2:4]:
        spans = [set(range(u, u + w // 2)) for u, w in zip(record.operands, record.widths)]
        assert len(set().union(*spans)) == sum(map(len, spans))


def test_what_a_wgmma_names_shares_its_place_with_nothing():
    body = "\n".join(f"mov.b32 %r{n}, 0;" for n in (0, 1, 2, 3, 4, 5, 6, 7))
    body += f"{WGMMA}, {{%r4,%r5,%r6,%r7}}, %rd2, 0, 1, 1, 0;"
    body += "\n".join(f"mov.b32 %r{n}, {n}; st.shared.b32 [%r{n}], %r{n};" for n in range(100, 150))
    lowered = program(body)
    places = registers_of(lowered)
    taken = set().union(*(places[f"%r{n}"] for n in range(8)))
    assert not taken & set().union(*(places[f"%r{n}"] for n in range(100, 150)))
    assert len(set().union(*(places[f"%r{n}"] for n in range(100, 150)))) == 1
    assert lowered.uses_wgmma


def test_ways_around_a_write():
    """What a guarded write or a branch leaves as it was keeps its place, also where nobody wrote it."""
    dead = "mov.b32 %r10, 1; st.shared.b32 [%r10], %r10;"
    for body in (
        f"{dead} @%p1 mov.b32 %r1, 2; st.shared.b32 [%r1], %r1;",
        f"{dead} @%p1 bra $L; mov.b32 %r1, 2; $L: st.shared.b32 [%r1], %r1;",
        f"{dead} @%p1 bra $L; st.shared.b32 [%r1], %r1; ret; $L: mov.b32 %r1, 2; st.shared.b32 [%r1], %r1;",
    ):
        places = registers_of(program(body))
        assert places["%r1"] != places["%r10"]
    places = registers_of(program(f"{dead} mov.b32 %r1, 2; st.shared.b32 [%r1], %r1;"))
    assert places["%r1"] == places["%r10"]


def test_ranges_go_around_loops_and_through_guards():
    #   0: a = ; 1: b = ; 2: (loop) read b; 3: @p write c; 4: read c, d = ; 5: branch to 2 or 6; 6: read a, d
    a, b, c, d = range(4)
    steps = [
        Step((), (a,), False, None),
        Step((), (b,), False, None),
        Step((b,), (), False, None),
        Step((), (c,), True, None),
        Step((c,), (d,), False, None),
        Step((), (), True, (2, 6)),
        Step((a, d), (), False, ()),
    ]
    # c: the guard may leave it unwritten, so what it was before the start counts.
    assert live_ranges(steps) == {a: (0, 6), b: (1, 5), c: (0, 5), d: (4, 6)}


def random_steps(chance: random.Random) -> tuple[list[Step], list[int]]:
    """Steps that read mostly what was written shortly before; the units that each register takes."""
    count, registers = chance.randint(3, 40), chance.randint(2, 30)
    steps: list[Step] = []
    for index in range(count):
        recent = [register for step in steps[-4:] for register in step.writes]
        reads = [chance.choice(recent) for _ in range(chance.randint(0, 3)) if recent]
        if chance.random() < 0.05:
            reads.append(chance.randrange(registers))
        writes = chance.sample(range(registers), chance.randint(0, 2))
        successors: tuple[int, ...] | None = None
        if index == count - 1:
            successors = ()
        elif chance.random() < 0.3:
            ahead = min(max(index + chance.randint(-6, 6), 0), count - 1)
            successors = (ahead, index + 1) if chance.random() < 0.8 else (ahead,)
        steps.append(Step(tuple(reads), tuple(writes), chance.random() < 0.2, successors))
    return steps, [chance.choice((1, 2, 4)) for _ in range(registers)]


def test_places_change_nothing():
    """Random programs on random ways: with registers in shared places, each read finds what it finds in its own."""
    chance = random.Random(3)
    shared = 0
    for _ in range(1000):
        steps, units = random_steps(chance)
        place, num_units = allocate(steps, units, [])
        shared += num_units < sum(units[register] for register in place)
        assert all(place[register] + units[register] <= num_units for register in place)
        own: dict[int, object] = {}
        file: list[object] = [None] * num_units  # None: undefined, as everything is at the start
        at = 0
        for moment in range(120):
            step = steps[at]
            for register in step.reads:
                found = file[place[register] : place[register] + units[register]]
                assert found == [own.get(register)] * units[register]
            if not (step.is_guarded and chance.random() < 0.5):
                for register in step.writes:
                    own[register] = value = (moment, register)
                    file[place[register] : place[register] + units[register]] = [value] * units[register]
            ways = [at + 1] if step.successors is None else step.successors
            if not ways:
                break
            at = chance.choice(ways)
    assert shared > 500
