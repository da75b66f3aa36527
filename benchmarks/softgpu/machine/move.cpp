// mov: of a register, of a special one, of several into one and one into several.
#include "lanes.h"

namespace softgpu {
namespace {

// A value of a register of `width` bytes: its low bytes, zero-extended.
uint64_t bits_of(Warp &w, int32_t unit, int width, int lane) {
  uint64_t bits = 0;
  std::memcpy(&bits, w.reg<uint8_t>(unit) + width * lane, size_t(width));
  return bits;
}

// Special registers may be wider or narrower than what they are moved to.
template <class T> void copy_resized(Warp &w, const Ins &i, Mask m) {
  T value[LANES];
  for (int lane = 0; lane < LANES; lane++) value[lane] = T(bits_of(w, i.op[1], i.width[1], lane));
  put(w, i.op[0], m, value);
}

// mov.b64 d, {a, b}: a lies in the low bits.
template <class T, class Part> void pack(Warp &w, const Ins &i, Mask m) {
  T value[LANES] = {};
  for (size_t k = 1; k < i.op.size(); k++) {
    const Part *part = w.reg<const Part>(i.op[k]);
    for (int lane = 0; lane < LANES; lane++) value[lane] |= T(part[lane]) << (8 * sizeof(Part) * (k - 1));
  }
  put(w, i.op[0], m, value);
}

template <class T, class Part> void unpack(Warp &w, const Ins &i, Mask m) {
  T whole[LANES];  // a destination may lie where the source lay
  std::memcpy(whole, w.reg<const T>(i.op[size_t(i.num_dst)]), sizeof whole);
  for (int k = 0; k < i.num_dst; k++) {
    if (i.op[size_t(k)] < 0) continue;
    Part part[LANES];
    for (int lane = 0; lane < LANES; lane++) part[lane] = Part(whole[lane] >> (8 * sizeof(Part) * size_t(k)));
    put(w, i.op[size_t(k)], m, part);
  }
}

template <class T> Step mov(Warp &w, const Ins &i, Mask m) {
  const size_t num_src = i.op.size() - size_t(i.num_dst);
  if (i.num_dst == 1 && num_src == 1) {
    if (i.width[0] == sizeof(T) && i.width[1] == sizeof(T)) {
      T value[LANES];
      std::memcpy(value, w.reg<const T>(i.op[1]), sizeof value);
      put(w, i.op[0], m, value);
    } else {
      copy_resized<T>(w, i, m);
    }
    return Step::NEXT;
  }
  const bool packs = num_src > 1;
  const size_t part = sizeof(T) / (packs ? num_src : size_t(i.num_dst));
  if (part == 2) packs ? pack<T, uint16_t>(w, i, m) : unpack<T, uint16_t>(w, i, m);
  if (part == 4) packs ? pack<T, uint32_t>(w, i, m) : unpack<T, uint32_t>(w, i, m);
  if (part == 8) packs ? pack<T, uint64_t>(w, i, m) : unpack<T, uint64_t>(w, i, m);
  if (part == 1 || part > 8) {
    w.machine->add("not supported", i.pc, "mov of parts of a byte: " + i.text);
    return Step::STOP;
  }
  return Step::NEXT;
}

const bool announced = [] {
  for (const char *key : {"mov.b16", "mov.u16", "mov.s16", "mov.f16", "mov.bf16"}) announce(key, mov<uint16_t>);
  for (const char *key : {"mov.b32", "mov.u32", "mov.s32", "mov.f32"}) announce(key, mov<uint32_t>);
  for (const char *key : {"mov.b64", "mov.u64", "mov.s64", "mov.f64"}) announce(key, mov<uint64_t>);
  announce("mov.b128", mov<unsigned __int128>);
  return true;
}();

}  // namespace
}  // namespace softgpu
