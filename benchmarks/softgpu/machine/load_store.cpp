// ld and st of every space, and ld.param.
#include "access.h"

namespace softgpu {

void report_undefined_store(Warp &w, const Ins &i, Mask undefined) {
  if (undefined && !w.machine->has("undefined value", i.pc))
    w.machine->add("undefined value", i.pc,
                   format("CTA %u warp %d lane %d stores to global memory what comes from memory or a register that nobody "
                          "wrote, by ", w.cta->linear, w.index, __builtin_ctz(undefined)) + w.machine->where(i.pc));
}

namespace {

// Put `size` bytes into a lane of a register of `width` bytes, extended by zeros or the sign.
void extend(uint8_t *reg, int lane, uint32_t width, const uint8_t *from, uint32_t size, bool is_signed) {
  uint8_t *to = reg + size_t(lane) * width;
  std::memcpy(to, from, size);
  if (width > size) std::memset(to + size, is_signed && from[size - 1] & 0x80 ? 0xff : 0, width - size);
}

// N registers of SIZE bytes in each lane, from or to one place. Strong accesses read their meaning from the key.
template <Where WHERE, int N, int SIZE, bool SIGNED, bool STRONG> Step load(Warp &w, const Ins &i, Mask m) {
  const Modifiers how = STRONG ? modifiers(i.key) : Modifiers{WHERE};
  const Addresses a = addresses(w, i, m, N, i.imm[0]);
  Mask undefined = m & ~a.defined;
  Where where = WHERE;
  Agent who = agent(w, i, 0);
  SG_FOR_LANES(lane, a.defined) {
    const Location l = locate(w, WHERE, a.at[lane]);
    where = l.where;
    who.lane = int16_t(lane);
    bool tainted = false;
    const uint8_t *from = touch(w, who, l, N * SIZE, kind_of(false, how.scope), tainted, nullptr);
    if (!from || tainted) undefined |= 1u << lane;
    if (!from) continue;
    for (int k = 0; k < N; k++)
      if (i.op[k] >= 0) extend(w.reg<uint8_t>(i.op[k]), lane, i.width[k], from + k * SIZE, SIZE, SIGNED);
    if (STRONG) {
      if (how.acquire)
        acquire_from(w, unique_address(l));
      else
        relaxed_read(w, unique_address(l));
    }
  }
  for (int k = 0; k < N; k++)
    if (i.op[k] >= 0) {
      Mask &at = w.undefined[i.op[k]];
      at = (at & ~m) | undefined;
    }
  count_traffic(w, i, a.defined, where, a.at, N * SIZE);
  return Step::NEXT;
}

template <Where WHERE, int N, int SIZE, bool STRONG> Step store(Warp &w, const Ins &i, Mask m) {
  const Modifiers how = STRONG ? modifiers(i.key) : Modifiers{WHERE};
  const Addresses a = addresses(w, i, m, 0, i.imm[0]);
  Mask undefined = 0;
  for (int k = 0; k < N; k++) undefined |= w.undefined[i.op[1 + k]];
  undefined &= a.defined;
  Mask global = 0;
  Where where = WHERE;
  if (STRONG && how.release)
    SG_FOR_LANES(lane, a.defined) release_to(w, unique_address(locate(w, WHERE, a.at[lane])));
  Agent who = agent(w, i, 0);
  SG_FOR_LANES(lane, a.defined) {
    uint8_t value[N * SIZE];
    for (int k = 0; k < N; k++)
      std::memcpy(value + k * SIZE, w.reg<uint8_t>(i.op[1 + k]) + size_t(lane) * i.width[1 + k], SIZE);
    const Location l = locate(w, WHERE, a.at[lane]);
    where = l.where;
    if (where == Where::GLOBAL) global |= 1u << lane;
    who.lane = int16_t(lane);
    bool tainted = undefined >> lane & 1;
    if (uint8_t *to = touch(w, who, l, N * SIZE, kind_of(true, how.scope), tainted, value)) std::memcpy(to, value, N * SIZE);
    if (STRONG && !how.release) relaxed_write(w, unique_address(l));
  }
  if (w.machine->check) report_undefined_store(w, i, undefined & global);
  count_traffic(w, i, a.defined, where, a.at, N * SIZE);
  return Step::NEXT;
}

// ld.param: the offset in the parameter block is known.
template <int N, int SIZE, bool SIGNED> Step load_param(Warp &w, const Ins &i, Mask m) {
  const auto &params = w.machine->params;
  const uint64_t at = uint64_t(i.imm[0]);
  if (at + N * SIZE > params.size()) {
    w.machine->add("out of bounds", i.pc, format("%d bytes at %llu of %zu of parameters, by ", N * SIZE,
                                                 static_cast<unsigned long long>(at), params.size()) + w.machine->where(i.pc));
    return Step::STOP;
  }
  for (int k = 0; k < N; k++) {
    if (i.op[k] < 0) continue;
    w.undefined[i.op[k]] &= ~m;
    SG_FOR_LANES(lane, m) extend(w.reg<uint8_t>(i.op[k]), lane, i.width[k], params.data() + at + k * SIZE, SIZE, SIGNED);
  }
  return Step::NEXT;
}

// ---- all spellings ---------------------------------------------------------------------------------------------------

template <Where WHERE, int N, int SIZE> void announce_access(const std::string &tail, const std::string &vector) {
  const char *kinds[] = {"b", "u", "s", "f"};
  for (const char *kind : kinds) {
    if ((SIZE < 2 && *kind == 'f') || (SIZE == 16 && *kind != 'b')) continue;
    const std::string end = vector + "." + kind + std::to_string(8 * SIZE);
    const bool is_signed = *kind == 's';
    const auto loaded = is_signed ? load<WHERE, N, SIZE, true, false> : load<WHERE, N, SIZE, false, false>;
    const auto strong = is_signed ? load<WHERE, N, SIZE, true, true> : load<WHERE, N, SIZE, false, true>;
    for (const char *weak : {"", ".weak"}) {
      announce(("ld" + std::string(weak) + tail + end).c_str(), loaded, OWN_TAINT);
      announce(("st" + std::string(weak) + tail + end).c_str(), store<WHERE, N, SIZE, false>);
    }
    announce(("ld" + tail + ".nc" + end).c_str(), loaded, OWN_TAINT);
    announce(("ld.volatile" + tail + end).c_str(), strong, OWN_TAINT);
    announce(("st.volatile" + tail + end).c_str(), store<WHERE, N, SIZE, true>);
    for (const char *scope : {".cta", ".cluster", ".gpu", ".sys"}) {
      for (const char *meaning : {".relaxed", ".acquire", ".mmio.relaxed"})
        announce(("ld" + std::string(meaning) + scope + tail + end).c_str(), strong, OWN_TAINT);
      for (const char *meaning : {".relaxed", ".release", ".mmio.relaxed"})
        announce(("st" + std::string(meaning) + scope + tail + end).c_str(), store<WHERE, N, SIZE, true>);
    }
    if (WHERE == Where::GENERIC) {  // once
      const auto param = is_signed ? load_param<N, SIZE, true> : load_param<N, SIZE, false>;
      announce(("ld.param" + end).c_str(), param, OWN_TAINT);
      announce(("ld.param::entry" + end).c_str(), param, OWN_TAINT);
    }
  }
}

template <Where WHERE, int N> void announce_sizes(const std::string &tail, const std::string &vector) {
  if constexpr (N < 8) announce_access<WHERE, N, 1>(tail, vector);
  if constexpr (N < 8) announce_access<WHERE, N, 2>(tail, vector);
  announce_access<WHERE, N, 4>(tail, vector);
  if constexpr (N < 8) announce_access<WHERE, N, 8>(tail, vector);
  if constexpr (N == 1) announce_access<WHERE, 1, 16>(tail, vector);
}

template <Where WHERE> void announce_space(const std::string &tail) {
  announce_sizes<WHERE, 1>(tail, "");
  announce_sizes<WHERE, 2>(tail, ".v2");
  announce_sizes<WHERE, 4>(tail, ".v4");
  announce_sizes<WHERE, 8>(tail, ".v8");
}

const bool announced = [] {
  announce_space<Where::GENERIC>("");
  announce_space<Where::GLOBAL>(".global");
  announce_space<Where::SHARED>(".shared");
  announce_space<Where::SHARED>(".shared::cta");
  announce_space<Where::CLUSTER>(".shared::cluster");
  announce_space<Where::LOCAL>(".local");
  return true;
}();

}  // namespace
}  // namespace softgpu
