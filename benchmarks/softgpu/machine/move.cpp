// mov: copies, also of predicates, and a register made of several smaller ones, or taken apart into them.
#include "lanes.h"

namespace softgpu {

namespace {

Step move_pred(Warp &w, const Ins &i, Mask m) {
  put_pred(w, i.op[0], m, w.pred(i.op[1]));
  return Step::NEXT;
}

template <class T> Step move(Warp &w, const Ins &i, Mask m) {
  const size_t sources = i.op.size() - size_t(i.num_dst);
  if (i.num_dst == 1 && sources == 1) {
    T value[LANES];
    std::memcpy(value, w.reg<T>(i.op[1]), sizeof value);
    put(w, i.op[0], m, value);
    return Step::NEXT;
  }
  const size_t parts = i.num_dst == 1 ? sources : size_t(i.num_dst);
  const size_t bytes = sizeof(T) / parts;
  if (i.num_dst == 1) {
    T value[LANES];
    for (size_t k = 0; k < parts; k++) {
      const uint8_t *from = w.reg<uint8_t>(i.op[1 + k]);
      const size_t width = i.width[1 + k];
      for (int lane = 0; lane < LANES; lane++)
        std::memcpy(reinterpret_cast<uint8_t *>(&value[lane]) + k * bytes, from + lane * width, bytes);
    }
    put(w, i.op[0], m, value);
    return Step::NEXT;
  }
  T value[LANES];  // a copy: a destination may be a part of the source's place
  std::memcpy(value, w.reg<T>(i.op[parts]), sizeof value);
  for (size_t k = 0; k < parts; k++) {
    if (i.op[k] < 0) continue;
    uint8_t *to = w.reg<uint8_t>(i.op[k]);
    const size_t width = i.width[k];
    SG_FOR_LANES(lane, m) {
      std::memset(to + lane * width, 0, width);
      std::memcpy(to + lane * width, reinterpret_cast<const uint8_t *>(&value[lane]) + k * bytes, bytes);
    }
  }
  return Step::NEXT;
}

const bool announced = [] {
  announce("mov.pred", move_pred);
  for (const char *kind : {"b", "u", "s", "f"}) {
    const std::string head = std::string("mov.") + kind;
    announce((head + "16").c_str(), move<uint16_t>);
    announce((head + "32").c_str(), move<uint32_t>);
    announce((head + "64").c_str(), move<uint64_t>);
  }
  announce("mov.b128", move<unsigned __int128>);
  return true;
}();

}  // namespace
}  // namespace softgpu
