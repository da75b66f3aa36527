// What Python calls, by ctypes (engine.py). Everything is handed over as plain numbers and zero-terminated text.
#include <algorithm>
#include "launch.h"
#include "memory.h"

using namespace softgpu;

namespace {

struct Settings {  // engine.py: _Settings
  int32_t schedule, landing, approx, resident, num_sms, check, check_lanes;
  uint64_t seed, max_steps;
};

}  // namespace

extern "C" {

Program *sg_program_new(const char *name, const int32_t *numbers, const int32_t *cluster) {
  auto *p = new Program;
  p->name = name;
  p->num_units = numbers[0], p->num_threads = numbers[1], p->max_registers = numbers[2], p->shared_static = numbers[3];
  p->local_bytes = numbers[4], p->shared_granule = numbers[5], p->global_granule = numbers[6];
  p->uses_wgmma = numbers[7] != 0, p->has_atomics = numbers[8] != 0;
  std::copy(cluster, cluster + 3, p->cluster);
  return p;
}

void sg_program_delete(Program *p) { delete p; }

// 0 if nobody has announced the key.
int32_t sg_program_add(Program *p, const char *key, const char *text, const int32_t *numbers, const int32_t *op,
                       const uint8_t *width, int32_t num_op, const int64_t *imm, int32_t num_imm, uint64_t origins) {
  const auto found = handlers().find(key);
  if (found == handlers().end()) return 0;
  Ins i;
  i.run = found->second.first, i.flags = found->second.second;
  i.pc = int32_t(p->code.size());
  i.line = numbers[0], i.pred = numbers[1], i.negated = numbers[2] != 0, i.num_dst = numbers[3];
  i.op.assign(op, op + num_op);
  i.width.assign(width, width + num_op);
  i.imm.assign(imm, imm + num_imm);
  i.origins = origins;
  i.text = text, i.key = key;
  p->code.push_back(std::move(i));
  return 1;
}

void sg_program_constant(Program *p, int32_t unit, int32_t bytes, uint64_t value) {
  p->constants.push_back({unit, bytes, value});
}

void sg_program_special(Program *p, int32_t unit, int32_t which) { p->specials.push_back({unit, which}); }

void sg_program_pointer(Program *p, int32_t offset) { p->pointers.push_back(offset); }

Global *sg_memory_new() { return global_create(); }
void sg_memory_delete(Global *g) { global_destroy(g); }

int32_t sg_memory_register(Global *g, uint64_t start, uint64_t bytes, const char *name, int32_t tracked) {
  return global_register(*g, start, bytes, name, Tracked(tracked));
}

void sg_memory_forget(Global *g, int32_t allocation) { global_forget(*g, allocation); }

Machine *sg_run(const Program *p, Global *g, const uint8_t *params, uint64_t num_params, const uint32_t *grid,
                uint32_t shared_bytes, const int32_t *allowed, uint64_t num_allowed, const Settings *s) {
  auto *m = new Machine;
  m->program = p, m->global = g;
  m->params.assign(params, params + num_params);
  std::copy(grid, grid + 3, m->grid);
  m->num_ctas = grid[0] * grid[1] * grid[2];
  m->shared_bytes = shared_bytes;
  m->schedule = Schedule(s->schedule), m->landing = Landing(s->landing);
  m->approx = s->approx, m->resident = s->resident, m->num_sms = s->num_sms;
  m->check = s->check != 0, m->check_lanes = s->check_lanes != 0;
  m->seed = s->seed, m->max_steps = s->max_steps;
  global_begin_launch(*g, *p, m->params, allowed, num_allowed);
  run(*m);
  return m;
}

void sg_machine_delete(Machine *m) { delete m; }
uint64_t sg_steps(const Machine *m) { return m->steps; }
uint64_t sg_num_findings(const Machine *m) { return m->findings.size(); }
const char *sg_finding_kind(const Machine *m, uint64_t k) { return m->findings[k].kind.c_str(); }
const char *sg_finding_text(const Machine *m, uint64_t k) { return m->findings[k].text.c_str(); }

void sg_finding_numbers(const Machine *m, uint64_t k, int64_t *out) {
  const Finding &f = m->findings[k];
  out[0] = f.pc, out[1] = f.other_pc, out[2] = int64_t(f.count);
}

// Of each instruction: executed, lanes, bytes, transactions, ideal.
void sg_counts(const Machine *m, uint64_t *out) {
  for (const Count &c : m->counts) {
    *out++ = c.executed, *out++ = c.lanes, *out++ = c.bytes, *out++ = c.transactions, *out++ = c.ideal;
  }
}

// Newline-separated, sorted; owned by the library.
const char *sg_keys() {
  static std::string all;
  std::vector<std::string> names;
  for (const auto &[key, handler] : handlers()) names.push_back(key);
  std::sort(names.begin(), names.end());
  all.clear();
  for (const auto &name : names) all += name + "\n";
  return all.c_str();
}

}  // extern "C"
