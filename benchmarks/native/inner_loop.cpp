// The inner loop of the sparse_conv kernel alone, with all data in the first-level cache. benchmarks/roofline.py
// compares layers with this ceiling. The ISA is always AVX2.
#define SPARSEGAN_ISA avx2
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <random>
#include <vector>

#include "../../csrc/cpu/kernels/sparse_conv.h"

namespace {

using namespace sparsegan;
using namespace sparsegan::avx2;

constexpr int kLanes = 8;

template <class Body>
double best_seconds(const Body& body) {
  double best = 1e9;
  for (int run = 0; run < 50; ++run) {
    const auto start = std::chrono::steady_clock::now();
    body();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

float* floats(size_t count) {
  auto* const data = static_cast<float*>(std::aligned_alloc(4096, (count * 4 + 4095) / 4096 * 4096));
  std::fill(data, data + count, 1.0f);
  return data;
}

}  // namespace

// GFLOP/s of FMAs that read one operand from 16 KiB of memory in order, without codes and offsets.
extern "C" double fma_from_cache_gflops() {
  constexpr int kVectors = 512, kSums = 12, kRounds = 200;
  float* const x = floats(kVectors * kLanes);
  volatile float keep = 0;
  const double seconds = best_seconds([&] {
    Vec<float, kLanes> sums[kSums] = {};
    const auto v = broadcast<float, kLanes>(0.5f);
    for (int round = 0; round < kRounds; ++round) {
      for (int i = 0; i + kSums <= kVectors; i += kSums) {
#pragma GCC unroll 12
        for (int k = 0; k < kSums; ++k) sums[k] += v * load<float, kLanes>(x + (i + k) * kLanes);
      }
    }
    for (int k = 1; k < kSums; ++k) sums[0] += sums[k];
    keep = sums[0][0];
  });
  std::free(x);
  return 2e-9 * kRounds * (kVectors / kSums * kSums) * kLanes / seconds;
}

// GFLOP/s of the 3 x 4 register tile over random taps of a 3x3 kernel, with 8 source channels and on average `taps`
// taps per target.
extern "C" double sparse_conv_tile_gflops(int taps) {
  constexpr int kTargets = 256, kChannels = 8, kRows = 5, kCols = 6, kR = 3, kQ = 4;
  std::mt19937 random(1);
  struct Record {
    int32_t offset;
    float value;
  };
  std::vector<int32_t> rows(1, 0);
  std::vector<Record> records;
  std::binomial_distribution<int> count(10 * taps, 0.1);
  for (int target = 0; target < kTargets; ++target) {
    for (int n = count(random); n > 0; --n) {
      const int code = static_cast<int>(random() % (kChannels * 9));
      const int offset = (code / 9 * kRows * kCols + code % 9 / 3 * kCols + code % 3) * kLanes;
      records.push_back({offset, 1e-3f});
    }
    rows.push_back(static_cast<int32_t>(records.size()));
  }
  const auto total = static_cast<double>(records.size());
  records.resize(records.size() + 2);
  float* const x = floats(kChannels * kRows * kCols * kLanes);
  float* const y = floats(kTargets * kR * kQ * kLanes);
  const RecordRange range{records.data(), rows.data(), 1, 0, kTargets};
  const double seconds = best_seconds([&] {
    sparse_conv_tile<Single<float>, kLanes, 1, kR, kQ>(range, x, kCols * kLanes, y, kQ * kLanes, kR * kQ * kLanes,
                                                       nullptr, nullptr);
  });
  std::free(x);
  std::free(y);
  return 2e-9 * total * kR * kQ * kLanes / seconds;
}
