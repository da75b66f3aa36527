// Global memory: the host's own, inside registered allocations. What is remembered of accesses lies in pages that are
// made where something is touched, so that a tensor of many GiB of which a few rows are read costs little.
//
// An access is remembered as the number of a record: who, when, by which instruction. A cell (shadow.h) has the last
// weak write that changed it and the accesses since, stores of the value that was there already among them. In a program without atomics CTAs of different clusters are never ordered, so one
// access each of two clusters stands for all: whoever writes races with one of the two. Else all that are not ordered
// are kept.
#include <sys/mman.h>
#include <algorithm>
#include "memory.h"

namespace softgpu {

namespace {

constexpr uint32_t PAGE = 1024;  // bytes
constexpr uint8_t POISON = 0xff;

struct Record {
  uint32_t clock, cta;  // cta: linear, plus 1
  uint32_t cluster;     // linear index of its first CTA
  int32_t pc;
  int16_t column;
  Kind kind;
  Proxy proxy;
};

struct Entry {
  uint32_t record = 0;
  uint8_t lane = 0;
};

struct Cell {
  // Records, 0: none. The accesses since the write are `first`, `second` (by another cluster) and, if there are `more`,
  // those in Global::more.
  uint32_t write = 0, first = 0, second = 0;
  uint8_t write_lane = 0, first_lane = 0, second_lane = 0;
  bool more : 1, written_since : 1;  // there is a write among the accesses since
  Cell() : more(false), written_since(false) {}
};

struct Page {
  uint32_t launch = 0;  // to which the cells belong
  uint32_t shift = 0;
  uint64_t written[PAGE / 64] = {};  // a bit for each byte; over launches
  uint8_t split_lines[PAGE / LINE];
  std::unique_ptr<Cell[]> cells;
};

// A table of pages that costs memory only where it is touched.
class Table {
 public:
  explicit Table(size_t size) : size_(size) {
    void *p = mmap(nullptr, size * sizeof(Page *), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    pages_ = static_cast<Page **>(p);
  }
  ~Table() { munmap(pages_, size_ * sizeof(Page *)); }
  Table(const Table &) = delete;
  Table &operator=(const Table &) = delete;
  Page *&operator[](size_t k) { return pages_[k]; }

 private:
  Page **pages_;
  size_t size_;
};

struct Allocation {
  int32_t id;
  uint64_t start, end;
  uint64_t base;  // start, rounded down to a page
  std::string name;
  Tracked tracked;
  uint32_t launch = 0;  // the last one that may touch it
  Table table;
  std::vector<std::unique_ptr<Page>> pages;  // those that the table points to

  Allocation(int32_t i, uint64_t at, uint64_t bytes, const char *n, Tracked t)
      : id(i), start(at), end(at + bytes), base(at & ~uint64_t(PAGE - 1)), name(n), tracked(t),
        table((at + bytes - base) / PAGE + 1) {}

  bool holds(uint64_t at, uint64_t count) const { return at >= start && at <= end && count <= end - at; }

  Page &page(uint64_t index) {
    Page *&at = table[index];
    if (!at) {
      pages.push_back(std::make_unique<Page>());
      at = pages.back().get();
    }
    return *at;
  }
};

}  // namespace

struct Global {
  std::map<uint64_t, std::unique_ptr<Allocation>> allocations;  // by start
  Allocation *last = nullptr;
  int32_t next_id = 1;
  uint32_t launch = 0, shift = 2;
  bool keep_all = false;  // the program has atomics: CTAs may be ordered
  std::vector<Record> records;
  uint64_t record_step = 0;
  std::unordered_map<const Cell *, std::vector<Entry>> more;
  Allocation *home[64] = {};  // of each of Program::pointers: what this launch's value points into

  // Where an instruction's bytes lie. If its address is known to come from some parameters, in what they point into.
  Allocation *find(uint64_t at, uint64_t bytes, uint64_t origins) {
    bool bound = false;
    if (!(origins & ANYWHERE))
      for (uint64_t left = origins; left; left &= left - 1) {
        Allocation *a = home[__builtin_ctzll(left)];
        if (a && a->holds(at, bytes)) return a;
        bound |= a != nullptr;
      }
    return bound ? nullptr : find(at, bytes);
  }

  Allocation *find(uint64_t at, uint64_t bytes) {
    if (last && last->holds(at, bytes)) return last;
    auto next = allocations.upper_bound(at);
    if (next == allocations.begin()) return nullptr;
    Allocation *a = std::prev(next)->second.get();
    if (!a->holds(at, bytes) || a->launch != launch) return nullptr;
    return last = a;
  }
};

namespace {

struct PageCells {  // for for_cells
  Global &global;
  Page &page;
  const uint32_t shift = page.shift;
  uint8_t &split(uint32_t line) { return page.split_lines[line]; }
  void spread(uint32_t line) {
    const uint32_t n = LINE >> shift;
    Cell *first = &page.cells[line * n];
    for (uint32_t k = 1; k < n; k++) {
      first[k] = first[0];
      if (first[0].more) global.more[first + k] = std::vector<Entry>(global.more[first]);
    }
  }
};

void renew(Page &page, const Global &g) {
  const uint32_t of_line = LINE >> g.shift;
  if (!page.cells || page.shift != g.shift)
    page.cells.reset(new Cell[PAGE >> g.shift]);
  else
    for (uint32_t line = 0; line < PAGE / LINE; line++) page.cells[line * of_line] = Cell();  // the others are made of it
  std::fill(std::begin(page.split_lines), std::end(page.split_lines), uint8_t(0));
  page.shift = g.shift, page.launch = g.launch;
}

// Makes the page's cells narrower: a tensor map's box may end inside the granule of the program's instructions.
void refine(Page &page, Global &g, uint32_t shift) {
  const std::unique_ptr<Cell[]> wide = std::move(page.cells);
  page.cells.reset(new Cell[PAGE >> shift]);
  for (uint32_t k = 0; k < PAGE >> shift; k++) {
    const Cell &from = wide[k >> (page.shift - shift)];
    page.cells[k] = from;
    if (from.more) g.more[&page.cells[k]] = std::vector<Entry>(g.more[&from]);
  }
  page.shift = shift;
}

// The number of the record of what `who` does.
uint32_t record_of(Global &g, Machine &m, const Agent &who, Kind kind) {
  const uint32_t cta = who.cta->linear + 1;
  if (g.record_step == m.steps) {  // one instruction's lanes, and its few kinds, share records
    const size_t n = g.records.size();
    for (size_t k = n - 1; k > 0 && k + 4 > n; k--) {
      const Record &r = g.records[k];
      if (r.clock == who.clock && r.pc == who.pc && r.column == who.column && r.cta == cta && r.kind == kind &&
          r.proxy == who.proxy)
        return uint32_t(k);
    }
  }
  g.record_step = m.steps;
  g.records.push_back({who.clock, cta, who.cta->cluster[0]->linear, who.pc, who.column, kind, who.proxy});
  return uint32_t(g.records.size() - 1);
}

uint64_t bits_between(uint32_t from, uint32_t to) {
  return (to - from == 64 ? ~0ull : (1ull << (to - from)) - 1) << from;
}

// Calls f(word, bits) for the words of Page::written that tell of [from, to).
template <class F> void for_written(Page &page, uint32_t from, uint32_t to, F f) {
  for (uint32_t w = from / 64; w * 64 < to; w++)
    f(page.written[w], bits_between(std::max(from, w * 64) - w * 64, std::min(to, w * 64 + 64) - w * 64), w * 64);
}

// Are all of the bytes written? Of POISON memory the host has written those that no longer hold the poison. A byte of a
// number may be 0xff too: of 8 bytes where no kernel has written, one that differs tells of all.
bool was_written(Allocation &a, Page &page, uint64_t page_start, uint32_t from, uint32_t to) {
  bool all = true;
  for_written(page, from, to, [&](uint64_t &word, uint64_t wanted, uint32_t first) {
    if ((wanted & ~word) && a.tracked == Tracked::POISON)
      for (uint64_t left = wanted & ~word; left; left &= left - 1) {
        const int k = __builtin_ctzll(left), group = k & ~7;
        const uint64_t bits = word >> group & 0xff ? 1ull << k : 0xffull << group;
        for (uint64_t rest = bits; rest; rest &= rest - 1) {
          const uint64_t at = page_start + first + __builtin_ctzll(rest);
          if (at >= a.start && at < a.end && *reinterpret_cast<const uint8_t *>(at) != POISON) word |= bits;
        }
      }
    all &= !(wanted & ~word);
  });
  return all;
}

// "`q`, `k`": what the parameters point into that an address comes from.
std::string names_of(const Global &g, uint64_t origins) {
  std::string text;
  for (uint64_t left = origins; left; left &= left - 1)
    if (const Allocation *a = g.home[__builtin_ctzll(left)]) text += (text.empty() ? "`" : ", `") + a->name + "`";
  return text;
}

uint8_t *refuse(Machine &m, const Agent &who, uint64_t at, uint32_t bytes, uint32_t alignment, Kind kind,
                bool outside) {
  const char *what = outside ? "out of bounds" : "misaligned";
  if (m.has(what, who.pc)) return nullptr;
  std::string text = name_of(who) + (writes(kind) ? " writes " : " reads ") + format("%u bytes at ", bytes) +
                     global_name(m, at) + " by " + m.where(who.pc);
  if (!outside)
    text += format("; the address is no multiple of %u", alignment);
  else if (m.global->find(at, bytes))
    text += "; its address comes from a pointer into " + names_of(*m.global, m.program->code[who.pc].origins);
  m.add(what, who.pc, text);
  return nullptr;
}

// Accesses of one kind by one agent, cell by cell.
struct Visit {
  Global &g;
  Machine &m;
  const Agent &who;
  const Kind kind;
  const uint32_t me;  // its record
  const uint32_t cluster;
  const uint8_t *value = nullptr;  // of the access that runs, which starts at `start`
  uint64_t start = 0;
  uint32_t known_write = 0;  // the record of a write that has been found to be ordered

  Visit(Machine &machine, const Agent &agent, Kind access)
      : g(*machine.global), m(machine), who(agent), kind(access),
        me(machine.check ? record_of(g, machine, agent, access) : 0), cluster(agent.cta->cluster[0]->linear) {}

  std::string place(uint64_t at) const { return global_name(m, at); }
  const Record &record(uint32_t k) const { return g.records[k]; }
  Stamp stamp(uint32_t k, int lane) const {
    const Record &r = record(k);
    return {r.clock, r.cta, r.column, int8_t(lane), r.proxy, r.pc};
  }
  bool same_agent(const Record &r) const { return r.cta == who.cta->linear + 1 && r.column == who.column; }
  bool same_operation(uint32_t k) const {
    return k == me && who.column >= WGMMA_COLUMN;
  }

  template <class F> void for_entries(const Cell &c, F f) const {
    if (c.first) f(Entry{c.first, c.first_lane});
    if (c.second) f(Entry{c.second, c.second_lane});
    if (c.more)
      for (const Entry &e : g.more.find(&c)->second) f(e);
  }

  void check_write(const Cell &c, uint64_t at) {
    if (c.write == known_write || same_operation(c.write)) return;
    const Stamp before = stamp(c.write, c.write_lane);
    if (c.write == me && c.write_lane != who.lane && writes(kind)) {
      report_conflict(m, c.write_lane, who, [&] { return place(at); });
      return;
    }
    if (!ordered(before, who)) {
      report_pair(m, before, true, who, writes(kind), false, [&] { return place(at); });
    } else if (who.proxy == Proxy::ASYNC && !visible_to_async(before, who)) {
      report_pair(m, before, true, who, writes(kind), true, [&] { return place(at); });
    } else if (!same_agent(record(c.write))) {
      known_write = c.write;
    }
  }

  // `same_value`: this is a store of what is there already. It needs no order with other stores that changed nothing.
  void check_entries(const Cell &c, uint64_t at, bool same_value = false) {
    for_entries(c, [&](Entry e) {
      const Record &r = record(e.record);
      const bool stored = r.kind == kind_of(true);
      if (stored && same_value) return;
      if (!need_order(r.kind, kind, r.cta == who.cta->linear + 1, r.cluster == cluster)) return;
      if (same_operation(e.record)) return;
      const Stamp before = stamp(e.record, e.lane);
      if (ordered(before, who)) {
        if (stored && who.proxy == Proxy::ASYNC && !visible_to_async(before, who))
          report_pair(m, before, true, who, writes(kind), true, [&] { return place(at); });
      } else if (stored && same_agent(r) && who.column < WGMMA_COLUMN && r.pc == who.pc) {
        report_conflict(m, e.lane, who, [&] { return place(at); });
      } else {
        report_pair(m, before, writes(r.kind), who, writes(kind), false, [&] { return place(at); });
      }
    });
  }

  // True if this access, by the same agent or one that knows of it, makes the entry needless.
  bool replaces(uint32_t &entry, uint8_t &lane) const {
    const Record &r = record(entry), &now = record(me);
    if (r.kind != now.kind) return false;
    if (same_agent(r)) {
      const bool other_lane = r.clock == now.clock && lane != who.lane;
      entry = me;
      lane = uint8_t(other_lane ? SEVERAL : who.lane);
      return true;
    }
    if (!ordered(stamp(entry, lane), who)) return false;
    entry = me, lane = uint8_t(who.lane);
    return true;
  }

  void note(Cell &c) {
    c.written_since |= writes(kind);
    if (!c.first) {
      c.first = me, c.first_lane = uint8_t(who.lane);
      return;
    }
    if (c.second || (c.first == me && c.first_lane == who.lane)) return;
    if (!g.keep_all && record(c.first).cluster != cluster) {
      c.second = me, c.second_lane = uint8_t(who.lane);
      return;
    }
    if (replaces(c.first, c.first_lane)) return;
    std::vector<Entry> &others = g.more[&c];
    if (!c.more) others.clear(), c.more = true;
    for (Entry &e : others)
      if (replaces(e.record, e.lane)) return;
    others.push_back({me, uint8_t(who.lane)});
  }

  bool read(Cell &c, uint64_t at) {
    if (c.write) check_write(c, at);
    if (c.written_since) check_entries(c, at);
    note(c);
    return false;
  }

  bool write(Cell &c, uint64_t at, uint32_t bytes, bool was_written) {
    if (value && was_written && !std::memcmp(reinterpret_cast<const void *>(at), value + (at - start), bytes)) {
      if (c.first) check_entries(c, at, true);
      note(c);
      return false;
    }
    if (c.write) check_write(c, at);
    if (c.first) check_entries(c, at);
    c = Cell();
    c.write = me, c.write_lane = uint8_t(who.lane);
    return true;
  }

  bool touch_strong(Cell &c, uint64_t at) {
    if (c.write) check_write(c, at);
    check_entries(c, at);
    note(c);
    return false;
  }

  uint8_t *access(uint64_t at, uint32_t bytes, uint32_t alignment, const uint8_t *stored) {
    Allocation *a = g.find(at, bytes, m.program->code[who.pc].origins);
    if (!a || at & (alignment - 1)) return refuse(m, who, at, bytes, alignment, kind, !a);
    if (m.check || a->tracked != Tracked::NO) {
      value = stored, start = at;
      for (uint64_t index = (at - a->base) / PAGE, left = bytes; left; index++) {
        const uint64_t page_start = a->base + index * PAGE;
        const uint32_t from = uint32_t(std::max(at, page_start) - page_start);
        const uint32_t count = uint32_t(std::min<uint64_t>(left, PAGE - from));
        access_page(*a, a->page(index), page_start, from, count);
        left -= count;
      }
    }
    return reinterpret_cast<uint8_t *>(at);
  }

  void access_page(Allocation &a, Page &page, uint64_t page_start, uint32_t from, uint32_t count) {
    const bool tracked = a.tracked != Tracked::NO;
    const bool written = !tracked || was_written(a, page, page_start, from, from + count);
    if (!written && m.check && !writes(kind) && !m.has("never written", who.pc))
      m.add("never written", who.pc,
            place(page_start + from) + ": " + name_of(who) + " reads by " + m.where(who.pc) + " what nobody wrote");
    if (m.check) {
      if (page.launch != g.launch) renew(page, g);
      const uint32_t ends = from | (from + count);
      if (ends & ((1u << page.shift) - 1)) refine(page, g, uint32_t(__builtin_ctz(ends)));
      PageCells cells{g, page};
      for_cells(cells, from, count, kind == kind_of(true), [&](uint32_t k, uint32_t cell_at, uint32_t cell_bytes) {
        Cell &c = page.cells[k];
        const uint64_t address = page_start + cell_at;
        if (kind == kind_of(false)) return read(c, address);
        return kind == kind_of(true) ? write(c, address, cell_bytes, written) : touch_strong(c, address);
      });
    }
    if (tracked && writes(kind))
      for_written(page, from, from + count, [](uint64_t &word, uint64_t wanted, uint32_t) { word |= wanted; });
  }
};

}  // namespace

std::string global_name(Machine &m, uint64_t at) {
  const auto hex = [](uint64_t v) { return format("0x%llx", static_cast<unsigned long long>(v)); };
  const Allocation *nearest = nullptr, *holder = nullptr;
  uint64_t distance = 0;
  for (const auto &[start, a] : m.global->allocations) {
    if (at >= a->start && at < a->end) holder = a.get();
    if (a->launch != m.global->launch) continue;
    const uint64_t d = at < a->start ? a->start - at : at >= a->end ? at - a->end + 1 : 0;
    if (!nearest || d < distance) nearest = a.get(), distance = d;
  }
  if (nearest && !distance) return "`" + nearest->name + "` + " + hex(at - nearest->start);
  std::string text = "address " + hex(at);
  if (holder) text += " (inside `" + holder->name + "`, which this launch was not given)";
  if (!nearest) return text + ", and the launch was given no memory";
  const bool below = at < nearest->start;
  return text + format(", %llu bytes %s `", static_cast<unsigned long long>(below ? distance : distance - 1),
                       below ? "before" : "behind the end of") + nearest->name + "` of " +
         format("%llu bytes", static_cast<unsigned long long>(nearest->end - nearest->start));
}

Global *global_create() { return new Global; }
void global_destroy(Global *g) { delete g; }

int32_t global_register(Global &g, uint64_t start, uint64_t bytes, const char *name, Tracked tracked) {
  g.last = nullptr;
  if (!bytes) return g.next_id++;
  for (auto a = g.allocations.begin(); a != g.allocations.end();)  // what lay there before is gone
    a = a->second->start < start + bytes && start < a->second->end ? g.allocations.erase(a) : std::next(a);
  const int32_t id = g.next_id++;
  g.allocations[start] = std::make_unique<Allocation>(id, start, bytes, name, tracked);
  return id;
}

void global_forget(Global &g, int32_t id) {
  g.last = nullptr;
  for (auto a = g.allocations.begin(); a != g.allocations.end(); ++a)
    if (a->second->id == id) {
      g.allocations.erase(a);
      return;
    }
}

void global_begin_launch(Global &g, const Program &p, const std::vector<uint8_t> &params, const int32_t *ids,
                         size_t num_ids) {
  g.launch++;
  g.last = nullptr;
  g.shift = uint32_t(__builtin_ctz(std::min<uint32_t>(p.global_granule, LINE)));
  g.keep_all = p.has_atomics;
  g.records.assign(1, Record());
  g.record_step = ~0ull;
  g.more.clear();
  for (const auto &[start, a] : g.allocations)
    if (std::find(ids, ids + num_ids, a->id) != ids + num_ids) a->launch = g.launch;
  for (size_t k = 0; k < p.pointers.size(); k++) {
    uint64_t at = 0;
    if (p.pointers[k] + sizeof at <= params.size()) std::memcpy(&at, params.data() + p.pointers[k], sizeof at);
    g.home[k] = g.find(at, 1);
  }
}

uint8_t *global_access(Machine &m, const Agent &who, uint64_t at, uint32_t bytes, uint32_t alignment, Kind kind,
                       const uint8_t *value) {
  return Visit(m, who, kind).access(at, bytes, alignment, value);
}

Mask global_request(Machine &machine, Agent who, Mask m, const uint64_t *at, uint32_t bytes, Kind kind,
                    const Values *values, uint8_t **where) {
  Visit visit(machine, who, kind);
  Mask good = 0;
  SG_FOR_LANES(lane, m) {
    who.lane = int16_t(lane);
    const uint8_t *value = values ? values->of[lane] : nullptr;
    where[lane] = visit.access(at[lane], bytes, bytes, value);
    if (!where[lane]) continue;
    good |= 1u << lane;
    if (value) std::memcpy(where[lane], value, bytes);
  }
  return good;
}

uint8_t *global_read(Machine &m, const Agent &who, uint64_t at, uint32_t bytes, uint32_t alignment) {
  return global_access(m, who, at, bytes, alignment, kind_of(false), nullptr);
}

uint8_t *global_write(Machine &m, const Agent &who, uint64_t at, uint32_t bytes, uint32_t alignment,
                      const uint8_t *value) {
  return global_access(m, who, at, bytes, alignment, kind_of(true), value);
}

}  // namespace softgpu
