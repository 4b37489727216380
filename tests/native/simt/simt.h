// A SIMT executor on the host. It runs CUDA C++ kernels that the host compiler has compiled, one block after another,
// with one fiber per thread, and it reports mistakes that a GPU would not report.
//
// The kernels' sources are unchanged. They include the <cuda_runtime.h> of this directory and are compiled with
// -fsanitize=thread. The compiler then calls __tsan_read4 or a similar function before every memory access, and the
// executor defines these functions. An access is an error if
//   - it is outside the buffers, the launch's shared memory and the thread's own stack, or is not aligned;
//   - it writes to an input, or reads a byte that has not been written;
//   - another thread accesses the same byte, one of the two writes, and no barrier is between both accesses.
//     __syncthreads orders the threads of a block, __syncwarp those of a warp, the end of a launch all threads. As the
//     CUDA manual says, a shuffle orders nothing. A __syncwarp whose mask leaves out lanes of the warp orders nothing;
//   - a cp.async to the bytes is pending: a copy takes effect when its thread waits for it.
// A barrier or shuffle at which some of its threads do not arrive is an error, and so is a launch that a GPU would
// refuse. Errors name the kernel, the block and the threads.
//
// Kernels must not use atomics, named barriers, pointers into another thread's stack, or memcpy and memset on memory
// that other threads can access. -fsanitize=bounds checks a thread's own arrays. A pointer that leaves a `__shared__`
// variable for its neighbour is only found if the access is a race there or reads an unwritten byte. The bounds of
// dynamic shared memory are exact.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

namespace simt {

struct Index {
  unsigned x = 1, y = 1, z = 1;
};

// ---------------------------------------------------------------- for the code that runs kernels

enum class Access { input, output };

// Resets the executor: no buffers, no error. `seed` draws the order of blocks and of threads; 0 is their natural order.
// With `bounds_only`, races and reads of unwritten bytes are not errors.
void begin(uint64_t seed, bool bounds_only = false);
// Returns device memory of `bytes` bytes that starts `offset` bytes after a multiple of 256. An input is a copy of
// `host`, an output is unwritten. Errors call the memory `name`.
void* add_buffer(const char* name, Access access, const void* host, size_t bytes, size_t offset = 0);
// Copies a whole buffer to the host.
void read_buffer(const void* device, void* host);
// The first error since begin(), null if there is none.
const char* error();
// The bytes that all threads have read of the input `name` since begin(), except by cp.async.
uint64_t bytes_read(const char* name);
// The kernels launched since begin(), one per line.
const char* launched();
// Sets the error, unless there is one.
void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---------------------------------------------------------------- for launch.h and async.h

struct Launch {
  const void* kernel;
  Index grid, block;
  size_t shared_bytes;
  size_t parameter_bytes;
  void (*run_thread)(const void* call);
  const void* call;  // contains the kernel's parameters
  size_t call_bytes;
};
void run(const Launch& launch);

// Runs a kernel, unless there is an error. Parameters are passed by value, as on a GPU.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Index grid, Index block, size_t shared_bytes, Arguments&&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  };
  const Call call{kernel, {static_cast<Parameters>(std::forward<Arguments>(arguments))...}};
  run({reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, (size_t{0} + ... + sizeof(Parameters)),
       [](const void* p) {
         const Call& c = *static_cast<const Call*>(p);
         std::apply(c.kernel, c.parameters);
       },
       &call, sizeof call});
}

// The dynamic shared memory of the running block, aligned to 1024 bytes.
void* dynamic_shared();

// cp.async of 4, 8 or 16 bytes to shared memory. The first `valid_bytes` are copied, the others become zeros.
void copy_async(void* shared, const void* global, int bytes, int valid_bytes);
void wait_all();  // waits for the copies of the running thread

// ---------------------------------------------------------------- for cuda_runtime.h

__attribute__((const)) Index thread_index();
__attribute__((const)) Index block_index();
__attribute__((const)) Index block_size();
__attribute__((const)) Index grid_size();

// The place of a barrier in the source. Default arguments give the place of the call, and duplicates that the compiler
// makes of the call keep it.
struct Site {
  const char* file;
  int line;
};
#define SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

void block_barrier(Site site);
// Waits for all lanes of `mask`. Each lane gets the `value` of its lane `source`.
uint64_t warp_collective(const char* name, unsigned mask, uint64_t value, unsigned source, Site site);

template <class T>
T shuffle(const char* name, unsigned mask, T value, unsigned source, Site site) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = warp_collective(name, mask, bits, source, site);
  memcpy(&value, &bits, sizeof(T));
  return value;
}
unsigned lane();

}  // namespace simt
