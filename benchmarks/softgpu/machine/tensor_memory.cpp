// Tensor memory: its allocation, the order of accesses to it, and tcgen05's fences.
#include "tensor_memory.h"
#include <algorithm>
#include <utility>
#include "asynchronous.h"
#include "collective.h"
#include "launch.h"
#include "memory.h"

namespace softgpu {
namespace {

constexpr int LEAST_COLUMNS = 32;  // of an allocation

struct Cell {
  TensorUse write;               // the last one
  std::vector<TensorUse> reads;  // since; the last one of each agent
};

struct Allocation {
  int column, columns;
  int32_t pc;
};

struct TensorMemory {
  std::vector<uint32_t> data = std::vector<uint32_t>(TENSOR_LANES * TENSOR_COLUMNS);
  std::vector<Cell> cells = std::vector<Cell>(CELL_ROWS * TENSOR_COLUMNS);
  std::vector<uint16_t> undefined = std::vector<uint16_t>(CELL_ROWS * TENSOR_COLUMNS);
  std::vector<Allocation> allocations;
  bool allocated[TENSOR_COLUMNS] = {};
  int most = TENSOR_COLUMNS;     // columns that may be asked for
  int32_t relinquished = -1;     // pc
  bool fenced = false;           // does the program use tcgen05.fence?

  Cell &cell(int row, int column) { return cells[row * TENSOR_COLUMNS + column]; }
};

TensorMemory &memory_of(Cta &cta) {
  if (!cta.tensor_memory) {
    auto fresh = std::make_shared<TensorMemory>();
    for (const Ins &i : cta.machine->program->code) fresh->fenced |= i.key.rfind("tcgen05.fence", 0) == 0;
    cta.tensor_memory = fresh;
  }
  return *static_cast<TensorMemory *>(cta.tensor_memory.get());
}

// Of a warp: what it has not waited for, and its fences.
struct Uses {
  std::vector<TensorRange> reads, writes;
  std::vector<uint32_t> before;  // the warp's clock at each fence::before_thread_sync
  Knowledge after;               // what it knew at its last fence::after_thread_sync
};

Uses &uses_of(Warp &w) {
  if (!w.tensor_uses) w.tensor_uses = std::make_shared<Uses>();
  return *static_cast<Uses *>(w.tensor_uses.get());
}

template <class F> void for_range(TensorMemory &memory, const TensorRange &r, F f) {
  for (int row = r.row; row < r.row + r.rows * r.step; row += r.step)
    for (int column = r.column; column < r.column + r.columns; column++) f(memory.cell(row, column));
}

// ---- order -----------------------------------------------------------------------------------------------------------

enum class Gap { NONE, UNFINISHED, ORDER, FENCE };

uint32_t known_of(const Knowledge &view, const Warp &w, int column) {
  const size_t at = w.cta->column_base() + column;
  return at < view.known.size() ? view.known[at] : 0;
}

// What lacks between an earlier access and one that `w` makes now.
Gap gap(TensorMemory &memory, const TensorUse &before, Warp &w, const TensorUse &now) {
  if (!before.clock) return Gap::NONE;
  const bool same_warp = before.warp == w.index;
  const bool pipelined = before.product && now.product && before.pipeline == now.pipeline;
  if (same_warp && (pipelined || (!before.product && before.clock != UNFINISHED))) return Gap::NONE;
  const bool by_engine = before.product && !pipelined;
  const int column = (by_engine ? WGMMA_COLUMN : WARP_COLUMN) + before.warp;
  const uint32_t clock = pipelined ? before.issued : before.clock;
  if (clock == UNFINISHED) return Gap::UNFINISHED;
  const uint32_t known = known_of(w.view, w, column);
  if (known < clock) return by_engine ? Gap::UNFINISHED : Gap::ORDER;
  if (!memory.fenced) return Gap::NONE;
  if (known_of(uses_of(w).after, w, column) < clock) return Gap::FENCE;
  if (by_engine) return Gap::NONE;  // a commit implies the fence before it
  const auto &fences = uses_of(*w.cta->warps[before.warp]).before;
  const auto fence = std::lower_bound(fences.begin(), fences.end(), clock);
  return fence != fences.end() && *fence <= known ? Gap::NONE : Gap::FENCE;
}

std::string name_of(const Warp &w, const TensorUse &use) {
  return format("CTA %u, %swarp %d", w.cta->linear, use.product ? "a product of " : "", use.warp);
}

void report_gap(Warp &w, const Ins &i, Gap what, const TensorUse &before, bool wrote, bool writes) {
  Machine &m = *w.machine;
  const char *kind = what == Gap::UNFINISHED ? "in flight"
                     : what == Gap::FENCE    ? "no tcgen05.fence"
                     : !writes               ? "race: read after write"
                     : wrote                 ? "race: write after write"
                                             : "race: write after read";
  if (m.has(kind, i.pc, before.pc)) return;
  const std::string missing =
      what == Gap::ORDER   ? "nothing orders them"
      : what == Gap::FENCE ? before.product ? "no tcgen05.fence::after_thread_sync follows the wait"
                                            : "no tcgen05.fence::before_thread_sync and ::after_thread_sync stand between"
      : before.product     ? "no mbarrier of a commit that covers it was waited for"
                           : format("no tcgen05.wait::%s comes between", wrote ? "st" : "ld");
  m.add(kind, i.pc,
        "tensor memory: " + softgpu::name_of(w) + (writes ? " writes by " : " reads by ") + m.where(i.pc) + "; " +
            name_of(w, before) + (wrote ? " wrote by " : " read by ") + m.where(before.pc) + "; " + missing,
        before.pc);
}

void check_order(TensorMemory &memory, Warp &w, const Ins &i, const Cell &c, const TensorUse &now, bool writes) {
  if (const Gap what = gap(memory, c.write, w, now); what != Gap::NONE) report_gap(w, i, what, c.write, true, writes);
  if (!writes) return;
  for (const TensorUse &read : c.reads)
    if (const Gap what = gap(memory, read, w, now); what != Gap::NONE) report_gap(w, i, what, read, false, true);
}

}  // namespace

TensorUse use_by_warp(Warp &w, const Ins &i) { return {UNFINISHED, w.clock, i.pc, int16_t(w.index), false, 0}; }

TensorUse use_by_product(Warp &w, const Ins &i, uint64_t pipeline) {
  return {w.wgmma_clock + 1, w.clock, i.pc, int16_t(w.index), true, pipeline};
}

bool touch_tensor(Warp &w, const Ins &i, const TensorRange &range, const TensorUse &use, bool writes) {
  TensorMemory &memory = memory_of(*w.cta);
  Machine &m = *w.machine;
  const bool inside = range.column >= 0 && range.column + range.columns <= TENSOR_COLUMNS &&
                      std::all_of(memory.allocated + range.column, memory.allocated + range.column + range.columns,
                                  [](bool allocated) { return allocated; });
  if (!inside) {
    if (!m.has("out of bounds", i.pc))
      m.add("out of bounds", i.pc, format("%s: columns %d to %d of tensor memory are not all allocated, of ",
                                          softgpu::name_of(w).c_str(), range.column, range.column + range.columns - 1) +
                                       m.where(i.pc));
    return false;
  }
  if (!m.check) return true;
  for_range(memory, range, [&](Cell &c) {
    check_order(memory, w, i, c, use, writes);
    if (writes) {
      c.write = use;
      c.reads.clear();
      return;
    }
    for (TensorUse &read : c.reads)
      if (read.warp == use.warp && read.product == use.product) {
        read = use;
        return;
      }
    c.reads.push_back(use);
  });
  if (!use.product) (writes ? uses_of(w).writes : uses_of(w).reads).push_back(range);
  return true;
}

uint32_t *tensor_lane(Cta &cta, int lane) { return memory_of(cta).data.data() + size_t(lane) * TENSOR_COLUMNS; }

uint16_t *tensor_undefined(Cta &cta, int row) { return memory_of(cta).undefined.data() + size_t(row) * TENSOR_COLUMNS; }

void finish_tensor_uses(Warp &w, bool writes) {
  auto &ranges = writes ? uses_of(w).writes : uses_of(w).reads;
  const auto finish = [&](TensorUse &use) {
    if (use.warp == w.index && !use.product && use.clock == UNFINISHED) use.clock = w.clock;
  };
  for (const TensorRange &range : ranges)
    for_range(memory_of(*w.cta), range, [&](Cell &c) {
      if (writes)
        finish(c.write);
      else
        std::for_each(c.reads.begin(), c.reads.end(), finish);
    });
  ranges.clear();
}

bool tensor_address(Warp &w, const Ins &i, Mask m, int operand, int64_t offset, uint32_t &address) {
  const uint32_t *r = w.reg<uint32_t>(i.op[operand]);
  const int first = __builtin_ctz(m);
  bool agreed = true;
  SG_FOR_LANES(lane, m) agreed &= r[lane] == r[first];
  address = r[first] + uint32_t(offset);
  if (w.undefined[i.op[operand]] & m) {
    if (!w.machine->has("undefined value", i.pc))
      w.machine->add("undefined value", i.pc, softgpu::name_of(w) + ": an address of tensor memory comes from what nobody "
                                                                    "wrote, of " + w.machine->where(i.pc));
    return false;
  }
  if (agreed) return true;
  if (!w.machine->has("bad operand", i.pc))
    w.machine->add("bad operand", i.pc, softgpu::name_of(w) + ": lanes have several addresses of tensor memory, of " +
                                            w.machine->where(i.pc));
  return false;
}

// ---- allocation ------------------------------------------------------------------------------------------------------

namespace {

Step refuse(Warp &w, const Ins &i, const std::string &why) {
  w.machine->add("bad allocation", i.pc, softgpu::name_of(w) + ": " + why + ", by " + w.machine->where(i.pc));
  return Step::STOP;
}

// Columns in operand `operand`; 0 if there can be no allocation of so many.
int columns_in(Warp &w, const Ins &i, int operand) {
  const uint64_t columns = constant(w, i, operand);
  const bool good = columns >= LEAST_COLUMNS && columns <= TENSOR_COLUMNS && !(columns & (columns - 1));
  return good && !w.undefined[i.op[operand]] ? int(columns) : 0;
}

// Where they are given is left open: by chance, at a multiple of their number. As sizes never grow, there is such a place
// whenever so many columns are free. -1: there is none.
int free_place(Machine &m, const TensorMemory &memory, int columns) {
  std::vector<int> places;
  for (int at = 0; at + columns <= TENSOR_COLUMNS; at += columns)
    if (std::none_of(memory.allocated + at, memory.allocated + at + columns, [](bool taken) { return taken; }))
      places.push_back(at);
  return places.empty() ? -1 : places[m.random() % places.size()];
}

// tcgen05.alloc [shared], columns: waits until there are so many.
Step alloc(Warp &w, const Ins &i, Mask m) {
  Step step;
  if (!whole_warp(w, i, m, step)) return step;
  TensorMemory &memory = memory_of(*w.cta);
  const int columns = columns_in(w, i, 1);
  if (!columns) return refuse(w, i, "32, 64, 128, 256 or 512 columns can be allocated");
  if (memory.relinquished >= 0)
    return refuse(w, i, "the CTA has given its permit to allocate back, at " + w.machine->where(memory.relinquished));
  if (columns > memory.most)
    return refuse(w, i, format("%d columns after an allocation of %d: they may not become more", columns, memory.most));
  const int column = free_place(*w.machine, memory, columns);
  if (column < 0) return Step::RETRY;
  Place place;
  if (!defined(w, i, 1, 0, 1) || !find_place(w, i, 0, value_of(w, i, 0, 0) + i.imm[0], place)) return Step::NEXT;
  const uint32_t address = uint32_t(column);
  Agent writer = agent(w, i, 0);
  writer.proxy = Proxy::ASYNC;  // it keeps the order of accesses to its address, whatever the proxy of the next one
  uint8_t *to = shared_write(*place.cta, writer, place.at, 4, 4, false, reinterpret_cast<const uint8_t *>(&address));
  if (to) std::memcpy(to, &address, 4);
  memory.most = columns;
  memory.allocations.push_back({column, columns, i.pc});
  std::fill_n(memory.allocated + column, columns, true);
  for_range(memory, {0, CELL_ROWS, 1, column, columns}, [](Cell &c) { c = Cell(); });
  for (int row = 0; row < CELL_ROWS; row++) std::fill_n(tensor_undefined(*w.cta, row) + column, columns, uint16_t(0xffff));
  for (int lane = 0; lane < TENSOR_LANES; lane++)
    std::fill_n(memory.data.begin() + lane * TENSOR_COLUMNS + column, columns, ~uint32_t(0));  // a NaN in every format
  return Step::NEXT;
}

// tcgen05.dealloc address, columns
Step dealloc(Warp &w, const Ins &i, Mask m) {
  Step step;
  if (!whole_warp(w, i, m, step)) return step;
  TensorMemory &memory = memory_of(*w.cta);
  const int columns = columns_in(w, i, 1);
  uint32_t address;
  if (!tensor_address(w, i, m, 0, 0, address)) return Step::NEXT;
  const auto found = std::find_if(memory.allocations.begin(), memory.allocations.end(), [&](const Allocation &a) {
    return uint32_t(a.column) == address && a.columns == columns;
  });
  if (found == memory.allocations.end()) return refuse(w, i, format("%d columns at 0x%x are no allocation", columns, address));
  TensorUse now = use_by_warp(w, i);
  const TensorRange all = {0, CELL_ROWS, 1, found->column, columns};
  const bool fenced = std::exchange(memory.fenced, false);  // it is synchronous, and needs no fence before it
  if (w.machine->check) for_range(memory, all, [&](Cell &c) { check_order(memory, w, i, c, now, true); });
  memory.fenced = fenced;
  std::fill_n(memory.allocated + found->column, columns, false);
  memory.allocations.erase(found);
  w.machine->happened();
  return Step::NEXT;
}

Step relinquish(Warp &w, const Ins &i, Mask m) {
  Step step;
  if (!whole_warp(w, i, m, step)) return step;
  memory_of(*w.cta).relinquished = i.pc;
  return Step::NEXT;
}

// ---- fences ----------------------------------------------------------------------------------------------------------

// It hands on, to whom a relaxed arrival tells, what the warp knows: more than the ISA promises, as with other fences.
Step fence_before(Warp &w, const Ins &, Mask) {
  uses_of(w).before.push_back(w.clock);
  w.released.join(w.view);
  w.has_released = true;
  tick(w);
  return Step::NEXT;
}

Step fence_after(Warp &w, const Ins &, Mask) {
  if (w.has_pending) w.view.join(std::exchange(w.pending, Knowledge()));
  w.has_pending = false;
  uses_of(w).after = w.view;
  return Step::NEXT;
}

const bool announced = [] {
  for (const char *space : {"", ".shared::cta"})
    announce(std::string("tcgen05.alloc.cta_group::1.sync.aligned") + space + ".b32", alloc, SYNCS);
  announce("tcgen05.dealloc.cta_group::1.sync.aligned.b32", dealloc, SYNCS);
  announce("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned", relinquish, SYNCS);
  announce("tcgen05.fence::before_thread_sync", fence_before);
  announce("tcgen05.fence::after_thread_sync", fence_after);
  return true;
}();

}  // namespace

void end_tensor_memory(Cta &cta) {
  if (!cta.tensor_memory) return;
  for (const Allocation &a : memory_of(cta).allocations)
    if (!cta.machine->has("tensor memory kept", a.pc))
      cta.machine->add("tensor memory kept", a.pc,
                       format("CTA %u ends and has not given %d columns back, allocated by ", cta.linear, a.columns) +
                           cta.machine->where(a.pc));
}

}  // namespace softgpu
