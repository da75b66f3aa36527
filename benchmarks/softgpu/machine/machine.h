// What every part of the machine shares: registers, warps, CTAs, the order of events, findings, counts.
//
//     machine.cpp      findings, chance, the table of handlers; start.cpp: how a CTA starts; api.cpp: what Python calls
//     schedule.cpp     who runs next and how far, divergence; control.cpp: branches, barriers, exits
//     order.cpp        happens-before: vector clocks, who has seen whose accesses
//     shared_memory.cpp, global_memory.cpp   data, bounds, what nobody wrote, races (shadow.h, shared_space.h)
//     load_store.cpp, atomic.cpp, copy_async.cpp   instructions of threads on memory; address.cpp: spaces; traffic.cpp
//     integer.cpp, floating.cpp, predicate.cpp, move.cpp   arithmetic, comparisons, choices (lanes.h: lane by lane)
//     convert.cpp      between number formats (formats.h); approximate.cpp: special functions
//     warp.cpp         shuffles, votes, elect; matrix.cpp: ldmatrix, stmatrix
//     tensor_core.cpp  mma.sync; wgmma.cpp: wgmma, its descriptors, fences and groups
//     tensor_memory.cpp  sm_100's tensor memory: allocation, order; tensor_copy.cpp: tcgen05.ld, .st; tcgen05.cpp: products
//     matrix_rows.cpp  matrices in shared memory by their descriptors, for wgmma and tcgen05
//     mbarrier.cpp     mbarriers; tma.cpp: bulk and tensor copies; bulk_groups.cpp: their groups;
//                      tensor_map.cpp: descriptors; cluster.cpp: clusters, setmaxnreg
//
// The unit of execution is a warp's instruction on 32 lanes. Warps are run one at a time, in an order that a seed picks;
// nothing but synchronisation orders them in the eyes of the race detector.
#pragma once
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace softgpu {

constexpr int LANES = 32;
using Mask = uint32_t;  // one bit for each lane
constexpr Mask ALL = 0xffffffffu;
constexpr int UNIT = 64;  // bytes: registers of 32 lanes lie in units (16 bits: one, 32: two, 64: four, a predicate: one)

struct Warp;
struct Cta;
struct Machine;
struct Ins;

// What an instruction tells its warp.
enum class Step {
  NEXT,   // go on behind it
  JUMP,   // it has moved the warp's lanes itself (branches, exits)
  RETRY,  // it cannot be done yet: try the same instruction again when something has happened
  WAIT,   // it is done for this warp, which sleeps until `wake` (barriers)
  STOP,   // the launch cannot go on: a finding says why
};
using Handler = Step (*)(Warp &, const Ins &, Mask);

// How the machine treats an instruction before and after its handler.
enum Flags : uint32_t {
  PLAIN = 0,
  OWN_TAINT = 1,  // sets `undefined` of its destinations itself (default: undefined where any source is)
  OWN_BUSY = 2,   // looks itself at registers that a wgmma in flight reads or writes (default: touching one is a finding)
  SYNCS = 4,      // orders the lanes of the warp among each other (the warp's clock ticks)
};

// An instruction. Operands are numbers of units in the warp's register file; constants, special registers and addresses
// of variables are registers too, filled before the start. -1 stands for "_".
struct Ins {
  Handler run;
  uint32_t flags;
  int32_t pc, line;     // index in the program; line of the PTX text
  int32_t pred;         // unit of the guard, -1: none
  bool negated;         // of the guard
  int32_t num_dst;      // the first so many operands are written
  std::vector<int32_t> op;
  std::vector<uint8_t> width;  // of each operand: bytes of its register (2, 4, 8, 16); 0: a predicate
  std::vector<int64_t> imm;  // what the key does not say: offsets, immediate lanes, targets (their pc), sizes
  uint64_t origins;     // of an address in global memory: bits of Program::pointers that it comes from; 0: unknown
  std::string text, key;
};

constexpr uint64_t ANYWHERE = 1ull << 63;  // in Ins::origins: or from a pointer that was found in memory

// Handlers announce themselves under an instruction's key: its opcode as PTX spells it ("add.rn.f32", "ld.shared.v4.b32")
// without cache hints (.L1::..., .L2::..., .ca, .cg, ...). An opcode that nobody announced stops the program when it is loaded.
void announce(const std::string &key, Handler run, uint32_t flags = PLAIN);
struct Announce {
  Announce(const char *key, Handler run, uint32_t flags = PLAIN) { announce(key, run, flags); }
};
#define SG_JOIN2(a, b) a##b
#define SG_JOIN(a, b) SG_JOIN2(a, b)
#define SG_ON(key, ...) static ::softgpu::Announce SG_JOIN(announced_, __COUNTER__)(key, __VA_ARGS__)

struct Program {
  std::string name;
  std::vector<Ins> code;
  int32_t num_units = 0;
  int32_t num_threads = 0;      // of a CTA
  int32_t max_registers = 0;    // .maxnreg, 0: unknown
  int32_t shared_static = 0;    // bytes of .shared variables, which lie at the start; dynamic memory follows
  int32_t local_bytes = 0;      // of .local variables, for each thread
  int32_t shared_granule = 4, global_granule = 4;  // bytes: the least access, powers of two; races are told apart by it
  bool uses_wgmma = false, has_atomics = false;
  int32_t cluster[3] = {1, 1, 1};
  std::vector<int32_t> pointers;  // offsets of the parameters that addresses come from; at most 63
  struct Constant { int32_t unit, bytes; uint64_t value; };
  struct Special { int32_t unit; int32_t which; };  // enum SpecialRegister
  std::vector<Constant> constants;
  std::vector<Special> specials;
};

// The order is lower.py's SPECIAL.
enum SpecialRegister : int32_t {
  TID_X, TID_Y, TID_Z, NTID_X, NTID_Y, NTID_Z, CTAID_X, CTAID_Y, CTAID_Z, NCTAID_X, NCTAID_Y, NCTAID_Z,
  LANEID, WARPID, NWARPID, SMID, NSMID, CLOCK, CLOCK_HI, CLOCK64, GLOBALTIMER, GRIDID, LANEMASK_EQ, LANEMASK_LE,
  LANEMASK_LT, LANEMASK_GE, LANEMASK_GT, CLUSTERID_X, CLUSTERID_Y, CLUSTERID_Z, NCLUSTERID_X, NCLUSTERID_Y,
  NCLUSTERID_Z, CLUSTER_CTAID_X, CLUSTER_CTAID_Y, CLUSTER_CTAID_Z, CLUSTER_NCTAID_X, CLUSTER_NCTAID_Y,
  CLUSTER_NCTAID_Z, CLUSTER_CTARANK, CLUSTER_NCTARANK, DYNAMIC_SMEM_SIZE, TOTAL_SMEM_SIZE,
};

// ---- order -----------------------------------------------------------------------------------------------------------

// Columns of a CTA's part of a vector clock: its warps; the wgmma or tcgen05 engine of each warp (it reads shared memory
// until that is waited for); the bulk engine of each warp, what it reads (shared memory) and what it writes (global memory) apart, for
// a wait may cover the reads only; a copy engine for each mbarrier.
constexpr int MAX_WARPS = 32, MAX_COPY_ENGINES = 64;
constexpr int WARP_COLUMN = 0, WGMMA_COLUMN = MAX_WARPS, BULK_COLUMN = 2 * MAX_WARPS, BULK_WRITE_COLUMN = 3 * MAX_WARPS,
              COPY_COLUMN = 4 * MAX_WARPS;
constexpr int COLUMNS = 4 * MAX_WARPS + MAX_COPY_ENGINES;  // of one CTA

// What has been seen: for every agent of the own cluster the clock up to which; of other clusters' by `foreign`, which
// atomics and their kin fill. `proxied` is the part of it that an asynchronous proxy sees too (fence.proxy.async).
struct Knowledge {
  std::vector<uint32_t> known, proxied;                              // [CTA of the cluster * COLUMNS + column]
  std::unordered_map<uint32_t, std::vector<uint32_t>> foreign;       // linear CTA -> [column]
  void join(const Knowledge &other);
};

enum class Proxy : uint8_t { GENERIC, ASYNC };

// Who makes an access. `clock` is his own at the time; `view` is what he knows.
struct Agent {
  Cta *cta;
  int16_t column, lane;
  uint32_t clock;
  const Knowledge *view;
  Proxy proxy;
  int32_t pc;
};

// A remembered access.
struct Stamp {
  uint32_t clock = 0, cta = 0;  // clock 0: none; cta: linear index of the grid, plus 1
  int16_t column = 0;
  int8_t lane = 0;
  Proxy proxy = Proxy::GENERIC;
  int32_t pc = -1;
};

bool ordered(const Stamp &before, const Agent &now);           // does `now` know of it (generic order)?
bool visible_to_async(const Stamp &before, const Agent &now);  // and through a proxy fence, where that is needed?

// ---- memory ----------------------------------------------------------------------------------------------------------

// Generic addresses: shared memory and parameters have windows where no host pointer can be.
constexpr uint64_t SHARED_WINDOW = 1ull << 60, PARAM_WINDOW = 1ull << 61, LOCAL_WINDOW = 1ull << 62;
// Addresses of .shared::cluster: bits 24 and up are 1 + the rank in the cluster; 0 means the own CTA.
constexpr int RANK_SHIFT = 24;

struct Space;   // shared memory of a CTA, with its shadow (shared_memory.cpp)
struct Global;  // global memory: the host's, inside registered allocations (global_memory.cpp)

// Checks of one access by one agent to `bytes` contiguous bytes. They report what is wrong, remember the access, and
// return where the bytes are, or nullptr if they must not be touched (out of bounds, misaligned). `undefined` becomes true
// if any of the bytes holds a value computed from what nobody wrote (shared memory only).
uint8_t *shared_read(Cta &owner, const Agent &who, uint32_t at, uint32_t bytes, uint32_t alignment, bool &undefined);
uint8_t *shared_write(Cta &owner, const Agent &who, uint32_t at, uint32_t bytes, uint32_t alignment, bool undefined,
                      const uint8_t *value);  // value: what will be stored (storing what is there already is no race);
                                              // nullptr if it is not known. The caller stores.
uint8_t *global_read(Machine &m, const Agent &who, uint64_t at, uint32_t bytes, uint32_t alignment);
uint8_t *global_write(Machine &m, const Agent &who, uint64_t at, uint32_t bytes, uint32_t alignment, const uint8_t *value);
// Bytes that an asynchronous copy will write: until `landed`, touching them is a finding.
void shared_in_flight(Cta &owner, const Agent &who, uint32_t at, uint32_t bytes, bool in_flight);
// An mbarrier (what 1) lives there from now on, or (0) no longer: ordinary accesses to it are findings.
void shared_mark(Cta &owner, uint32_t at, uint32_t bytes, int32_t what, int32_t pc);
void shared_reset(Cta &owner, uint32_t bytes);  // before a CTA starts: poisoned, never written
uint8_t *shared_bytes(Cta &owner);              // the raw bytes, no checks
uint32_t shared_size(Cta &owner);

// ---- warps -----------------------------------------------------------------------------------------------------------

// Lanes of a warp that are at the same instruction. Diverged lanes are several fragments; the one with the least pc runs
// first, and fragments that meet become one.
struct Fragment {
  int32_t pc;
  Mask mask;
  uint64_t tried = 0;    // Machine::events when it last failed: no retry before something happened. 0: runnable
  bool asleep = false;   // until `wake`
  bool expired = false;  // a wait at an mbarrier here may fail
};

struct Warp {
  Machine *machine;
  Cta *cta;
  int32_t index;     // in its CTA
  int32_t slot;      // among all resident warps
  Mask alive;        // lanes that have not exited
  std::vector<Fragment> fragments;  // sorted by pc
  size_t current = 0;               // the fragment that runs
  std::vector<uint8_t> file;        // num_units * UNIT bytes
  std::vector<Mask> undefined;      // [unit]: lanes whose value comes from what nobody wrote (first unit of a register)
  std::vector<uint8_t> busy;        // [unit]: BUSY_* of wgmmas in flight
  std::vector<uint64_t> wrote;      // [unit]: `steps` of the last write; kept if the program uses wgmma
  int32_t num_busy = 0;
  uint64_t steps = 0;               // instructions executed
  uint64_t polled = 0;              // Machine::events when it last asked an mbarrier in vain
  uint32_t clock = 1, wgmma_clock = 0, bulk_clock = 0;
  Knowledge view;
  Knowledge released;               // what it knew at its last fence.acq_rel or membar; published by relaxed writes
  bool has_released = false;
  Knowledge pending;                // what relaxed reads found; acquired by the next fence
  bool has_pending = false;
  int32_t registers = 0;            // of each thread; setmaxnreg moves it
  std::vector<uint8_t> local;       // .local memory, for all lanes
  // State of cp.async, wgmma, tcgen05 and bulk groups and of what was written to local memory: owned by their files.
  std::shared_ptr<void> copies, wgmmas, tcgen05s, bulks, locals;
  std::shared_ptr<void> tensor_uses;  // owned by tensor_memory.cpp

  template <class T> T *reg(int32_t unit) { return reinterpret_cast<T *>(file.data() + size_t(unit) * UNIT); }
  Mask &pred(int32_t unit) { return *reg<Mask>(unit); }
  Fragment &now() { return fragments[current]; }
  int thread(int lane) const { return index * LANES + lane; }
};
constexpr uint8_t BUSY_WRITTEN = 1, BUSY_READ = 2;  // an accumulator of a wgmma in flight; its A operand

Agent agent(Warp &w, const Ins &i, int lane);                       // the thread itself, by the generic proxy
Agent engine(Warp &w, const Ins &i, int column, uint32_t clock, const Knowledge &view);  // an asynchronous engine
void tick(Warp &w);                                                 // what follows is later than what came before
// True if all living lanes of `members` are in the running fragment (else RETRY: the others may come).
bool gathered(Warp &w, Mask members);
Step nothing(Warp &, const Ins &, Mask);           // the handler of instructions that only hint
std::string name_of(const Warp &w);                // "CTA 3 warp 1"
std::string name_of(const Warp &w, int lane);      // "CTA 3 warp 1 lane 0"

struct Barrier {  // a named barrier of a CTA
  int32_t expected = 0, arrived = 0;  // threads
  std::vector<Warp *> sleeping;
  Knowledge met;
  uint32_t popc = 0;
  bool any = false, all = true;
  struct Reply { Warp *warp; int32_t unit; int32_t kind; Mask mask; };
  std::vector<Reply> replies;
};

struct Cta {
  Machine *machine;
  uint32_t linear;                 // in the grid
  uint32_t id[3];
  uint32_t rank = 0;               // in its cluster
  std::vector<Cta *> cluster;      // by rank; itself alone if there are no clusters
  std::vector<std::unique_ptr<Warp>> warps;
  std::vector<Barrier> barriers;   // 16
  std::unique_ptr<Space, void (*)(Space *)> shared{nullptr, nullptr};
  int32_t free_registers = 0;      // what setmaxnreg.dec gave back, for each thread of a warp
  int32_t living = 0;              // warps
  uint32_t column_base() const { return rank * COLUMNS; }
  std::shared_ptr<void> mbarriers; // owned by mbarrier.cpp
  std::shared_ptr<void> cluster_barrier;  // of a cluster's first CTA: owned by cluster.cpp
  std::shared_ptr<void> tensor_memory;    // owned by tensor_memory.cpp
  uint32_t copy_clock[MAX_COPY_ENGINES] = {};
};

// ---- the machine -----------------------------------------------------------------------------------------------------

enum class Schedule : int32_t {
  FORWARD,   // the first warp that can run, as far as it can
  BACKWARD,  // the last one
  TURNS,     // each in turn, some instructions
  RANDOM,    // any, for any time
  WORST,     // by random priorities that change seldom: one warp far ahead of, or far behind, all others
};
enum class Landing : int32_t { LATE, EARLY, RANDOM };  // when asynchronous copies arrive

struct Finding {
  std::string kind, text;
  int32_t pc, other_pc;
  uint64_t count;
};

struct Count {       // of an instruction (by pc)
  uint64_t executed = 0, lanes = 0;          // by warps; by their lanes
  uint64_t bytes = 0;                        // moved
  uint64_t transactions = 0, ideal = 0;      // sectors of 32 bytes (global), wavefronts (shared), and the least possible
};

// Something that happens later: a copy that lands. Kept in the machine, so that the schedule decides when.
struct Pending {
  virtual ~Pending() = default;
  virtual void land(Machine &m) = 0;
  Cta *cta = nullptr;
};

struct Machine {
  const Program *program;
  Global *global;
  std::vector<uint8_t> params;
  uint32_t grid[3], num_ctas, shared_bytes;
  int32_t resident;            // CTAs at a time
  int32_t num_sms = 1;
  Schedule schedule = Schedule::FORWARD;
  Landing landing = Landing::LATE;
  uint64_t seed = 0, random_state = 1;
  int32_t approx = 0;          // special functions: 0 correctly rounded, +1 / -1 off by their documented error, 2: by value
  bool check = true;           // races and what nobody wrote
  bool check_lanes = true;     // races among lanes of one warp
  uint64_t max_steps = 0;      // warp instructions, 0: no limit
  uint64_t steps = 0, events = 1;
  bool stopped = false;
  std::vector<std::unique_ptr<Cta>> ctas;  // resident ones
  std::deque<std::unique_ptr<Pending>> pending;
  std::vector<Finding> findings;
  std::map<std::tuple<std::string, int, int>, size_t> finding_index;
  std::vector<Count> counts;
  std::shared_ptr<void> atomics;           // clocks of locations: owned by order.cpp
  std::shared_ptr<void> tensor_maps;       // those that the kernel itself makes: owned by tensor_map.cpp

  uint64_t random();                       // the schedule's own; splitmix64
  void happened() { events++; }            // wakes whoever retries
  void later(std::unique_ptr<Pending> p);  // lands by `landing`
  // Text is made only for the first of a kind at a pair of places.
  void add(const char *kind, int32_t pc, const std::string &text, int32_t other_pc = -1, uint64_t count = 1);
  bool has(const char *kind, int32_t pc, int32_t other_pc = -1);
  std::string where(int32_t pc) const;     // "PTX line 12: `add...`"
};

std::string format(const char *pattern, ...) __attribute__((format(printf, 1, 2)));
inline Mask lanes_below(int lane) { return (Mask(1) << lane) - 1; }
#define SG_FOR_LANES(lane, mask) \
  for (::softgpu::Mask left_ = (mask); left_; left_ &= left_ - 1) \
    if (const int lane = __builtin_ctz(left_); true)

// Atomics as synchronisation (order.cpp): what a location's last release published.
void release_to(Warp &w, uint64_t address);     // release: publish all that the warp knows, itself included
void acquire_from(Warp &w, uint64_t address);   // acquire: learn what was published there
void relaxed_write(Warp &w, uint64_t address);  // publishes what the last fence released
void relaxed_read(Warp &w, uint64_t address);   // is acquired by the next fence

// cp.async.mbarrier.arrive of a lane (mbarrier.cpp). At the instruction: the mbarrier at `address` must exist and, without
// .noinc, awaits an arrival more. When the lane's earlier cp.async have landed: that arrival, with what was known at the
// instruction. False: it could not be done, and no arrival follows.
bool mbarrier_expect_copies(Warp &w, const Ins &i, int lane, uint64_t address, bool noinc);
void mbarrier_arrive_copies(Warp &w, const Ins &i, int lane, uint64_t address, const Knowledge &view);

}  // namespace softgpu
