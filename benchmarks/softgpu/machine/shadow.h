// What shared and global memory have in common: kinds of accesses, which of them may meet, cells of remembered
// accesses, and the words of a finding.
//
// Accesses are remembered in cells. A cell covers a granule, the least that the program accesses at once, or, while
// nobody accessed less than that, a whole line of 16 bytes; a line is split at the first access to a part of it, and is
// whole again when all of it is written anew.
#pragma once
#include "machine.h"

namespace softgpu {

constexpr uint32_t LINE = 16;

// An access is weak, or strong within a scope (relaxed, acquire, release, volatile, all atomics). Bit 0: it writes.
using Kind = uint8_t;
enum class Scope : uint8_t { WEAK, CTA, CLUSTER, GPU };
constexpr int KINDS = 8;
constexpr Kind kind_of(bool writes, Scope scope = Scope::WEAK) { return Kind(writes | unsigned(scope) << 1); }
constexpr bool writes(Kind kind) { return kind & 1; }

// Do two accesses to one place need an order? Not if both read, nor if each is strong in a scope that has both threads.
inline bool need_order(Kind a, Kind b, bool same_cta, bool same_cluster) {
  if (!writes(a) && !writes(b)) return false;
  const Scope scope = Scope(std::min(a >> 1, b >> 1));
  return scope == Scope::WEAK || (scope == Scope::CTA && !same_cta) || (scope == Scope::CLUSTER && !same_cluster);
}

// Calls f(cell, at, bytes) for the cells of [at, at + bytes). `Table` has the granule's `shift` and `split(line)`,
// whether the line's cells differ: else its first cell speaks for all, and `spread(line)` copies it to the others.
// Where `overwrites`, f returns whether the cell forgot what was before.
template <class Table, class F> inline void for_cells(Table &table, uint32_t at, uint32_t bytes, bool overwrites, F f) {
  const uint32_t end = at + bytes, granule = 1u << table.shift, cells = LINE >> table.shift;
  for (uint32_t line = at / LINE; line * LINE < end; line++) {
    const uint32_t from = std::max(at, line * LINE), to = std::min(end, (line + 1) * LINE);
    const uint32_t first = line * cells;
    const bool whole = to - from == LINE;
    if (whole && !table.split(line)) {
      f(first, from, LINE);
      continue;
    }
    if (!table.split(line)) {
      table.spread(line);
      table.split(line) = true;
    }
    bool forgot = true;
    for (uint32_t start = from & ~(granule - 1); start < to; start += granule)
      forgot &= f(start >> table.shift, std::max(start, from), std::min(start + granule, to) - std::max(start, from));
    if (whole && overwrites && forgot) table.split(line) = false;
  }
}

constexpr int SEVERAL = 32;  // in the place of a lane: several lanes

std::string name_of(const Stamp &s);   // "CTA 3 warp 1 lane 7"
std::string name_of(const Agent &who);
// Two accesses to `place` that nothing orders, or (`fence_missing`) that lack a proxy fence.
template <class Place>
void report_pair(Machine &m, const Stamp &before, bool wrote, const Agent &who, bool writes, bool fence_missing,
                 Place place) {
  const char *kind = fence_missing ? "no proxy fence"
                     : !writes     ? "race: read after write"
                     : wrote       ? "race: write after write"
                                   : "race: write after read";
  if (m.has(kind, who.pc, before.pc)) return;
  m.add(kind, who.pc,
        place() + ": " + name_of(who) + (writes ? " writes by " : " reads by ") + m.where(who.pc) + "; " +
            name_of(before) + (wrote ? " wrote by " : " read by ") + m.where(before.pc) +
            (fence_missing ? "; no fence.proxy.async makes that visible to it" : "; nothing orders them"),
        before.pc);
}

// Lanes of one instruction, or of a loop that does not let them meet, that store different values to `place`.
template <class Place> void report_conflict(Machine &m, int lane, const Agent &who, Place place) {
  if (m.has("conflicting stores", who.pc)) return;
  const std::string lanes =
      lane < SEVERAL ? format("lanes %d and %d of ", lane, who.lane) : format("several lanes of ");
  m.add("conflicting stores", who.pc,
        place() + ": " + lanes + format("CTA %u warp %d store different values by ", who.cta->linear, who.column) +
            m.where(who.pc));
}

}  // namespace softgpu
