// Bulk copies: cp.async.bulk of contiguous bytes, cp.async.bulk.tensor of boxes, and their reductions.
//
// A copy is issued by a thread and done by an engine, by the asynchronous proxy. What is read and written is checked in the
// engine's name, with what the thread knew; the bytes are taken and put when the copy lands.
#include "tma.h"

namespace softgpu {

namespace {

constexpr uint32_t TENSOR_ALIGNMENT = 128, BULK_ALIGNMENT = 16;

Step bad_copy(Warp &w, const Ins &i, int lane, const std::string &why) {
  w.machine->add("bad copy", i.pc, format("%s: ", name_of(w, lane).c_str()) + why);
  return Step::NEXT;
}

// The mbarrier that a copy into shared memory tells lies where the copy goes.
bool same_cta(Warp &w, const Ins &i, int lane, const Place &to, const Place &bar) {
  if (to.cta == bar.cta) return true;
  bad_copy(w, i, lane, format("it goes to CTA %u, its mbarrier is of CTA %u", to.cta->linear, bar.cta->linear));
  return false;
}

// Shared memory that a copy is still to read or write must not end with its CTA.
void check_living(const Cta &cta, int32_t pc, const char *verb) {
  Machine &m = *cta.machine;
  if (!cta.living && !m.has("in flight", pc))
    m.add("in flight", pc, format("CTA %u has ended before its shared memory was %s by ", cta.linear, verb) + m.where(pc) +
                               ": nothing waited for it");
}

// What the whole box is without the tensor: zeros or NaNs, one row span after the other as before the swizzle.
std::vector<uint8_t> empty_box(const Box &box) {
  std::vector<uint8_t> image(box.span, 0);
  if (!box.nan) return image;
  const uint32_t e = box.element;
  for (uint32_t at = 0; at + e <= box.span; at += e) {
    std::memset(image.data() + at, 0xff, e);
    image[at + e - 1] = 0x7f;
  }
  return image;
}

// ---- into shared memory ----------------------------------------------------------------------------------------------

// One destination of a copy into shared memory: its place, and the ticket for its mbarrier.
struct Destination {
  Place place;
  Ticket ticket;
};

// The destinations of a copy to `to` with the mbarrier `bar`: its own CTA's, or by `mask` those of the cluster.
bool destinations(Warp &w, const Ins &i, int lane, Place to, Place bar, bool multicast, uint32_t mask,
                  const std::shared_ptr<const Knowledge> &view, std::vector<Destination> &out) {
  if (!multicast) {
    out.push_back({to, {}});
    return same_cta(w, i, lane, to, bar) && begin_copy(w, i, lane, bar, view, out.back().ticket);
  }
  for (Cta *cta : w.cta->cluster) {
    if (!(mask >> cta->rank & 1)) continue;
    if (!cta->living) return bad_copy(w, i, lane, format("CTA %u, where it goes, has ended", cta->linear)), false;
    out.push_back({{cta, to.at}, {}});
    if (!begin_copy(w, i, lane, {cta, bar.at}, view, out.back().ticket)) return false;
  }
  if (mask >> w.cta->cluster.size()) bad_copy(w, i, lane, format("multicast to CTAs %#x of a cluster of %zu", mask, w.cta->cluster.size()));
  return true;
}

// Issue the copy of `box` to each destination.
void load_box(Warp &w, const Box &box, const std::vector<Destination> &to) {
  Machine &m = *w.machine;
  std::vector<std::pair<Piece, const uint8_t *>> sources;
  for (const Piece &piece : box.pieces)
    if (const uint8_t *from = global_read(m, to[0].ticket.engine(), piece.global, piece.bytes, 1))
      sources.push_back({piece, from});
  for (const Destination &d : to) {
    const Agent by = d.ticket.engine();
    for_areas(box, d.place.at, [&](uint32_t at, uint32_t n) {
      bool undefined = false;
      shared_write(*d.place.cta, by, at, n, 1, undefined, nullptr);
      shared_in_flight(*d.place.cta, by, at, n, true);
    });
    auto transfer = std::make_shared<Transfer>();
    transfer->go = [box, d, sources, reader = to[0].ticket] {
      check_living(*d.place.cta, d.ticket.pc, "written");
      std::vector<uint8_t> image = empty_box(box);
      for (const auto &[piece, from] : sources) std::memcpy(image.data() + piece.shared, from, piece.bytes);
      const Agent by = d.ticket.engine();
      Cta &cta = *d.place.cta;
      for_areas(box, d.place.at, [&](uint32_t at, uint32_t n) {
        if (uint64_t(at) + n <= shared_size(cta)) shared_land(cta, by, 1, &at, n);
      });
      for (uint32_t row = 0; row < box.span; row += box.pitch)
        for_chunks(box, d.place.at, row, box.row, [&](uint32_t at, uint32_t offset, uint32_t n) {
          if (uint64_t(at) + n <= shared_size(cta)) std::memcpy(softgpu::shared_bytes(cta) + at, image.data() + row + offset, n);
        });
      end_copy(d.ticket, reader, box.bytes);
    };
    enqueue(m, d.place.cta, transfer);
  }
}

// The tensor map of the operand `map`, its coordinates behind it, and the box that they name.
bool find_box(Warp &w, const Ins &i, int lane, int map, int imm, int rank, Box &box) {
  tensor_map tensor;
  if (!read_map(w, i, lane, value_of(w, i, map, lane) + i.imm[imm], tensor)) return false;
  if (tensor.rank_less_one + 1 != rank) {
    bad_copy(w, i, lane, format("`%s` of a tensor of rank %d", i.text.c_str(), tensor.rank_less_one + 1));
    return false;
  }
  int32_t coordinate[TENSOR_MAP_RANKS] = {};
  for (int k = 0; k < rank; k++) coordinate[k] = signed_of(w, i, map + 1 + k, lane);
  box = make_box(tensor, coordinate);
  return true;
}

bool aligned(Warp &w, const Ins &i, int lane, const Place &place, uint32_t alignment) {
  if (place.at % alignment == 0) return true;
  w.machine->add("misaligned", i.pc, format("%s: shared %u is no multiple of %u", name_of(w, lane).c_str(), place.at, alignment));
  return false;
}

// cp.async.bulk.tensor.Nd.shared.global: dst, map, c0.., mbar{, mask}.
template <int RANK, bool MULTICAST> Step on_tensor_load(Warp &w, const Ins &i, Mask m) {
  constexpr int BAR = 2 + RANK;
  SG_FOR_LANES(lane, defined(w, i, m, 0, BAR + 1 + MULTICAST)) {
    Place to, bar;
    Box box;
    if (!find_place(w, i, lane, value_of(w, i, 0, lane) + i.imm[0], to) ||
        !find_place(w, i, lane, value_of(w, i, BAR, lane) + i.imm[2], bar) || !aligned(w, i, lane, to, TENSOR_ALIGNMENT) ||
        !find_box(w, i, lane, 1, 1, RANK, box))
      continue;
    std::vector<Destination> all;
    const uint32_t mask = MULTICAST ? uint32_t(value_of(w, i, BAR + 1, lane)) : 0;
    if (!destinations(w, i, lane, to, bar, MULTICAST, mask, view_now(w), all) || all.empty()) continue;
    load_box(w, box, all);
    count_bulk(w, i, box.pieces, box.bytes);
  }
  return Step::NEXT;
}

Box plain_box(uint64_t global, uint32_t bytes, int type = TENSOR_MAP_UINT8) {
  Box box;
  box.pieces.push_back({global, 0, bytes});
  box.bytes = box.span = box.row = box.pitch = bytes;
  box.type = type;
  return box;
}

bool whole(Warp &w, const Ins &i, int lane, uint64_t global, uint32_t bytes) {
  if (bytes % 16 == 0 && global % 16 == 0) return true;
  w.machine->add("misaligned", i.pc, format("%s: %u bytes at global %#llx: both are multiples of 16 in a bulk copy",
                                            name_of(w, lane).c_str(), bytes, static_cast<unsigned long long>(global)));
  return false;
}

// cp.async.bulk.shared.global: dst, src, size, mbar{, mask}.
template <bool MULTICAST> Step on_bulk_load(Warp &w, const Ins &i, Mask m) {
  SG_FOR_LANES(lane, defined(w, i, m, 0, 4 + MULTICAST)) {
    Place to, bar;
    const uint64_t from = value_of(w, i, 1, lane) + i.imm[1];
    const uint32_t bytes = uint32_t(value_of(w, i, 2, lane));
    if (!find_place(w, i, lane, value_of(w, i, 0, lane) + i.imm[0], to) ||
        !find_place(w, i, lane, value_of(w, i, 3, lane) + i.imm[2], bar) || !aligned(w, i, lane, to, BULK_ALIGNMENT) ||
        !whole(w, i, lane, from, bytes))
      continue;
    std::vector<Destination> all;
    const uint32_t mask = MULTICAST ? uint32_t(value_of(w, i, 4, lane)) : 0;
    if (!destinations(w, i, lane, to, bar, MULTICAST, mask, view_now(w), all) || all.empty()) continue;
    const Box box = plain_box(from, bytes);
    load_box(w, box, all);
    count_bulk(w, i, box.pieces, bytes);
  }
  return Step::NEXT;
}

// ---- out of shared memory --------------------------------------------------------------------------------------------

// The warp's bulk engines, which read shared memory and write what lies beyond it, at one new clock.
struct Engines {
  std::shared_ptr<const Knowledge> view;
  uint32_t clock;
  Agent reader, writer;
};

Engines engines(Warp &w, const Ins &i) {
  Engines e{view_now(w), ++w.bulk_clock, {}, {}};
  e.reader = engine(w, i, BULK_COLUMN + w.index, e.clock, *e.view);
  e.writer = engine(w, i, BULK_WRITE_COLUMN + w.index, e.clock, *e.view);
  return e;
}

// What lies outside of the tensor is not looked at: it goes nowhere.
bool read_box(const Agent &reader, Place from, const Box &box) {
  bool inside = true, undefined = false;
  for (const Piece &piece : box.pieces)
    for_areas(box, from.at, piece.shared, piece.bytes, [&](uint32_t at, uint32_t n) {
      inside &= shared_read(*from.cta, reader, at, n, 1, undefined) != nullptr;
    });
  if (undefined)
    from.cta->machine->add("undefined value", reader.pc,
                           format("a bulk copy of CTA %u stores what comes from memory that nobody wrote", from.cta->linear));
  return inside;
}

// The bytes of the box as they lie in shared memory now, the swizzle undone.
std::vector<uint8_t> image_of(const Box &box, Place from) {
  std::vector<uint8_t> image(box.span, 0);
  for (uint32_t row = 0; row < box.span; row += box.pitch)
    for_chunks(box, from.at, row, box.row, [&](uint32_t at, uint32_t offset, uint32_t n) {
      if (uint64_t(at) + n <= shared_size(*from.cta)) std::memcpy(image.data() + row + offset, softgpu::shared_bytes(*from.cta) + at, n);
    });
  return image;
}

void store_box(Warp &w, const Ins &i, int lane, Place from, const Box &box, Reduction op) {
  Machine &m = *w.machine;
  const Engines e = engines(w, i);
  if (!read_box(e.reader, from, box)) return;
  auto transfer = std::make_shared<Transfer>();
  transfer->clock = e.clock;
  transfer->go = [&m, e, from, box, op] {
    check_living(*from.cta, e.reader.pc, "read");
    const std::vector<uint8_t> image = image_of(box, from);
    const Kind kind = op == Reduction::NONE ? kind_of(true) : kind_of(true, Scope::GPU);
    for (const Piece &piece : box.pieces) {
      const uint8_t *value = image.data() + piece.shared;
      uint8_t *to = global_access(m, e.writer, piece.global, piece.bytes, 1, kind, op == Reduction::NONE ? value : nullptr);
      if (!to) continue;
      if (op == Reduction::NONE)
        std::memcpy(to, value, piece.bytes);
      else
        reduce(op, box.type, to, value, piece.bytes);
    }
  };
  add_to_group(w, lane, transfer);
  enqueue(m, w.cta, transfer);
  count_bulk(w, i, box.pieces, box.bytes);
}

bool own_shared(Warp &w, const Ins &i, int lane, const Place &from) {
  if (from.cta == w.cta) return true;
  bad_copy(w, i, lane, format("it reads the shared memory of CTA %u", from.cta->linear));
  return false;
}

// cp.{async,reduce.async}.bulk.tensor.Nd.global.shared::cta: map, c0.., src.
template <int RANK, Reduction OP> Step on_tensor_store(Warp &w, const Ins &i, Mask m) {
  SG_FOR_LANES(lane, defined(w, i, m, 0, 2 + RANK)) {
    Place from;
    Box box;
    if (!find_place(w, i, lane, value_of(w, i, 1 + RANK, lane) + i.imm[1], from) ||
        !aligned(w, i, lane, from, TENSOR_ALIGNMENT) || !own_shared(w, i, lane, from) || !find_box(w, i, lane, 0, 0, RANK, box))
      continue;
    if (!has_reduction(OP, box.type)) return bad_copy(w, i, lane, "this reduction does not take the tensor's type"), Step::STOP;
    store_box(w, i, lane, from, box, OP);
  }
  return Step::NEXT;
}

// cp.{async,reduce.async}.bulk.global.shared::cta: dst, src, size.
template <Reduction OP, int TYPE> Step on_bulk_store(Warp &w, const Ins &i, Mask m) {
  SG_FOR_LANES(lane, defined(w, i, m, 0, 3)) {
    Place from;
    const uint64_t to = value_of(w, i, 0, lane) + i.imm[0];
    const uint32_t bytes = uint32_t(value_of(w, i, 2, lane));
    if (find_place(w, i, lane, value_of(w, i, 1, lane) + i.imm[1], from) && aligned(w, i, lane, from, BULK_ALIGNMENT) &&
        own_shared(w, i, lane, from) && whole(w, i, lane, to, bytes))
      store_box(w, i, lane, from, plain_box(to, bytes, TYPE), OP);
  }
  return Step::NEXT;
}

// Between CTAs of a cluster, told to the destination's mbarrier: dst, src, size, mbar.
template <Reduction OP, int TYPE> Step on_cluster_copy(Warp &w, const Ins &i, Mask m) {
  SG_FOR_LANES(lane, defined(w, i, m, 0, 4)) {
    Place to, from, bar;
    const uint32_t bytes = uint32_t(value_of(w, i, 2, lane));
    if (!find_place(w, i, lane, value_of(w, i, 0, lane) + i.imm[0], to) ||
        !find_place(w, i, lane, value_of(w, i, 1, lane) + i.imm[1], from) ||
        !find_place(w, i, lane, value_of(w, i, 3, lane) + i.imm[2], bar) || !aligned(w, i, lane, to, BULK_ALIGNMENT) ||
        !aligned(w, i, lane, from, BULK_ALIGNMENT) || !whole(w, i, lane, 0, bytes))
      continue;
    Ticket ticket;
    if (!same_cta(w, i, lane, to, bar) || !begin_copy(w, i, lane, bar, view_now(w), ticket)) continue;
    const Box box = plain_box(0, bytes, TYPE);
    const Agent by = ticket.engine();
    const bool readable = read_box(by, from, box);
    bool undefined = false, reserved = false;
    if (OP == Reduction::NONE && readable && shared_write(*to.cta, by, to.at, bytes, 1, undefined, nullptr)) {
      shared_in_flight(*to.cta, by, to.at, bytes, true);
      reserved = true;
    }
    auto transfer = std::make_shared<Transfer>();
    transfer->go = [=] {
      check_living(*from.cta, ticket.pc, "read");
      check_living(*to.cta, ticket.pc, "written");
      const Agent engine = ticket.engine();
      const std::vector<uint8_t> image = image_of(box, from);
      if (reserved) {
        shared_land(*to.cta, engine, 1, &to.at, bytes);
        std::memcpy(softgpu::shared_bytes(*to.cta) + to.at, image.data(), bytes);
      } else if (OP != Reduction::NONE && readable) {  // atomic, element by element
        bool tainted = false;
        const Kind kind = kind_of(true, Scope::CLUSTER);
        if (uint8_t *into = shared_access(*to.cta, engine, to.at, bytes, BULK_ALIGNMENT, kind, tainted, nullptr))
          reduce(OP, TYPE, into, image.data(), bytes);
      }
      end_copy(ticket, ticket, bytes);
    };
    enqueue(*w.machine, to.cta, transfer);
    w.machine->counts[i.pc].bytes += bytes;
  }
  return Step::NEXT;
}

// Only the cache hears of a prefetch; its tensor map is checked.
template <int RANK> Step on_prefetch(Warp &w, const Ins &i, Mask m) {
  SG_FOR_LANES(lane, defined(w, i, m, 0, 1 + RANK)) {
    Box box;
    find_box(w, i, lane, 0, 0, RANK, box);
  }
  return Step::NEXT;
}

// ---- all spellings ---------------------------------------------------------------------------------------------------

template <int RANK, Reduction OP> void announce_tensor_reduction(const std::string &op) {
  const std::string head = "cp.reduce.async.bulk.tensor." + std::to_string(RANK) + "d.global.shared::cta." + op;
  for (const char *mode : {"", ".tile"}) announce(head + mode + ".bulk_group", on_tensor_store<RANK, OP>);
}

template <int RANK> void announce_rank() {
  const std::string rank = std::to_string(RANK) + "d";
  for (const std::string mode : {"", ".tile"}) {
    for (const std::string space : {".shared::cta", ".shared::cluster"}) {
      const std::string load = "cp.async.bulk.tensor." + rank + space + ".global" + mode + ".mbarrier::complete_tx::bytes";
      announce(load, on_tensor_load<RANK, false>);
      announce(load + ".multicast::cluster", on_tensor_load<RANK, true>);
    }
    announce("cp.async.bulk.tensor." + rank + ".global.shared::cta" + mode + ".bulk_group",
             on_tensor_store<RANK, Reduction::NONE>);
    announce("cp.async.bulk.prefetch.tensor." + rank + ".L2.global" + mode, on_prefetch<RANK>);
  }
  announce_tensor_reduction<RANK, Reduction::ADD>("add");
  announce_tensor_reduction<RANK, Reduction::MIN>("min");
  announce_tensor_reduction<RANK, Reduction::MAX>("max");
  announce_tensor_reduction<RANK, Reduction::INC>("inc");
  announce_tensor_reduction<RANK, Reduction::DEC>("dec");
  announce_tensor_reduction<RANK, Reduction::AND>("and");
  announce_tensor_reduction<RANK, Reduction::OR>("or");
  announce_tensor_reduction<RANK, Reduction::XOR>("xor");
}

template <Reduction OP, int TYPE> void announce_reduction(const std::string &op, const std::string &type) {
  if (!has_reduction(OP, TYPE)) return;
  announce("cp.reduce.async.bulk.global.shared::cta.bulk_group." + op + "." + type, on_bulk_store<OP, TYPE>);
  announce("cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes." + op + "." + type,
           on_cluster_copy<OP, TYPE>);
}

template <Reduction OP> void announce_types(const std::string &op) {
  announce_reduction<OP, TENSOR_MAP_UINT32>(op, "u32");
  announce_reduction<OP, TENSOR_MAP_INT32>(op, "s32");
  announce_reduction<OP, TENSOR_MAP_UINT64>(op, "u64");
  announce_reduction<OP, TENSOR_MAP_INT64>(op, "s64");
  announce_reduction<OP, TENSOR_MAP_UINT32>(op, "b32");
  announce_reduction<OP, TENSOR_MAP_UINT64>(op, "b64");
  for (const std::string rounding : {"", "noftz."}) {
    announce_reduction<OP, TENSOR_MAP_FLOAT16>(op, rounding + "f16");
    announce_reduction<OP, TENSOR_MAP_BFLOAT16>(op, rounding + "bf16");
  }
  announce_reduction<OP, TENSOR_MAP_FLOAT32>(op, "f32");
  announce_reduction<OP, TENSOR_MAP_FLOAT64>(op, "f64");
}

const bool announced = [] {
  announce_rank<1>(), announce_rank<2>(), announce_rank<3>(), announce_rank<4>(), announce_rank<5>();
  for (const std::string space : {".shared::cta", ".shared::cluster"}) {
    const std::string load = "cp.async.bulk" + space + ".global.mbarrier::complete_tx::bytes";
    announce(load, on_bulk_load<false>);
    announce(load + ".multicast::cluster", on_bulk_load<true>);
  }
  announce("cp.async.bulk.global.shared::cta.bulk_group", on_bulk_store<Reduction::NONE, TENSOR_MAP_UINT8>);
  announce("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes",
           on_cluster_copy<Reduction::NONE, TENSOR_MAP_UINT8>);
  announce("cp.async.bulk.prefetch.L2.global", nothing);
  announce_types<Reduction::ADD>("add"), announce_types<Reduction::MIN>("min"), announce_types<Reduction::MAX>("max");
  announce_types<Reduction::INC>("inc"), announce_types<Reduction::DEC>("dec"), announce_types<Reduction::AND>("and");
  announce_types<Reduction::OR>("or"), announce_types<Reduction::XOR>("xor");
  return true;
}();

}  // namespace
}  // namespace softgpu
