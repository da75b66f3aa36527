// Tensor maps: where a copy finds its own, and the maps that a kernel makes itself (tensormap.replace, cp_fenceproxy).
//
// A map that the kernel has written serves a copy only after its writer released it to the tensormap proxy and a
// fence.proxy.tensormap acquire, of that very map, that happened before the copy.
#include "asynchronous.h"
#include "memory.h"
#include "tensor_map.h"

namespace softgpu {
namespace {

static_assert(sizeof(tensor_map) == 128);

struct MadeMap {  // in global memory, written by the kernel
  Stamp written;
  bool released = false;
  std::vector<Stamp> acquired;  // fences since then
};
using MadeMaps = std::unordered_map<uint64_t, MadeMap>;

MadeMaps &made_maps(Machine &m) {
  if (!m.tensor_maps) m.tensor_maps = std::make_shared<MadeMaps>();
  return *std::static_pointer_cast<MadeMaps>(m.tensor_maps);
}

Stamp stamp(const Agent &a) { return {a.clock, a.cta->linear + 1, a.column, int8_t(a.lane), a.proxy, a.pc}; }

bool bad_map(Warp &w, const Ins &i, int lane, const char *why) {
  if (!w.machine->has("bad tensor map", i.pc))
    w.machine->add("bad tensor map", i.pc, format("%s: %s", name_of(w, lane).c_str(), why));
  return false;
}

// ---- tensormap.replace -----------------------------------------------------------------------------------------------

enum class Field { ADDRESS, RANK, BOX, SIZE, STRIDE, ELEMENT_STRIDE, TYPE, INTERLEAVE, SWIZZLE, FILL };

// The bytes that a replacement writes: their offset and number; `value` becomes what they hold. A text if it may not be.
const char *edit(Field field, uint32_t ordinal, uint64_t &value, uint32_t &offset, uint32_t &bytes) {
  const auto entry = [&](size_t start, size_t size, uint32_t count) -> const char * {
    offset = uint32_t(start + size * ordinal), bytes = uint32_t(size);
    return ordinal < count ? nullptr : "the dimension is none of a tensor's";
  };
  const auto small = [&](size_t start, uint64_t most) -> const char * {
    offset = uint32_t(start), bytes = 1;
    return value <= most ? nullptr : "the new value is unknown on this GPU";
  };
  switch (field) {
  case Field::ADDRESS: return entry(offsetof(tensor_map, address), 8, 1);
  case Field::RANK: return small(offsetof(tensor_map, rank_less_one), TENSOR_MAP_RANKS - 1);
  case Field::SIZE:
    if (!value) return "a tensor's size is 0";
    return entry(offsetof(tensor_map, size), 4, TENSOR_MAP_RANKS);
  case Field::STRIDE: return entry(offsetof(tensor_map, stride), 8, TENSOR_MAP_RANKS - 1);
  case Field::BOX:
    if (value > 256) return "a side of the box is not 1 to 256";
    return entry(offsetof(tensor_map, box), 2, TENSOR_MAP_RANKS);
  case Field::ELEMENT_STRIDE:
    if (value > 8) return "an element stride is not 1 to 8";
    return entry(offsetof(tensor_map, element_stride), 1, TENSOR_MAP_RANKS);
  case Field::TYPE: {
    if (const char *fault = small(offsetof(tensor_map, type), TENSOR_MAP_TYPES - 1)) return fault;
    // PTX numbers float32 with flushed subnormals 8, float64 9, bfloat16 10: the driver 10, 8, 9.
    value = value == 8 ? TENSOR_MAP_FLOAT32_FTZ : value == 9 || value == 10 ? value - 1 : value;
    return nullptr;
  }
  case Field::INTERLEAVE: return small(offsetof(tensor_map, interleave), 2);
  case Field::SWIZZLE: return small(offsetof(tensor_map, swizzle), 3);
  default: return small(offsetof(tensor_map, fill), 1);
  }
}

// May the 128 bytes be edited: do they hold a map, or nothing but zeros?
bool editable(const uint8_t *bytes) {
  uint32_t magic;
  std::memcpy(&magic, bytes, sizeof magic);
  if (magic == TENSOR_MAP_MAGIC) return true;
  for (size_t k = 0; k < sizeof(tensor_map); k++)
    if (bytes[k]) return false;
  return true;
}

// tensormap.replace.tile.<field> [a]{, ordinal}, value
template <Field FIELD> Step on_replace(Warp &w, const Ins &i, Mask m) {
  Machine &machine = *w.machine;
  const bool in_global = i.key.find(".shared::cta.") == std::string::npos;
  m = defined(w, i, m, 0, int(i.op.size()));
  SG_FOR_LANES(lane, m) {
    const uint64_t address = value_of(w, i, 0, lane) + i.imm[0];
    const uint32_t ordinal = i.op.size() > 2 ? uint32_t(value_of(w, i, 1, lane)) : 0;
    uint64_t value = value_of(w, i, int(i.op.size()) - 1, lane);
    uint32_t offset = 0, bytes = 0;
    if (const char *fault = edit(FIELD, ordinal, value, offset, bytes)) {
      bad_map(w, i, lane, fault);
      continue;
    }
    const Agent by = agent(w, i, lane);
    const uint32_t magic = TENSOR_MAP_MAGIC;
    const auto *new_value = reinterpret_cast<const uint8_t *>(&value), *new_magic = reinterpret_cast<const uint8_t *>(&magic);
    Place place;
    bool undefined = false;
    const bool shared = !in_global || (address >= SHARED_WINDOW && address < PARAM_WINDOW);
    if (shared && !find_place(w, i, lane, address, place)) continue;
    const uint8_t *map = shared ? shared_read(*place.cta, by, place.at, sizeof(tensor_map), 64, undefined)
                                : global_read(machine, by, address, sizeof(tensor_map), 64);
    if (!map) continue;
    if (undefined || !editable(map)) {
      bad_map(w, i, lane, "what is replaced there is neither a tensor map nor all zeros");
      continue;
    }
    const auto put = [&](uint32_t at, uint32_t size, const uint8_t *from) {
      uint8_t *to = shared ? shared_write(*place.cta, by, place.at + at, size, size, false, from)
                           : global_write(machine, by, address + at, size, size, from);
      if (to) std::memcpy(to, from, size);
    };
    put(offset, bytes, new_value);
    put(offsetof(tensor_map, magic), 4, new_magic);
    if (!shared) made_maps(machine)[address] = {stamp(by), false, {}};
  }
  return Step::NEXT;
}

// ---- fences ----------------------------------------------------------------------------------------------------------

// tensormap.cp_fenceproxy [global], [shared], 128: the warp copies a map and releases it to the tensormap proxy.
Step on_copy_map(Warp &w, const Ins &i, Mask m) {
  if (!gathered(w, ALL)) return Step::RETRY;
  m = defined(w, i, m, 0, 2);
  if (!m) return Step::NEXT;
  const int lane = __builtin_ctz(m);
  const uint64_t to = value_of(w, i, 0, lane) + i.imm[0];
  Place from;
  if (!find_place(w, i, lane, value_of(w, i, 1, lane) + i.imm[1], from)) return Step::NEXT;
  const Agent by = agent(w, i, lane);
  bool undefined = false;
  const uint8_t *map = shared_read(*from.cta, by, from.at, sizeof(tensor_map), sizeof(tensor_map), undefined);
  if (!map) return Step::NEXT;
  if (undefined) bad_map(w, i, lane, "a part of it comes from what nobody wrote");
  uint8_t *out = global_write(*w.machine, by, to, sizeof(tensor_map), sizeof(tensor_map), map);
  if (!out) return Step::NEXT;
  std::memcpy(out, map, sizeof(tensor_map));
  made_maps(*w.machine)[to] = {stamp(by), true, {}};
  return Step::NEXT;
}

// fence.proxy.tensormap::generic.release: what this warp wrote of maps is for the tensormap proxy too.
Step on_release(Warp &w, const Ins &i, Mask) {
  const Agent by = agent(w, i, 0);
  for (auto &[address, map] : made_maps(*w.machine))
    if (ordered(map.written, by)) map.released = true;
  tick(w);
  return Step::NEXT;
}

// fence.proxy.tensormap::generic.acquire [a], 128
Step on_acquire(Warp &w, const Ins &i, Mask m) {
  m = defined(w, i, m, 0, 1);
  uint64_t last = 0;
  SG_FOR_LANES(lane, m) {
    const uint64_t address = value_of(w, i, 0, lane) + i.imm[0];
    if (address == last) continue;
    last = address;
    const Agent by = agent(w, i, lane);
    const auto made = made_maps(*w.machine).find(address);
    if (made == made_maps(*w.machine).end()) continue;
    global_read(*w.machine, by, address, sizeof(tensor_map), 64);
    made->second.acquired.push_back(stamp(by));
  }
  tick(w);
  return Step::NEXT;
}

// prefetch{.param,.const}.tensormap [a]
Step on_prefetch(Warp &w, const Ins &i, Mask m) {
  defined(w, i, m, 0, 1);
  return Step::NEXT;
}

template <Field FIELD> void announce_replace(const char *name, const char *type) {
  for (const char *space : {"", ".global", ".shared::cta"})
    announce(std::string("tensormap.replace.tile.") + name + space + ".b1024." + type, on_replace<FIELD>);
}

const bool announced = [] {
  announce_replace<Field::ADDRESS>("global_address", "b64");
  announce_replace<Field::RANK>("rank", "b32");
  announce_replace<Field::BOX>("box_dim", "b32");
  announce_replace<Field::SIZE>("global_dim", "b32");
  announce_replace<Field::STRIDE>("global_stride", "b64");
  announce_replace<Field::ELEMENT_STRIDE>("element_stride", "b32");
  announce_replace<Field::TYPE>("elemtype", "b32");
  announce_replace<Field::INTERLEAVE>("interleave_layout", "b32");
  announce_replace<Field::SWIZZLE>("swizzle_mode", "b32");
  announce_replace<Field::FILL>("fill_mode", "b32");
  for (const char *scope : {"cta", "cluster", "gpu", "sys"}) {
    announce(std::string("tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.") + scope +
              ".sync.aligned", on_copy_map, SYNCS);
    announce(std::string("fence.proxy.tensormap::generic.release.") + scope, on_release);
    announce(std::string("fence.proxy.tensormap::generic.acquire.") + scope, on_acquire);
  }
  for (const char *space : {"", ".param", ".const"})
    announce(std::string("prefetch") + space + ".tensormap", on_prefetch);
  return true;
}();

}  // namespace

bool read_map(Warp &w, const Ins &i, int lane, uint64_t address, tensor_map &map) {
  Machine &m = *w.machine;
  if (address % 64) return bad_map(w, i, lane, "a tensor map lies at a multiple of 64 bytes");
  if (address >= PARAM_WINDOW && address < LOCAL_WINDOW) {
    const uint64_t at = address - PARAM_WINDOW;
    if (at + sizeof map > m.params.size()) return bad_map(w, i, lane, "the address is beyond the parameters");
    std::memcpy(&map, m.params.data() + at, sizeof map);
  } else if (address >= SHARED_WINDOW) {
    return bad_map(w, i, lane, "a tensor map is a parameter or lies in global memory");
  } else {
    const Agent by = agent(w, i, lane);
    const uint8_t *bytes = global_read(m, by, address, sizeof map, 64);
    if (!bytes) return false;
    std::memcpy(&map, bytes, sizeof map);
    const auto made = made_maps(m).find(address);
    if (made != made_maps(m).end() && m.check) {
      bool acquired = false;
      for (const Stamp &fence : made->second.acquired) acquired |= ordered(fence, by);
      if ((!made->second.released || !acquired) && !m.has("no tensormap fence", i.pc, made->second.written.pc))
        m.add("no tensormap fence", i.pc,
              format("%s uses the tensor map that %s wrote; %s", name_of(w, lane).c_str(), m.where(made->second.written.pc).c_str(),
                     made->second.released ? "no fence.proxy.tensormap acquire of it happened before"
                                           : "its writer did not release it to the tensormap proxy"),
              made->second.written.pc);
    }
  }
  if (const char *fault = tensor_map_fault(&map)) return bad_map(w, i, lane, fault);
  if (map.interleave) return bad_map(w, i, lane, "interleaved layouts are not known to this tool");
  return true;
}

}  // namespace softgpu
