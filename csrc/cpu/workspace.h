// The scratch memory of the calling thread, and huge pages.
#pragma once

#include <cstdint>

namespace sparsegan {

// Returns at least `bytes` of scratch memory of the calling thread, aligned to a cache line, with undefined contents.
// Later calls in the same thread reuse the memory and may move it. It is freed when the thread ends.
char* reserve_workspace(int64_t bytes);

// Returns the bytes of scratch memory that all threads hold now. The memory of a thread grows to its largest call.
int64_t workspace_bytes();

// Offsets of arrays that lie one after the other in the workspace. Each array starts on a new cache line.
class WorkspaceLayout {
 public:
  // Adds an array; returns its offset.
  int64_t add(int64_t bytes) {
    const int64_t at = size_;
    size_ += (bytes + 63) / 64 * 64;
    return at;
  }
  int64_t size() const { return size_; }

 private:
  int64_t size_ = 0;
};

// Asks the system for huge pages in the part of the memory that whole huge pages can cover. Linux only.
void prefer_huge_pages(void* data, int64_t bytes);

}  // namespace sparsegan
