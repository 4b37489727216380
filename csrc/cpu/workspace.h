// Memory: the scratch memory of the calling thread, and huge pages.
#pragma once

#include <cstdint>

namespace sparsegan {

// Scratch memory of the calling thread, at least `bytes`, aligned to a cache line; contents undefined. The next call in
// this thread may move it, every later call reuses it, and it is freed with the thread.
char* reserve_workspace(int64_t bytes);

// Bytes of scratch memory held by all threads now. It grows to the largest call and is reused.
int64_t workspace_bytes();

// Offsets of arrays that lie one after the other in the workspace, each on its own cache line.
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

// Asks for huge pages where whole ones lie in the memory and the system gives them.
void prefer_huge_pages(void* data, int64_t bytes);

}  // namespace sparsegan
