#include "isa.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <stdexcept>

namespace sparsegan {
namespace {

struct Entry {
  const Kernels* kernels;
  bool (*supported)();
};

#define SPARSEGAN_ROW(name, lanes_f32, lanes_f64, registers, sums, max_rows, max_width, has_it) \
  {&kernels_##name, [] { return bool(has_it); }},
const Entry entries[] = {SPARSEGAN_ISAS(SPARSEGAN_ROW)};
#undef SPARSEGAN_ROW

#if defined(__x86_64__)
// Copies the kernels of the short precisions that `more` has into `table`.
void add_shorts(const Kernels& more, Kernels& table) {
  for (int row = kTensorTypes; row < kRows; ++row) {
    if (!more.pack[row]) continue;
    const int panel = kDTypes[row].panel_type;
    table.pack[row] = more.pack[row];
    table.max_tile[panel][0] = more.max_tile[panel][0];
    table.sparse_conv[panel][0] = more.sparse_conv[panel][0];
    table.sparse_conv_codes[panel][0] = more.sparse_conv_codes[panel][0];
  }
  table.short_precisions |= more.short_precisions;
}

// The table of AVX-512 with the further instructions of this machine.
const Kernels& full_avx512() {
  static const Kernels table = [] {
    Kernels k = kernels_avx512;
    if (__builtin_cpu_supports("avx512vnni")) add_shorts(kernels_avx512_vnni, k);
    if (__builtin_cpu_supports("avx512bf16")) add_shorts(kernels_avx512_bf16, k);
    return k;
  }();
  return table;
}
#endif

const Kernels* of_this_machine(const Kernels* table) {
#if defined(__x86_64__)
  if (table == &kernels_avx512) return &full_avx512();
#endif
  return table;
}

std::string names(const std::vector<std::string>& list) {
  std::string text;
  for (const std::string& name : list) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const Kernels* find(const std::string& name, const char* asked_by) {
  for (const Entry& entry : entries) {
    if (entry.supported() && (name.empty() || name == entry.kernels->isa)) return of_this_machine(entry.kernels);
  }
  throw std::invalid_argument(std::string(asked_by) + " is '" + name +
                              "'; this machine and build accept: " + names(supported_isas()));
}

std::atomic<const Kernels*> in_use{nullptr};

}  // namespace

std::vector<std::string> built_isas() {
  std::vector<std::string> list;
  for (const Entry& entry : entries) list.emplace_back(entry.kernels->isa);
  return list;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> list;
  for (const Entry& entry : entries) {
    if (entry.supported()) list.emplace_back(entry.kernels->isa);
  }
  return list;
}

const Kernels& kernels() {
  const Kernels* table = in_use.load(std::memory_order_acquire);
  if (!table) {
    const char* asked = std::getenv("SPARSEGAN_CPU_ISA");
    table = find(asked ? asked : "", "SPARSEGAN_CPU_ISA");
    in_use.store(table, std::memory_order_release);
  }
  return *table;
}

void set_isa(const std::string& name) { in_use.store(find(name, "isa"), std::memory_order_release); }

double fma_gflops() {
  const Kernels& k = kernels();
  constexpr int64_t kIterations = 200000;
  double best = 0;
  for (int run = 0; run < 20; ++run) {
    const auto start = std::chrono::steady_clock::now();
    volatile float result = k.fma(kIterations);
    (void)result;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, 2e-9 * double(kIterations) * double(kFmaChains * k.lanes[kFloatPanel]) / seconds);
  }
  return best;
}

}  // namespace sparsegan
