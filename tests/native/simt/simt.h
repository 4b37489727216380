// A SIMT executor on the host: runs CUDA C++ kernels, compiled by the host compiler, one block after another with every
// thread a fiber, and checks what a GPU would not say.
//
// The kernels' sources stay as they are. They include <cuda_runtime.h>, which is found in this directory, and are
// compiled with -fsanitize=thread: the compiler then calls __tsan_read4 and its like before every access to memory, and
// the executor is what it calls. An access is an error, with the kernel, block and threads named, when
//   - it is outside the buffers given, the shared memory asked for, and the thread's own stack, or is not aligned;
//   - it writes to an input, or reads what nobody has written;
//   - another thread touches the same byte, one of the two writes, and no barrier is between them. __syncthreads orders
//     the threads of a block, __syncwarp those of a warp, the end of a launch everybody; shuffles nobody, as the CUDA
//     manual has it, nor a __syncwarp whose mask leaves lanes of the warp out;
//   - cp.async is still writing the bytes: a copy takes effect when its thread waits for it, and not before.
// So is a barrier or shuffle at which some of its threads do not arrive, and a launch that a GPU would refuse.
//
// Kernels must not use atomics, named barriers, memcpy or memset on what is not their own, or pointers into another
// thread's stack. A thread's own arrays are checked by -fsanitize=bounds. Of two `__shared__` variables side by side, a
// pointer that leaves one is only caught by what the other's threads make of it; dynamic shared memory is exact.
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

// Starts anew: no buffers, no error. `seed` draws the order of blocks and of threads; 0 is their natural order.
// `bounds_only`: neither races nor unwritten bytes are errors.
void begin(uint64_t seed, bool bounds_only = false);
// Device memory of `bytes` bytes that starts `offset` bytes after a multiple of 256: a copy of the host's (input), or
// unwritten (output). `name` is what errors call it.
void* add_buffer(const char* name, Access access, const void* host, size_t bytes, size_t offset = 0);
// Copies a buffer back.
void read_buffer(const void* device, void* host);
// The first error since begin(), null when there is none.
const char* error();
// The kernels launched since begin(), a line each.
const char* launched();
void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---------------------------------------------------------------- for launch.h and async.h

struct Launch {
  const void* kernel;
  Index grid, block;
  size_t shared_bytes;
  size_t parameter_bytes;
  void (*run_thread)(const void* call);
  const void* call;  // the kernel's parameters are in it
  size_t call_bytes;
};
void run(const Launch& launch);

// Does nothing once there is an error. Kernels' parameters go by value, as on a GPU.
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

// cp.async of 4, 8 or 16 bytes to shared memory, of which the first `valid_bytes` are read and the others are zeros.
void copy_async(void* shared, const void* global, int bytes, int valid_bytes);
void wait_all();  // for the copies of the running thread

// ---------------------------------------------------------------- for cuda_runtime.h

__attribute__((const)) Index thread_index();
__attribute__((const)) Index block_index();
__attribute__((const)) Index block_size();
__attribute__((const)) Index grid_size();

// Where a barrier stands in the source: its call fills it in, and copies that the compiler makes of the call keep it.
struct Site {
  const char* file;
  int line;
};
#define SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

void block_barrier(Site site);
// All lanes of `mask` meet here; each gets the `value` of lane `source`.
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
