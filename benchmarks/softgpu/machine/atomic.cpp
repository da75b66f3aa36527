// Atomics: atom (returns what was there) and red (does not), on global and shared memory. They are done at once, lane
// by lane, and order threads by what their .acquire and .release say.
#include <cmath>
#include "access.h"

namespace softgpu {

namespace {

// ---- operations on one element ---------------------------------------------------------------------------------------

using Element = unsigned __int128;  // its bits

template <class T> T as(Element bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <class T> Element bits_of(T value) {
  Element bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

struct F16 {
  static float widen(uint16_t bits) {
    _Float16 value;
    std::memcpy(&value, &bits, sizeof value);
    return float(value);
  }
  static uint16_t round(float value) {
    const _Float16 rounded = _Float16(value);
    uint16_t bits;
    std::memcpy(&bits, &rounded, sizeof bits);
    return std::isnan(value) ? 0x7fff : bits;
  }
};

struct BF16 {
  static float widen(uint16_t bits) { return as<float>(Element(bits) << 16); }
  static uint16_t round(float value) {
    if (std::isnan(value)) return 0x7fff;
    const uint32_t bits = as<uint32_t>(bits_of(value));
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
};

enum class Op { ADD, MIN, MAX, AND, OR, XOR, INC, DEC, EXCH, CAS };

// The lesser number; -0 is less than +0, and a NaN loses against a number.
float least(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) ? b : a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}

// A float has enough bits that a sum of two halves, rounded to it and then to a half, is rounded as if once.
template <class Format> uint16_t combine_half(Op op, uint16_t old, uint16_t b) {
  const float x = Format::widen(old), y = Format::widen(b);
  return Format::round(op == Op::ADD ? x + y : op == Op::MIN ? least(x, y) : -least(-x, -y));
}

template <class Format> Element combine_halves(Op op, Element old, Element b, int count) {
  Element result = 0;
  for (int k = 0; k < count; k++)
    result |= Element(combine_half<Format>(op, uint16_t(old >> 16 * k), uint16_t(b >> 16 * k))) << 16 * k;
  return result;
}

float flushed(float value) { return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value; }

template <class T> T pick(Op op, T a, T b) { return op == Op::MIN ? std::min(a, b) : std::max(a, b); }

template <class T> Element combine_whole(Op op, Element old, Element b) {
  using U = std::make_unsigned_t<T>;
  const U x = as<U>(old), y = as<U>(b);
  switch (op) {
  case Op::ADD: return bits_of(U(x + y));
  case Op::MIN: case Op::MAX: return bits_of(pick(op, T(x), T(y)));
  case Op::AND: return bits_of(U(x & y));
  case Op::OR: return bits_of(U(x | y));
  case Op::XOR: return bits_of(U(x ^ y));
  case Op::INC: return bits_of(U(x >= y ? 0 : x + 1));
  default: return bits_of(U(x == 0 || x > y ? y : x - 1));  // DEC
  }
}

enum class Type { F16, F16X2, BF16, BF16X2, F32, F64, U32, S32, U64, S64, BITS };

struct Form {
  Modifiers how;
  Op op = Op::ADD;
  Type type = Type::BITS;
  uint32_t size = 4;  // bytes of an element
};

Element combine(const Form &f, bool is_global, Element old, Element b, Element c) {
  if (f.op == Op::EXCH) return b;
  if (f.op == Op::CAS) return old == b ? c : old;
  switch (f.type) {
  case Type::F16: return combine_halves<F16>(f.op, old, b, 1);
  case Type::F16X2: return combine_halves<F16>(f.op, old, b, 2);
  case Type::BF16: return combine_halves<BF16>(f.op, old, b, 1);
  case Type::BF16X2: return combine_halves<BF16>(f.op, old, b, 2);
  case Type::F32: {  // subnormals: flushed in global memory, kept in shared memory
    const float x = as<float>(old), y = as<float>(b);
    const float sum = is_global ? flushed(flushed(x) + flushed(y)) : x + y;
    return std::isnan(sum) ? Element(0x7fffffffu) : bits_of(sum);
  }
  case Type::F64: return bits_of(as<double>(old) + as<double>(b));
  case Type::S32: return combine_whole<int32_t>(f.op, old, b);
  case Type::S64: return combine_whole<int64_t>(f.op, old, b);
  default: return f.size == 8 ? combine_whole<uint64_t>(f.op, old, b) : combine_whole<uint32_t>(f.op, old, b);
  }
}

// ---- the opcode ------------------------------------------------------------------------------------------------------

struct TypeName {
  const char *name;
  Type type;
  uint32_t size;
};
constexpr TypeName TYPES[] = {
    {"f16", Type::F16, 2},     {"f16x2", Type::F16X2, 4}, {"bf16", Type::BF16, 2}, {"bf16x2", Type::BF16X2, 4},
    {"f32", Type::F32, 4},     {"f64", Type::F64, 8},     {"u32", Type::U32, 4},   {"s32", Type::S32, 4},
    {"u64", Type::U64, 8},     {"s64", Type::S64, 8},     {"b16", Type::BITS, 2},  {"b32", Type::BITS, 4},
    {"b64", Type::BITS, 8},    {"b128", Type::BITS, 16},
};
constexpr const char *OPS[] = {"add", "min", "max", "and", "or", "xor", "inc", "dec", "exch", "cas"};  // as in Op

Form form_of(const std::string &key) {
  Form f;
  f.how = modifiers(key);
  if (f.how.scope == Scope::WEAK) f.how.scope = Scope::GPU;
  for (size_t from = key.find('.'); from != std::string::npos; from = key.find('.', from + 1)) {
    const size_t to = key.find('.', from + 1);
    const std::string word = key.substr(from + 1, to == std::string::npos ? to : to - from - 1);
    for (size_t k = 0; k < std::size(OPS); k++)
      if (word == OPS[k]) f.op = Op(k);
    for (const TypeName &t : TYPES)
      if (word == t.name) f.type = t.type, f.size = t.size;
  }
  return f;
}

// ---- execution -------------------------------------------------------------------------------------------------------

Element operand(Warp &w, const Ins &i, size_t k, int lane, uint32_t size) {
  Element bits = 0;
  std::memcpy(&bits, w.reg<uint8_t>(i.op[k]) + size_t(lane) * i.width[k], std::min<uint32_t>(size, i.width[k]));
  return bits;
}

// Operands: destinations, address, an operand for each element, and for cas another one.
struct Layout {
  size_t num_elements, address, first, second;
};

Layout layout_of(const Ins &i, const Form &f) {
  const size_t address = size_t(i.num_dst), num_values = i.op.size() - address - 1;
  const size_t n = f.op == Op::CAS ? num_values / 2 : num_values;
  return {n, address, address + 1, address + 1 + n};
}

void order_lane(Warp &w, const Modifiers &how, uint64_t address) {
  if (how.acquire)
    acquire_from(w, address);
  else
    relaxed_read(w, address);
  if (how.release)
    release_to(w, address);
  else
    relaxed_write(w, address);
}

// What a lane does; false if the memory must not be touched.
bool update(Warp &w, const Ins &i, const Form &f, const Layout &l, int lane, uint64_t address, bool &tainted,
            Mask &bad_store) {
  const Location at = locate(w, f.how.where, address);
  const uint32_t bytes = uint32_t(l.num_elements) * f.size;
  const Agent who = agent(w, i, lane);
  bool read_tainted = false;
  if (!touch(w, who, at, bytes, kind_of(false, f.how.scope), read_tainted, nullptr)) return false;
  const bool is_global = at.where == Where::GLOBAL;
  bool stores_tainted = false;
  for (size_t k = l.first; k < i.op.size(); k++) stores_tainted |= (w.undefined[i.op[k]] >> lane & 1) != 0;
  if (stores_tainted && is_global) bad_store |= 1u << lane;
  stores_tainted |= read_tainted && f.op != Op::EXCH;
  uint8_t *data = touch(w, who, at, bytes, kind_of(true, f.how.scope), stores_tainted, nullptr);
  if (!data) return false;
  for (size_t k = 0; k < l.num_elements; k++) {
    Element old = 0;
    std::memcpy(&old, data + k * f.size, f.size);
    const Element b = operand(w, i, l.first + k, lane, f.size);
    const Element c = f.op == Op::CAS ? operand(w, i, l.second + k, lane, f.size) : 0;
    const Element now = combine(f, is_global, old, b, c);
    std::memcpy(data + k * f.size, &now, f.size);
    if (i.num_dst && i.op[k] >= 0)
      std::memcpy(w.reg<uint8_t>(i.op[k]) + size_t(lane) * i.width[k], &old, i.width[k]);
  }
  tainted = read_tainted;
  order_lane(w, f.how, unique_address(at));
  return true;
}

Step on_atomic(Warp &w, const Ins &i, Mask m) {
  const Form f = form_of(i.key);
  const Layout l = layout_of(i, f);
  const Addresses a = addresses(w, i, m, int(l.address), i.imm.empty() ? 0 : i.imm[0]);
  Mask undefined = m & ~a.defined, bad_store = 0;
  SG_FOR_LANES(lane, a.defined) {
    bool tainted = false;
    if (!update(w, i, f, l, lane, a.at[lane], tainted, bad_store)) tainted = true;
    undefined |= Mask(tainted) << lane;
  }
  for (int k = 0; k < i.num_dst; k++)
    if (i.op[k] >= 0) w.undefined[i.op[k]] = (w.undefined[i.op[k]] & ~m) | undefined;
  if (bad_store) report_undefined_store(w, i, bad_store);
  w.machine->happened();
  count_traffic(w, i, a.defined, f.how.where, a.at, uint32_t(l.num_elements) * f.size);
  return Step::NEXT;
}

// ---- announcements ---------------------------------------------------------------------------------------------------

std::vector<std::string> scalar_operations() {
  std::vector<std::string> all = {".add.f32",   ".add.f64", ".inc.u32", ".dec.u32", ".exch.b32", ".exch.b64",
                                  ".exch.b128", ".cas.b16", ".cas.b32", ".cas.b64", ".cas.b128"};
  for (const char *type : {".u32", ".s32", ".u64", ".s64"})
    for (const char *op : {".add", ".min", ".max"}) all.push_back(std::string(op) + type);
  for (const char *op : {".and", ".or", ".xor"})
    for (const char *type : {".b32", ".b64"}) all.push_back(std::string(op) + type);
  for (const char *type : {".f16", ".f16x2", ".bf16", ".bf16x2"}) all.push_back(std::string(".add.noftz") + type);
  return all;
}

// In global memory only. The ISA's syntax has the operation first, its examples the vector.
std::vector<std::string> vector_operations() {
  std::vector<std::string> all;
  for (const std::string vector : {".v2", ".v4", ".v8"}) {
    if (vector != ".v8") all.push_back(".add" + vector + ".f32"), all.push_back(vector + ".f32.add");
    for (const std::string type : {".f16", ".f16x2", ".bf16", ".bf16x2"})
      for (const std::string op : {".add", ".min", ".max"}) {
        all.push_back(op + ".noftz" + vector + type), all.push_back(vector + type + op + ".noftz");
      }
  }
  return all;
}

// Semantics, scope and space in the order of the ISA, and with the space first, as inline assembly has them.
std::vector<std::string> qualifiers(const std::string &space) {
  std::vector<std::string> all;
  for (const std::string order : {"", ".relaxed", ".acquire", ".release", ".acq_rel"})
    for (const std::string scope : {"", ".cta", ".cluster", ".gpu", ".sys"}) {
      all.push_back(order + scope + space);
      if (space.empty() || order.empty() || scope.empty()) continue;
      all.push_back(space + order + scope);
      all.push_back(space + scope + order);
    }
  return all;
}

const bool announced = [] {
  const auto add = [](const std::string &space, const std::vector<std::string> &operations) {
    for (const std::string &qualifier : qualifiers(space))
      for (const std::string &operation : operations)
        for (const char *name : {"atom", "red"}) announce(name + qualifier + operation, on_atomic, OWN_TAINT);
  };
  for (const char *space : {"", ".global", ".shared", ".shared::cta", ".shared::cluster"})
    add(space, scalar_operations());
  add("", vector_operations());
  add(".global", vector_operations());
  return true;
}();

}  // namespace
}  // namespace softgpu
