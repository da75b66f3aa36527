// Operands of mbarriers, bulk copies and clusters: their values, and where they point.
#include "asynchronous.h"

namespace softgpu {

uint64_t value_of(Warp &w, const Ins &i, int operand, int lane) {
  const int32_t unit = i.op[operand];
  switch (i.width[operand]) {
  case 0: return w.pred(unit) >> lane & 1;
  case 2: return w.reg<uint16_t>(unit)[lane];
  case 4: return w.reg<uint32_t>(unit)[lane];
  default: return w.reg<uint64_t>(unit)[lane];
  }
}

Mask defined(Warp &w, const Ins &i, Mask m, int first, int last) {
  Mask undefined = 0;
  for (int k = first; k < last; k++)
    if (i.op[k] >= 0) undefined |= w.undefined[i.op[k]];
  undefined &= m;
  if (undefined && !w.machine->has("undefined value", i.pc))
    w.machine->add("undefined value", i.pc,
                   format("%s: an operand comes from what nobody wrote", name_of(w, __builtin_ctz(undefined)).c_str()));
  return m & ~undefined;
}

bool find_place(Warp &w, const Ins &i, int lane, uint64_t address, Place &place) {
  if (address >= SHARED_WINDOW && address < PARAM_WINDOW) address -= SHARED_WINDOW;
  Machine &m = *w.machine;
  place.at = uint32_t(address & ((1u << RANK_SHIFT) - 1));
  const uint64_t rank = address >> RANK_SHIFT;
  if (rank > w.cta->cluster.size()) {
    if (!m.has("out of bounds", i.pc))
      m.add("out of bounds", i.pc, format("%s: %#llx is no address of shared memory in its cluster", name_of(w, lane).c_str(),
                                          (unsigned long long)address));
    return false;
  }
  place.cta = rank ? w.cta->cluster[rank - 1] : w.cta;
  if (place.cta == w.cta || place.cta->living) return true;
  if (!m.has("memory of a CTA that has ended", i.pc))
    m.add("memory of a CTA that has ended", i.pc,
          format("%s: CTA %u has ended, and its shared memory with it", name_of(w, lane).c_str(), place.cta->linear));
  place.cta = nullptr;
  return false;
}

std::shared_ptr<const Knowledge> view_now(Warp &w) {
  auto view = std::make_shared<const Knowledge>(w.view);
  tick(w);
  return view;
}

}  // namespace softgpu
