// tcgen05.mma and tcgen05.commit: products that a thread starts, of matrices in shared and tensor memory.
//
// The product is made when it is issued. Its reads of shared memory are those of the engine of the warp (WGMMA_COLUMN, as
// no program has both), whose clock counts commits; whoever waits for a commit's mbarrier learns that clock. What it does
// to tensor memory is checked there (tensor_memory.h).
#include <algorithm>
#include "asynchronous.h"
#include "collective.h"
#include "fragments.h"
#include "lanes.h"
#include "matrix_rows.h"
#include "tensor_memory.h"

namespace softgpu {
namespace {

constexpr int MOST_ROWS = 128, MOST_COLUMNS = 256, MOST_K = 16;

struct State {  // of a warp
  CheckedRows checked;  // rows of shared memory that products since the last commit have read
  Mask issued = 0;      // lanes that issued products since their last commit
};

State &state(Warp &w) {
  if (!w.tcgen05s) w.tcgen05s = std::make_shared<State>();
  return *static_cast<State *>(w.tcgen05s.get());
}

// ---- descriptors -----------------------------------------------------------------------------------------------------

// The instruction descriptor: types, shape, transposes. `why`: what is wrong with it, or not known.
struct Product {
  int m, n;
  bool bf16_a, bf16_b, negate, transposed_a, transposed_b;
  std::string why;

  Product(uint32_t bits, bool tf32)
      : m(int(bits >> 24 & 31) << 4), n(int(bits >> 17 & 63) << 3), bf16_a((bits >> 7 & 7) == 1),
        bf16_b((bits >> 10 & 7) == 1), negate((bits >> 13 & 1) != (bits >> 14 & 1)), transposed_a(bits >> 15 & 1),
        transposed_b(bits >> 16 & 1) {
    const uint32_t a = bits >> 7 & 7, b = bits >> 10 & 7;
    if (bits & 0xe080004f)
      why = "sparsity, saturation, reuse of B or reserved bits are set";
    else if ((bits >> 4 & 3) != 1)
      why = "accumulators that are not float32 are not known";
    else if (tf32 ? a != 2 || b != 2 : a > 1 || b > 1)
      why = "no such types of A and B";
    else if (tf32 && (transposed_a || transposed_b))
      why = "32-bit matrices that are transposed are not known";
    else if (!(m == 64 || m == 128) || n < 8 || n > MOST_COLUMNS || n % (m == 64 ? 8 : 16))
      why = format("no such shape: %d x %d", m, n);
  }
};

// A descriptor of a matrix in shared memory, in wgmma's form. `why`: what is wrong with it, or not known.
uint64_t in_wgmma_form(uint64_t bits, std::string &why) {
  constexpr int NONE = -1;
  constexpr int MODES[8] = {0, NONE, 1, NONE, 2, NONE, 3, NONE};
  const int mode = MODES[bits >> 61];
  if ((bits >> 46 & 7) != 1)
    why = "bits 46 to 48 are not 1";
  else if (bits >> 52 & 0x1ff)
    why = bits >> 52 & 1 ? "absolute leading offsets are not known" : "bits 53 to 60 are not 0";
  else if (mode == NONE)
    why = format("swizzling mode %d is not known", int(bits >> 61));
  const uint64_t form = (bits & 0x000e3fffffffffffull) | uint64_t(std::max(mode, 0)) << 62;
  if (why.empty()) why = fault_of(form);
  return form;
}

// ---- operands --------------------------------------------------------------------------------------------------------

// Formats: an element as a number; how many are 16 bytes.
struct Half {
  using Element = _Float16;
  static constexpr int PER_ROW = 8;
  static float value(Element x) { return float(x); }
};
struct Brain {
  using Element = uint16_t;
  static constexpr int PER_ROW = 8;
  static float value(Element x) { return bit_cast<float>(uint32_t(x) << 16); }
};
struct Tensor {  // TF32: the 13 lowest bits are not looked at
  using Element = uint32_t;
  static constexpr int PER_ROW = 4;
  static float value(Element x) { return bit_cast<float>(x & 0xffffe000); }
};

// A matrix as numbers, [k][mn] for B and [mn][k] for A, and which rows (of A) or columns (of B) are undefined.
struct Matrix {
  int of_mn, of_k;  // strides
  alignas(64) float x[MOST_COLUMNS * MOST_K];
  bool undefined[MOST_COLUMNS], any_undefined;
};

void forget(Matrix &to, int count) {
  std::fill(std::begin(to.x), std::end(to.x), 0.0f);
  std::fill_n(to.undefined, count, true);
  to.any_undefined = true;
}

// `bytes`: rows of 16 bytes in rows_of's order, blocks of 8 along m or n.
template <class F> void unpack(const uint8_t *bytes, int blocks, bool transposed, Matrix &to) {
  for (int block = 0; block < blocks; block++)
    for (int c = 0; c < 2; c++)
      for (int line = 0; line < 8; line++, bytes += ROW_BYTES) {
        typename F::Element elements[F::PER_ROW];
        std::memcpy(elements, bytes, sizeof elements);
        float *x = to.x + (transposed ? 8 * block * to.of_mn + (8 * c + line) * to.of_k
                                      : (8 * block + line) * to.of_mn + F::PER_ROW * c * to.of_k);
        const int stride = transposed ? to.of_mn : to.of_k;
        for (int e = 0; e < F::PER_ROW; e++) x[e * stride] = F::value(elements[e]);
      }
}

template <class F>
void read_shared(Warp &w, const Ins &i, uint64_t descriptor, bool transposed, int count, Matrix &to) {
  const Agent reader = engine(w, i, WGMMA_COLUMN + w.index, w.wgmma_clock + 1, w.view);
  std::vector<bool> undefined;
  uint8_t bytes[MOST_COLUMNS * 2 * ROW_BYTES];
  read_rows(*w.cta, reader, state(w).checked, rows_of(descriptor, transposed, 0, count / 8), bytes, undefined);
  unpack<F>(bytes, count / 8, transposed, to);
  std::fill_n(to.undefined, count, false);
  to.any_undefined = false;
  for (size_t k = 0; k < undefined.size(); k++)
    if (undefined[k]) {
      const size_t block = k / 16 * 8;
      std::fill_n(to.undefined + block + (transposed ? 0 : k % 8), transposed ? 8 : 1, true);
      to.any_undefined = true;
    }
  w.machine->counts[i.pc].bytes += uint64_t(count) * 2 * ROW_BYTES;
}

// Row `r` of a matrix of `m` rows whose first lies in lane `lane`: 64 rows take the same 16 lanes of each warp's quarter.
int lane_of(int r, int m, int lane) { return lane + (m == MOST_ROWS ? r : r / CELL_LANES * LANES + r % CELL_LANES); }

TensorRange range_of(int m, uint32_t address, int columns) {
  const int row = int(address >> 16) / CELL_LANES;
  return {row, m / CELL_LANES, m == MOST_ROWS ? 1 : 2, int(address & 0xffff), columns};
}

// False, with a finding, if `m` rows cannot start there.
bool check_lane(Warp &w, const Ins &i, uint32_t address, int m) {
  const uint32_t lane = address >> 16;
  if (lane == 0 || (lane == CELL_LANES && m != MOST_ROWS)) return true;
  if (!w.machine->has("bad operand", i.pc))
    w.machine->add("bad operand", i.pc, format("%s: %d rows cannot start in lane %u, of ", name_of(w).c_str(), m, lane) +
                                            w.machine->where(i.pc));
  return false;
}

template <class F> bool read_tensor(Warp &w, const Ins &i, uint32_t address, int m, const TensorUse &use, Matrix &to) {
  constexpr int COLUMNS_OF_A = 2 * ROW_BYTES / 4;
  if (!check_lane(w, i, address, m)) return false;
  const TensorRange range = range_of(m, address, COLUMNS_OF_A);
  if (!touch_tensor(w, i, range, use, false)) return false;
  to.any_undefined = false;
  for (int r = 0; r < m; r++) {
    const int lane = lane_of(r, m, int(address >> 16));
    typename F::Element elements[2 * F::PER_ROW];
    std::memcpy(elements, tensor_lane(*w.cta, lane) + range.column, sizeof elements);
    for (int k = 0; k < 2 * F::PER_ROW; k++) to.x[r * to.of_mn + k * to.of_k] = F::value(elements[k]);
    const uint16_t *cells = tensor_undefined(*w.cta, lane / CELL_LANES) + range.column;
    to.undefined[r] = std::any_of(cells, cells + COLUMNS_OF_A, [&](uint16_t c) { return c >> lane % CELL_LANES & 1; });
    to.any_undefined |= to.undefined[r];
  }
  return true;
}

// ---- the product -----------------------------------------------------------------------------------------------------

typedef float Eight __attribute__((vector_size(32)));
typedef int32_t EightBits __attribute__((vector_size(32)));

// A row of D: d = a B, or a B + d; each product is exact and added in order of k (as in fragments.h).
__attribute__((optimize("fp-contract=fast"), noinline)) void multiply(const float *a, const Matrix &b, int k, int n,
                                                                      bool accumulate, uint32_t *d) {
  for (int column = 0; column < n; column += 8) {
    Eight sum = {};
    if (accumulate) sum = load<Eight>(d + column);
    for (int step = 0; step < k; step++) sum += a[step] * load<Eight>(b.x + step * b.of_k + column);
    const EightBits nan = sum != sum;
    store(d + column, ((EightBits)sum & ~nan) | (nan & 0x7fffffff));
  }
}

void spread_undefined(Cta &cta, const Product &p, const TensorRange &range, const Matrix &a, const Matrix &b,
                      bool accumulate) {
  for (int row = 0; row < range.rows; row++) {
    uint16_t *cells = tensor_undefined(cta, range.row + row * range.step) + range.column;
    uint16_t lanes = 0;
    for (int lane = 0; lane < CELL_LANES; lane++) lanes |= uint16_t(a.undefined[row * CELL_LANES + lane]) << lane;
    for (int n = 0; n < p.n; n++)
      cells[n] = uint16_t((accumulate ? cells[n] : 0) | lanes | (b.undefined[n] ? 0xffff : 0));
  }
}

Step stop(Warp &w, const Ins &i, const char *kind, const std::string &why) {
  w.machine->add(kind, i.pc, name_of(w) + ": " + why + ", of " + w.machine->where(i.pc));
  return Step::STOP;
}

// Operands: [d], a's descriptor or [a], b's descriptor, instruction descriptor, whether D is added to.
template <class F> Step issue(Warp &w, const Ins &i, int lane, const Product &p) {
  Cta &cta = *w.cta;
  const Mask m = Mask(1) << lane;
  const bool a_in_tensor = i.width[1] == 4, accumulate = w.pred(i.op[4]) >> lane & 1;
  uint32_t d, at_a = 0;
  if (!tensor_address(w, i, m, 0, i.imm[0], d) || !check_lane(w, i, d, p.m)) return Step::NEXT;
  if (a_in_tensor && !tensor_address(w, i, m, 1, i.imm[1], at_a)) return Step::NEXT;
  static thread_local Matrix a, b;
  a.of_mn = 2 * F::PER_ROW, a.of_k = 1, b.of_mn = 1, b.of_k = p.n;
  const uint64_t pipeline = uint64_t(d) << 32 | uint64_t(p.m) << 16 | uint64_t(p.n) << 4 | (F::PER_ROW == 4);
  const TensorUse use = use_by_product(w, i, pipeline);
  const auto of_shared = [&](int operand, bool transposed, int count, Matrix &to) {
    std::string why;
    const uint64_t form = in_wgmma_form(value_of(w, i, operand, lane), why);
    if (!why.empty()) {
      stop(w, i, "bad descriptor", why + " (" + Descriptor(form).text() + ")");
      return false;
    }
    read_shared<F>(w, i, form, transposed, count, to);
    return true;
  };
  if (a_in_tensor) {
    if (!read_tensor<F>(w, i, at_a, p.m, use, a)) forget(a, p.m);
  } else if (!of_shared(1, p.transposed_a, p.m, a)) {
    return Step::STOP;
  }
  if (!of_shared(2, p.transposed_b, p.n, b)) return Step::STOP;
  const TensorRange range = range_of(p.m, d, p.n);
  if (!touch_tensor(w, i, range, use, true)) return Step::NEXT;
  for (int r = 0; r < p.m; r++) {
    float *row = a.x + r * a.of_mn;
    if (p.negate) std::transform(row, row + a.of_mn, row, [](float x) { return -x; });
    multiply(row, b, a.of_mn, p.n, accumulate, tensor_lane(cta, lane_of(r, p.m, int(d >> 16))) + range.column);
  }
  if (!accumulate || a.any_undefined || b.any_undefined) spread_undefined(cta, p, range, a, b, accumulate);
  state(w).issued |= m;
  return Step::NEXT;
}

template <bool TF32> Step mma(Warp &w, const Ins &i, Mask m) {
  if (i.op.size() != 5 || i.width[4]) return stop(w, i, "unknown form", "operands that are not known");
  m = defined(w, i, m, 0, 5);
  SG_FOR_LANES(lane, m) {
    const Product p(uint32_t(value_of(w, i, 3, lane)), TF32);
    if (!p.why.empty()) return stop(w, i, "bad descriptor", p.why);
    if (p.bf16_a != p.bf16_b) return stop(w, i, "unknown form", "float16 by bfloat16");
    const Step step = TF32      ? issue<Tensor>(w, i, lane, p)
                      : p.bf16_a ? issue<Brain>(w, i, lane, p)
                                 : issue<Half>(w, i, lane, p);
    if (step != Step::NEXT) return step;
  }
  return Step::NEXT;
}

// ---- commit ----------------------------------------------------------------------------------------------------------

struct Commit : Pending {
  Warp *warp;
  const Ins *ins;
  int lane;
  uint64_t address;
  Ticket arrival, products;
  Knowledge known;
  void land(Machine &) override {
    end_copy(arrival, products, 0);
    mbarrier_arrive_copies(*warp, *ins, lane, address, known);
  }
};

// What came before the products is before their end: all that the warp knows of others. Its own accesses to memory are
// not released by a commit.
Knowledge known_of_others(const Warp &w) {
  Knowledge view = w.view;
  const size_t own = w.cta->column_base() + WARP_COLUMN + w.index;
  view.known[own] = view.proxied[own] = 0;
  return view;
}

// tcgen05.commit [mbarrier]: an arrival there when the thread's products are done.
Step commit(Warp &w, const Ins &i, Mask m) {
  State &s = state(w);
  m = defined(w, i, m, 0, 1);
  SG_FOR_LANES(lane, m) {
    if (s.issued & ~(Mask(1) << lane) && !w.machine->has("commit by another thread", i.pc))
      w.machine->add("commit by another thread", i.pc,
                     name_of(w, lane) + " commits its own products, and not those of other lanes, by " + w.machine->where(i.pc));
    auto c = std::make_unique<Commit>();
    c->cta = w.cta, c->warp = &w, c->ins = &i, c->lane = lane, c->address = value_of(w, i, 0, lane) + i.imm[0];
    c->known = known_of_others(w);
    Place place;
    if (!find_place(w, i, lane, c->address, place) || !begin_copy(w, i, lane, place, view_now(w), c->arrival)) continue;
    c->products = c->arrival;
    c->products.column = int16_t(WGMMA_COLUMN + w.index), c->products.clock = ++w.wgmma_clock;
    c->products.bar.cta = w.cta;
    s.issued &= ~(Mask(1) << lane);
    s.checked.forget();
    w.machine->later(std::move(c));
  }
  return Step::NEXT;
}

const bool announced = [] {
  announce("tcgen05.mma.cta_group::1.kind::f16", mma<false>);
  announce("tcgen05.mma.cta_group::1.kind::tf32", mma<true>);
  for (const char *space : {"", ".shared::cluster"})
    announce(std::string("tcgen05.commit.cta_group::1.mbarrier::arrive::one") + space + ".b64", commit);
  return true;
}();

}  // namespace
}  // namespace softgpu
