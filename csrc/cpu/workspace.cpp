#include "workspace.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <atomic>
#include <cstdlib>
#include <new>

namespace sparsegan {
namespace {

constexpr int64_t kPage = 4096, kHugePage = 2 << 20;

std::atomic<int64_t> total{0};

class Workspace {
 public:
  ~Workspace() { release(); }

  char* reserve(int64_t bytes) {
    if (bytes > capacity_) {
      release();
      const int64_t page = bytes >= kHugePage ? kHugePage : kPage, rounded = (bytes + page - 1) / page * page;
      data_ = static_cast<char*>(std::aligned_alloc(static_cast<size_t>(page), static_cast<size_t>(rounded)));
      if (!data_) throw std::bad_alloc();
      prefer_huge_pages(data_, rounded);  // a kernel reads many planes, which lie far apart
      capacity_ = rounded;
      total += capacity_;
    }
    return data_;
  }

 private:
  void release() {
    std::free(data_);
    total -= capacity_;
    data_ = nullptr;
    capacity_ = 0;
  }

  char* data_ = nullptr;
  int64_t capacity_ = 0;
};

thread_local Workspace workspace;

}  // namespace

char* reserve_workspace(int64_t bytes) { return workspace.reserve(bytes); }

int64_t workspace_bytes() { return total; }

void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  const auto first = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

}  // namespace sparsegan
