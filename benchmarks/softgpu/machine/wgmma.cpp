// wgmma: products of a warpgroup's matrices, asynchronously, from shared memory.
//
// Each of the four warps computes its 16 rows when it issues. Until a wait_group that covers the group, the
// accumulators are busy (machine.h), and so is A if it lies in registers; the reads of shared memory are those of the
// warp's engine, whose clock is the group's number, and which the warp learns at the wait: a write before it is a race.
#include <algorithm>
#include <deque>
#include <string>
#include "collective.h"
#include "fragments.h"
#include "launch.h"
#include "matrix_rows.h"

namespace softgpu {
namespace {

constexpr int WARPS = 4;  // of a warpgroup

constexpr uint64_t ANY = ~uint64_t(0);  // in the place of a descriptor that nobody knows

struct Issue {  // of the warpgroup; a, b: descriptors
  int32_t pc;
  uint64_t a, b;
  int warps;  // that came so far
};

struct State {  // of a warp
  struct Flight {
    const Ins *ins;
    uint32_t group;
  };
  std::vector<Flight> flying;
  uint64_t fence = 0;                      // the step of the last wgmma.fence
  uint64_t committed = 0;                  // the step of the last commit_group
  std::vector<uint64_t> accumulated;       // [unit]: the step of the last wgmma that wrote it
  CheckedRows checked;                     // rows of shared memory that the open group has read
  uint64_t num_issued = 0;
  // Of the first warp of a warpgroup: what its warps issued, from number `first_issue` on, until all four have.
  std::deque<Issue> issues;
  uint64_t first_issue = 0;
};

State &state(Warp &w) {
  if (!w.wgmmas) {
    auto s = std::make_shared<State>();
    s->accumulated.assign(w.busy.size(), 0);
    w.wgmmas = s;
  }
  return *static_cast<State *>(w.wgmmas.get());
}

// ---- operands -------------------------------------------------------------------------------------------------------

// {d, ...}, {a, ...} or a's descriptor, b's descriptor, scale-d, and where the type has them: the signs of a and b, and
// whether a (in shared memory) and b are transposed.
struct Operands {
  int a, num_a, b;
  bool a_in_registers, accumulate, negate, transposed_a, transposed_b, valid;
};

Operands operands(Warp &w, const Ins &i, bool has_signs, bool has_transposes) {
  Operands o = {};
  o.a = i.num_dst;
  o.a_in_registers = i.width[o.a] != 8;
  o.num_a = o.a_in_registers ? 4 : 1;
  o.b = o.a + o.num_a;
  o.accumulate = constant(w, i, o.b + 1) != 0;
  const auto small = [&](int operand) { return int32_t(constant(w, i, operand)); };
  int next = o.b + 2;
  o.valid = true;
  if (has_signs) {
    const int32_t a = small(next), b = small(next + 1);
    o.negate = (a < 0) != (b < 0);
    o.valid = (a == 1 || a == -1) && (b == 1 || b == -1);
    next += 2;
  }
  if (has_transposes) {
    if (!o.a_in_registers) o.transposed_a = small(next++);
    o.transposed_b = small(next);
  }
  return o;
}

// The descriptor in an operand; false if there is none, since it is undefined or the lanes do not agree.
bool get_descriptor(Warp &w, const Ins &i, int operand, uint64_t &bits) {
  Machine &m = *w.machine;
  const uint64_t *r = w.reg<uint64_t>(i.op[operand]);
  bits = r[0];
  if (w.undefined[i.op[operand]]) {
    if (!m.has("undefined value", i.pc))
      m.add("undefined value", i.pc, name_of(w) + ": a descriptor comes from what nobody wrote, of " + m.where(i.pc));
    return false;
  }
  std::string why;
  bool agreed = true;
  for (int lane = 1; lane < LANES && agreed; lane++) agreed = r[lane] == bits;
  if (!agreed)
    why = "lanes have several";
  else
    why = fault_of(bits);
  if (!why.empty() && !m.has("bad descriptor", i.pc))
    m.add("bad descriptor", i.pc, name_of(w) + ": " + why + " (" + Descriptor(bits).text() + "), of " + m.where(i.pc));
  return agreed;
}

void read(Warp &w, const Ins &i, const Rows &rows, void *to, std::vector<bool> &undefined) {
  const Agent reader = engine(w, i, WGMMA_COLUMN + w.index, w.wgmma_clock + 1, w.view);
  read_rows(*w.cta, reader, state(w).checked, rows, static_cast<uint8_t *>(to), undefined);
}

void transpose(uint32_t *block) {  // 8x8 of 16 bits
  uint16_t x[8][8];
  std::memcpy(x, block, sizeof x);
  for (int r = 0; r < 8; r++)
    for (int c = 0; c < r; c++) std::swap(x[r][c], x[c][r]);
  std::memcpy(block, x, sizeof x);
}

// The 16 rows of A that are this warp's, as registers would hold them, and rows that are undefined.
void read_a(Warp &w, const Ins &i, uint64_t descriptor, bool transposed, uint32_t (&words)[4][LANES], Mask (&rows)[2]) {
  std::vector<bool> undefined;
  uint32_t blocks[2][2][LANES];  // [8 rows][16 bytes along k]
  const Rows &source = rows_of(descriptor, transposed, w.index % WARPS * 2, 2);
  read(w, i, source, blocks, undefined);
  for (int r = 0; r < 4; r++) {
    uint32_t(&block)[LANES] = blocks[r & 1][r >> 1];
    if (transposed) transpose(block);
    std::memcpy(words[r], block, sizeof block);
  }
  for (size_t k = 0; k < undefined.size(); k++)
    if (undefined[k]) rows[k / 16] |= transposed ? ALL : 15u << (4 * (k % 8));
}

// B as 8 columns by 16 bytes along k (or, transposed, 8 k by 8 columns) each: words[2 j + r]; columns as lanes of B.
void read_b(Warp &w, const Ins &i, uint64_t descriptor, bool transposed, int num_columns, uint32_t (*words)[LANES],
            Mask *columns) {
  std::vector<bool> undefined;
  read(w, i, rows_of(descriptor, transposed, 0, num_columns / 8), words, undefined);
  for (size_t k = 0; k < undefined.size(); k++)
    if (undefined[k]) columns[k / 16] |= transposed ? ALL : 15u << (4 * (k % 8));
}

// ---- registers in flight --------------------------------------------------------------------------------------------

void set_busy(Warp &w, int32_t unit, uint8_t busy) {
  w.num_busy += (busy != 0) - (w.busy[unit] != 0);
  w.busy[unit] = busy;
}

int num_registers(const Ins &i) { return i.num_dst + (i.width[i.num_dst] == 8 ? 0 : 4); }  // accumulators and A's

void mark_busy(Warp &w, const Ins &i) {
  for (int k = 0; k < num_registers(i); k++)
    set_busy(w, i.op[k], w.busy[i.op[k]] | (k < i.num_dst ? BUSY_WRITTEN : BUSY_READ));
}

void report_busy(Warp &w, const Ins &i, const char *what) {
  Machine &m = *w.machine;
  if (!m.has("in flight", i.pc))
    m.add("in flight", i.pc, name_of(w) + ": " + what + ", and no wait_group comes before " + m.where(i.pc));
}

// Wgmmas of one shape may accumulate in the same registers one after the other; else nobody touches these before the
// wait.
void check_busy(Warp &w, const Ins &i, const Operands &o) {
  const State &s = state(w);
  const auto goes_on = [&](const State::Flight &f) {
    return f.ins == &i || (f.ins->num_dst == i.num_dst && f.ins->key == i.key &&
                           std::equal(i.op.begin(), i.op.begin() + i.num_dst, f.ins->op.begin()));
  };
  const bool all_same = std::any_of(s.flying.rbegin(), s.flying.rend(), goes_on);
  for (int k = 0; k < i.num_dst; k++) {
    const int32_t unit = i.op[k];
    if (w.busy[unit] & BUSY_READ) report_busy(w, i, "an accumulator is a register of A of a wgmma in flight");
    if (w.busy[unit] & BUSY_WRITTEN && !all_same)
      report_busy(w, i, "a wgmma in flight accumulates in some of these registers, in another order or shape");
  }
  for (int k = o.a; k <= o.b + 1; k++)
    if (w.busy[i.op[k]] & BUSY_WRITTEN) report_busy(w, i, "it reads an accumulator of a wgmma in flight");
}

// What other instructions wrote to a register is there for a wgmma after a wgmma.fence only. It is enough that the group
// has a fence: LLVM sinks what computes A's registers below it, and zeros for accumulators, and ptxas, which sees who
// reads them, moves that back or serialises the wgmmas (the gate's column "serial").
void check_fence(Warp &w, const Ins &i) {
  const State &s = state(w);
  Machine &m = *w.machine;
  for (int k = 0; k < num_registers(i); k++) {
    const uint64_t wrote = w.wrote[i.op[k]];
    if ((s.fence && wrote <= s.fence) || (wrote && wrote == s.accumulated[i.op[k]])) continue;
    if (s.fence > s.committed) continue;
    if (!m.has("no wgmma.fence", i.pc))
      m.add("no wgmma.fence", i.pc,
            name_of(w) + (s.fence ? format(": register %d of %s was written after the last wgmma.fence before ",
                                           k < i.num_dst ? k : k - i.num_dst, k < i.num_dst ? "the accumulators" : "A")
                                  : ": no wgmma.fence comes before ") + m.where(i.pc));
    return;
  }
}

// The warps of a warpgroup must issue the same, with the same descriptors.
void check_warpgroup(Warp &w, const Ins &i, uint64_t a, uint64_t b) {
  Machine &m = *w.machine;
  State &of_group = state(*w.cta->warps[w.index / WARPS * WARPS]);
  const uint64_t number = state(w).num_issued++;
  if (number < of_group.first_issue) return;
  if (number - of_group.first_issue == of_group.issues.size()) of_group.issues.push_back({i.pc, a, b, 0});
  Issue &issue = of_group.issues[number - of_group.first_issue];
  issue.warps++;
  const auto differ = [](uint64_t x, uint64_t y) { return x != y && x != ANY && y != ANY; };
  if (issue.pc != i.pc || differ(issue.a, a) || differ(issue.b, b)) {
    if (!m.has("warpgroup disagrees", i.pc, issue.pc))
      m.add("warpgroup disagrees", i.pc,
            name_of(w) + ": its wgmma number " + std::to_string(number) + " is " + m.where(i.pc) +
                ", where a warp of its group has " + (issue.pc == i.pc ? "other descriptors" : m.where(issue.pc)),
            issue.pc);
  }
  auto &issues = of_group.issues;
  while (!issues.empty() && issues.front().warps >= WARPS) issues.pop_front(), of_group.first_issue++;
}

// ---- instructions ---------------------------------------------------------------------------------------------------

template <class A, class B, class C, int K, bool SATURATE> Step mma_async(Warp &w, const Ins &i, Mask m) {
  Step step;
  if (!whole_warp(w, i, m, step)) return step;
  constexpr bool HAS_SIGNS = std::is_same_v<typename A::Vector, Floats>, HAS_TRANSPOSES = A::PER_WORD == 2;
  constexpr bool PACKED = std::is_same_v<C, H16>;
  Machine &machine = *w.machine;
  const Operands o = operands(w, i, HAS_SIGNS, HAS_TRANSPOSES);
  if (size_t(w.index / WARPS + 1) * WARPS > w.cta->warps.size()) {
    machine.add("partial warpgroup", i.pc, name_of(w) + " of no whole warpgroup comes to " + machine.where(i.pc));
    return Step::STOP;
  }
  uint64_t bits_a = 0, bits_b = 0;
  const bool has_a = o.a_in_registers || get_descriptor(w, i, o.a, bits_a);
  const bool has_b = get_descriptor(w, i, o.b, bits_b);
  if (!o.valid)
    machine.add("bad operand", i.pc, name_of(w) + ": a sign is neither 1 nor -1, of " + machine.where(i.pc));
  const Mask scale = i.width[o.b + 1] ? (o.accumulate ? ALL : 0) : w.pred(i.op[o.b + 1]);
  if (w.undefined[i.op[o.b + 1]] || (scale && scale != ALL))
    machine.add(w.undefined[i.op[o.b + 1]] ? "undefined value" : "bad operand", i.pc,
                name_of(w) + ": scale-d is undefined, or not the same in all lanes, of " + machine.where(i.pc));
  check_warpgroup(w, i, has_a ? bits_a : ANY, has_b ? bits_b : ANY);
  check_fence(w, i);
  if (w.num_busy) check_busy(w, i, o);

  alignas(64) uint32_t words_a[4][LANES], words_b[64][LANES];  // of shared memory
  Mask rows[2] = {0, 0}, columns[32] = {};
  if (!has_a || !has_b) std::memset(words_a, 0, sizeof words_a), std::memset(words_b, 0, sizeof words_b);
  const uint32_t *a[4];
  const int num_columns = i.num_dst * (PACKED ? 4 : 2);
  if (o.a_in_registers) {
    for (int k = 0; k < 4; k++) {
      a[k] = w.reg<uint32_t>(i.op[o.a + k]);
      rows[k & 1] |= whole_quads(w.undefined[i.op[o.a + k]]);
    }
  } else {
    for (int k = 0; k < 4; k++) a[k] = words_a[k];
    if (has_a) read_a(w, i, bits_a, o.transposed_a, words_a, rows);
  }
  if (has_b) read_b(w, i, bits_b, o.transposed_b, num_columns, words_b, columns);
  if (!has_a || !has_b) rows[0] = rows[1] = ALL;

  Left<A, K, 2> left;
  unpack(a, o.negate, left);
  constexpr int REGISTERS = C::REGISTERS;
  const bool all_defined = !(rows[0] | rows[1]);
  for (int j = 0; j < num_columns / 8; j++) {
    const int32_t *d = i.op.data() + REGISTERS * j;
    uint8_t *registers[REGISTERS];
    for (int k = 0; k < REGISTERS; k++) registers[k] = w.reg<uint8_t>(d[k]);
    const uint32_t *b[2] = {words_b[2 * j], words_b[2 * j + 1]};
    Right<B, K> right;
    if constexpr (HAS_TRANSPOSES) {
      if (o.transposed_b)
        unpack_transposed(b, right);
      else
        unpack(b, right);
    } else {
      unpack(b, right);
    }
    Accumulators<typename C::Vector> sum;
    C::template read<2>(registers, sum);
    accumulate<A, B, K, 2, SATURATE>(left, right, !o.accumulate, sum);
    C::template write<2>(sum, registers);
    for (int k = 0; k < REGISTERS; k++) {
      Mask &undefined = w.undefined[d[k]];
      if (!o.accumulate) undefined = 0;
      if (!all_defined || columns[j]) undefined |= lanes_reached(rows, columns[j], k, PACKED);
    }
  }

  State &s = state(w);
  for (int k = 0; k < i.num_dst; k++) s.accumulated[i.op[k]] = w.steps;
  s.flying.push_back({&i, w.wgmma_clock + 1});
  mark_busy(w, i);
  machine.counts[i.pc].bytes += (o.a_in_registers ? 0 : 16 * 32) + uint64_t(num_columns) * 32 / WARPS;
  return Step::NEXT;
}

Step fence(Warp &w, const Ins &i, Mask m) {
  Step step;
  if (!whole_warp(w, i, m, step)) return step;
  state(w).fence = w.steps;
  return Step::NEXT;
}

Step commit_group(Warp &w, const Ins &i, Mask m) {
  Step step;
  if (!whole_warp(w, i, m, step)) return step;
  State &s = state(w);
  s.checked.forget();
  s.committed = w.steps;
  w.wgmma_clock++;
  return Step::NEXT;
}

// n: all groups but the last n have been done.
Step wait_group(Warp &w, const Ins &i, Mask m) {
  Step step;
  if (!whole_warp(w, i, m, step)) return step;
  const uint32_t pending = uint32_t(constant(w, i, 0));
  if (pending >= w.wgmma_clock) return Step::NEXT;
  const uint32_t done = w.wgmma_clock - pending;
  const size_t engine = w.cta->column_base() + WGMMA_COLUMN + w.index;
  for (auto *clocks : {&w.view.known, &w.view.proxied}) (*clocks)[engine] = std::max((*clocks)[engine], done);
  State &s = state(w);
  const auto end = std::find_if(s.flying.begin(), s.flying.end(), [&](const auto &f) { return f.group > done; });
  for (auto f = s.flying.begin(); f != end; f++)
    for (int k = 0; k < num_registers(*f->ins); k++) set_busy(w, f->ins->op[k], 0);
  s.flying.erase(s.flying.begin(), end);
  for (const auto &f : s.flying) mark_busy(w, *f.ins);  // some of those registers may still be busy
  return Step::NEXT;
}

// ---- what there is --------------------------------------------------------------------------------------------------

template <class A, class B, class C, int K, bool SATURATE = false> void on(const std::string &types) {
  const bool integers = std::is_same_v<typename A::Vector, Ints>;
  for (int n = 8; n <= 256; n += integers && n >= 32 ? 16 : 8)
    announce("wgmma.mma_async.sync.aligned.m64n" + std::to_string(n) + "k" + std::to_string(K) + types,
             mma_async<A, B, C, K, SATURATE>, OWN_TAINT | OWN_BUSY | SYNCS);
}

template <class A, class B> void on_fp8(const std::string &operands) {
  on<A, B, F32, 32>(".f32" + operands);
  on<A, B, H16, 32>(".f16" + operands);
}

template <class A, class B> void on_integers(const std::string &operands) {
  on<A, B, S32, 32>(".s32" + operands);
  on<A, B, S32, 32, true>(".s32" + operands + ".satfinite");
  on<A, B, S32, 32, true>(".satfinite.s32" + operands);
}

const bool announced = [] {
  on<F16, F16, F32, 16>(".f32.f16.f16"), on<F16, F16, H16, 16>(".f16.f16.f16");
  on<BF16, BF16, F32, 16>(".f32.bf16.bf16");
  on<TF32, TF32, F32, 8>(".f32.tf32.tf32");
  on_fp8<E4M3, E4M3>(".e4m3.e4m3"), on_fp8<E4M3, E5M2>(".e4m3.e5m2");
  on_fp8<E5M2, E4M3>(".e5m2.e4m3"), on_fp8<E5M2, E5M2>(".e5m2.e5m2");
  on_integers<S8, S8>(".s8.s8"), on_integers<S8, U8>(".s8.u8");
  on_integers<U8, S8>(".u8.s8"), on_integers<U8, U8>(".u8.u8");
  announce("wgmma.fence.sync.aligned", fence, SYNCS);
  announce("wgmma.commit_group.sync.aligned", commit_group, SYNCS);
  announce("wgmma.wait_group.sync.aligned", wait_group, SYNCS);
  return true;
}();

}  // namespace

void report_missing_wgmmas(Cta &cta) {
  for (size_t first = 0; first < cta.warps.size(); first += WARPS) {
    const State &of_group = state(*cta.warps[first]);
    if (of_group.issues.empty()) continue;
    const Issue &issue = of_group.issues.front();
    if (cta.machine->has("partial warpgroup", issue.pc)) continue;
    std::string missing;
    for (size_t k = first; k < first + WARPS; k++)
      if (state(*cta.warps[k]).num_issued <= of_group.first_issue) missing += (missing.empty() ? "" : ", ") + name_of(*cta.warps[k]);
    cta.machine->add("partial warpgroup", issue.pc,
                     missing + format(" ended after %llu wgmmas, and never came to number %llu of the warpgroup, ",
                                      static_cast<unsigned long long>(of_group.first_issue),
                                      static_cast<unsigned long long>(of_group.first_issue)) + cta.machine->where(issue.pc));
  }
}

}  // namespace softgpu
