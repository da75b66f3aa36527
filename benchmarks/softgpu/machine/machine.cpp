// What every part of the machine uses: the table of handlers, findings, chance.
#include "machine.h"
#include <cstdarg>
#include <cstdio>
#include "launch.h"

namespace softgpu {

std::unordered_map<std::string, std::pair<Handler, uint32_t>> &handlers() {
  static std::unordered_map<std::string, std::pair<Handler, uint32_t>> all;
  return all;
}

void announce(const std::string &key, Handler run, uint32_t flags) { handlers()[key] = {run, flags}; }

std::string format(const char *pattern, ...) {
  va_list args, again;
  va_start(args, pattern);
  va_copy(again, args);
  std::string text(size_t(vsnprintf(nullptr, 0, pattern, args)), '\0');
  vsnprintf(text.data(), text.size() + 1, pattern, again);
  va_end(args);
  va_end(again);
  return text;
}

Step nothing(Warp &, const Ins &, Mask) { return Step::NEXT; }

// ---- findings and chance ---------------------------------------------------------------------------------------------

void Machine::add(const char *kind, int32_t pc, const std::string &text, int32_t other_pc, uint64_t count) {
  const auto [at, fresh] = finding_index.try_emplace({kind, pc, other_pc}, findings.size());
  if (fresh)
    findings.push_back({kind, text, pc, other_pc, count});
  else
    findings[at->second].count += count;
}

bool Machine::has(const char *kind, int32_t pc, int32_t other_pc) {
  const auto at = finding_index.find({kind, pc, other_pc});
  if (at == finding_index.end()) return false;
  findings[at->second].count++;
  return true;
}

std::string name_of(const Warp &w) { return format("CTA %u warp %d", w.cta->linear, w.index); }

std::string name_of(const Warp &w, int lane) { return name_of(w) + format(" lane %d", lane); }

std::string Machine::where(int32_t pc) const {
  if (pc < 0 || size_t(pc) >= program->code.size()) return "the start";
  const Ins &i = program->code[pc];
  return format("PTX line %d: `%s`", i.line, i.text.c_str());
}

uint64_t Machine::random() {  // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

void Machine::later(std::unique_ptr<Pending> p) {
  if (landing == Landing::EARLY) {
    p->land(*this);
    happened();
    return;
  }
  pending.push_back(std::move(p));
}

}  // namespace softgpu
