// The SIMT executor, which simt.h describes. This file is compiled without the instrumentation that it implements.
#include <cxxabi.h>
#include <dlfcn.h>
#include <link.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "simt.h"

namespace simt {
namespace {

// The limits of a launch on a GPU of compute capability 9.0.
constexpr unsigned max_threads = 1024;
constexpr size_t max_shared = 48 * 1024, max_parameters = 4096;  // shared memory: the default limit
constexpr unsigned max_grid_yz = 65535, max_block_z = 64;

constexpr unsigned warp_lanes = 32;
constexpr size_t page = 64 * 1024, stack_bytes = 2 * page;  // page: a multiple of the machine's page size

// ---------------------------------------------------------------- shadow memory

// A clock counts barriers, warp barriers, and starts of blocks and launches. Every access is stamped with its time.
using Stamp = uint32_t;
using ThreadId = uint16_t;
constexpr ThreadId nobody = 0xffff, other_block = 0xfffe;

// The accesses to one byte. Two readers since the last write are enough to find a reader that a writer is not ordered
// after, because the two are of different warps if any two readers are.
struct Cell {
  Stamp written = 0, read = 0;
  ThreadId writer = nobody, reader = nobody, second_reader = nobody;
  bool copying = false;  // a cp.async to the byte is pending
};

struct Region {
  const char* name = nullptr;
  uintptr_t start = 0;
  size_t bytes = 0;
  bool read_only = false, shared = false;
  uint64_t bytes_read = 0;  // of a read-only region, by all threads
  std::vector<Cell> cells;  // none for a read-only region
};

// The address space is divided into slots, with one region in the middle of each. An address therefore identifies its
// region even if it is far out of bounds.
constexpr int slot_bits = 36, slots = 32, shared_slot = 0;
constexpr size_t slot_bytes = size_t{1} << slot_bits;

// ---------------------------------------------------------------- threads

enum class State : uint8_t { ready, waiting, exited };

struct Copy {
  char* shared;
  const char* global;
  int bytes, valid_bytes;
};

struct Fiber {
  jmp_buf context;
  ucontext_t first;
  bool started = false;
  uintptr_t stack = 0;
  ThreadId id = 0;
  Index index;
  State state = State::exited;
  // The barrier that the thread waits for: a block barrier (mask 0) or a warp collective.
  const char* name = nullptr;
  Site site{};
  unsigned mask = 0, source = 0;
  uint64_t value = 0;
  std::vector<Copy> copies;
};

struct Symbol {
  uintptr_t start;
  size_t bytes;
  std::string name;
};

struct Executor {
  char* arena = nullptr;
  Region regions[slots];
  int used_slots = 1;
  Region statics;                              // the module's variables; those of kernels are `__shared__`
  uintptr_t module_start = 0, module_end = 0;  // the module, constants included
  std::vector<Symbol> symbols;                 // the module's variables and functions, by address

  Fiber fibers[max_threads];
  jmp_buf scheduler;
  Fiber* self = nullptr;  // the running thread; null in host code
  std::mt19937_64 random;
  bool shuffled = false, bounds_only = false;
  std::vector<unsigned> order;  // of threads

  const Launch* launch = nullptr;
  Index block;
  unsigned threads = 0;
  Stamp clock = 1, launch_start = 1, block_start = 1, barrier = 1;
  Stamp warp_barrier[max_threads / warp_lanes] = {};

  std::string error;
  std::string launched;  // names of kernels, a line each
};

// On the heap, because the module's variables count as shared memory.
Executor& ex = *new Executor;

// ---------------------------------------------------------------- errors

std::string format(const char* form, va_list arguments) {
  char text[1024];
  vsnprintf(text, sizeof text, form, arguments);
  return text;
}

__attribute__((format(printf, 1, 2))) std::string text(const char* form, ...) {
  va_list arguments;
  va_start(arguments, form);
  std::string result = format(form, arguments);
  va_end(arguments);
  return result;
}

std::string readable(const char* name) {
  char* demangled = abi::__cxa_demangle(name, nullptr, nullptr, nullptr);
  std::string result = demangled != nullptr ? demangled : name;
  free(demangled);
  return result;
}

// The last symbol that starts at or before an address.
const Symbol* symbol_before(uintptr_t address) {
  auto after = std::upper_bound(ex.symbols.begin(), ex.symbols.end(), address,
                                [](uintptr_t a, const Symbol& s) { return a < s.start; });
  return after == ex.symbols.begin() ? nullptr : &*--after;
}

std::string kernel_name(const void* kernel) {
  const Symbol* symbol = symbol_before(reinterpret_cast<uintptr_t>(kernel));
  return "kernel " + (symbol != nullptr ? readable(symbol->name.c_str()) : "?");
}

// An address in the form that addr2line can look up.
std::string place(const void* address) {
  Dl_info info;
  if (dladdr(address, &info) == 0) return "?";
  const char* slash = strrchr(info.dli_fname, '/');
  return text("%s+0x%zx", slash != nullptr ? slash + 1 : info.dli_fname,
              reinterpret_cast<size_t>(address) - reinterpret_cast<size_t>(info.dli_fbase));
}

std::string describe(const Index& i) { return text("(%u, %u, %u)", i.x, i.y, i.z); }

std::string thread_name(ThreadId id) {
  return id == other_block ? "another block" : "thread " + describe(ex.fibers[id].index);
}

void suspend() {
  if (_setjmp(ex.self->context) == 0) _longjmp(ex.scheduler, 1);
}

// Sets the error and ends the launch at once. The running thread does not continue.
[[noreturn]] void stop(const std::string& what, const void* pc = nullptr) {
  ex.error = kernel_name(ex.launch->kernel) + ", block " + describe(ex.block);
  if (ex.self != nullptr) ex.error += ", " + thread_name(ex.self->id);
  ex.error += ": " + what;
  if (pc != nullptr) ex.error += " [at " + place(pc) + "]";
  _longjmp(ex.scheduler, 2);
}

// ---------------------------------------------------------------- the order of accesses

// Whether an access by thread `other` of this block at time `stamp` is ordered before the running thread's access now.
bool ordered(ThreadId other, Stamp stamp) {
  const ThreadId self = ex.self->id;
  if (other == self || stamp < ex.barrier) return true;
  return other / warp_lanes == self / warp_lanes && stamp < ex.warp_barrier[self / warp_lanes];
}

// Forgets the readers that the running thread is ordered after.
void forget_readers(Cell& c, Stamp forgotten) {
  const unsigned warp = ex.self->id / warp_lanes;
  if (c.read < forgotten) {
    c.reader = c.second_reader = nobody;
  } else if (c.read < ex.block_start) {
    c.reader = nobody, c.second_reader = other_block;
  } else if (c.read < ex.barrier) {
    c.reader = nobody;
    if (c.second_reader != other_block) c.second_reader = nobody;
  } else if (c.read < ex.warp_barrier[warp]) {
    if (c.reader / warp_lanes == warp) c.reader = nobody;
    if (c.second_reader / warp_lanes == warp) c.second_reader = nobody;
  }
}

struct Racer {
  ThreadId id;
  const char* deed;
};

// Records an access to one byte. Returns a thread whose access is in conflict with it, or nobody.
template <bool write>
Racer stamp(Cell& c, Stamp forgotten) {
  const ThreadId self = ex.self->id;
  if (c.copying) return {c.writer, "copies there (cp.async) and has not waited"};
  if (c.written >= forgotten && c.writer != nobody) {
    if (c.written < ex.block_start) return {other_block, "writes"};
    if (!ordered(c.writer, c.written)) return {c.writer, "writes with no barrier between"};
  }
  if (c.reader != self || c.second_reader != nobody || c.read < ex.block_start) forget_readers(c, forgotten);
  if (write) {
    for (const ThreadId reader : {c.reader, c.second_reader})
      if (reader != nobody && reader != self)
        return {reader, reader == other_block ? "reads" : "reads with no barrier between"};
    c = {ex.clock, 0, self};
    return {nobody, nullptr};
  }
  if (c.reader != nobody && c.reader != self) {
    const unsigned warp = self / warp_lanes;
    if (c.second_reader == nobody || (c.second_reader / warp_lanes == warp && c.reader / warp_lanes != warp))
      c.second_reader = c.reader;
  }
  c.reader = self;
  c.read = ex.clock;
  return {nobody, nullptr};
}

// ---------------------------------------------------------------- the check of one access

// Describes an address by its offset in a variable, or else in a region.
std::string location(const Region& r, uintptr_t address) {
  const Symbol* variable = &r == &ex.statics ? symbol_before(address) : nullptr;
  const std::string name = variable != nullptr ? readable(variable->name.c_str()) : r.name;
  const auto offset = static_cast<ptrdiff_t>(address - (variable != nullptr ? variable->start : r.start));
  return text("%s %c %td bytes", name.c_str(), offset < 0 ? '-' : '+', offset < 0 ? -offset : offset);
}

Region* find(uintptr_t address) {
  const uintptr_t slot = (address - reinterpret_cast<uintptr_t>(ex.arena)) >> slot_bits;
  if (slot < static_cast<uintptr_t>(ex.used_slots)) return &ex.regions[slot];
  return address - ex.statics.start < ex.statics.bytes ? &ex.statics : nullptr;
}

[[noreturn]] __attribute__((noinline)) void out_of_bounds(bool write, uintptr_t address, size_t bytes, const Region* r,
                                                          const void* pc) {
  const char* does = write ? "writes" : "reads";
  if (r != nullptr) {
    const Symbol* variable = r == &ex.statics ? symbol_before(address) : nullptr;
    stop(text("%s %zu bytes at %s, which has %zu", does, bytes, location(*r, address).c_str(),
              variable != nullptr ? variable->bytes : r->bytes),
         pc);
  }
  stop(text("%s %zu bytes at %#zx, which is in no buffer, shared memory or its stack", does, bytes, address), pc);
}

[[noreturn]] __attribute__((noinline)) void race(bool write, uintptr_t address, size_t bytes, const Region& r,
                                                 Racer other, const void* pc) {
  stop(text("%s %zu bytes at %s, which %s %s", write ? "writes" : "reads", bytes, location(r, address).c_str(),
            thread_name(other.id).c_str(), other.deed),
       pc);
}

template <bool write>
void check(uintptr_t address, size_t bytes, const void* pc) {
  const Fiber* self = ex.self;
  if (self == nullptr || address - self->stack < stack_bytes) return;
  Region* r = find(address);
  if (r == nullptr && !write) {  // parameters, constants
    if (address - reinterpret_cast<uintptr_t>(ex.launch->call) < ex.launch->call_bytes) return;
    if (address - ex.module_start < ex.module_end - ex.module_start) return;
  }
  if (r == nullptr || address - r->start > r->bytes || r->bytes - (address - r->start) < bytes)
    out_of_bounds(write, address, bytes, r, pc);
  if (r == &ex.statics) {
    const Symbol* variable = symbol_before(address);
    if (variable == nullptr || address + bytes > variable->start + variable->bytes)
      out_of_bounds(write, address, bytes, r, pc);
  }
  if (r->read_only) {
    if (write) stop(text("writes %zu bytes at %s, an input", bytes, location(*r, address).c_str()), pc);
    r->bytes_read += bytes;
    return;
  }
  if (ex.bounds_only) return;
  // Accesses of other blocks do not count for shared memory. Of other launches, only writes count for global memory.
  const Stamp forgotten = r->shared ? ex.block_start : ex.launch_start;
  const Stamp first_write = r->shared ? ex.block_start : 1;
  Cell* c = &r->cells[address - r->start];
  for (Cell* end = c + bytes; c != end; ++c) {
    if (!write && c->written < first_write)
      stop(text("reads %zu bytes at %s, which nobody has written", bytes, location(*r, address).c_str()), pc);
    const Racer other = stamp<write>(*c, forgotten);
    if (other.id != nobody) race(write, address, bytes, *r, other, pc);
  }
}

template <bool write, size_t bytes>
void check_aligned(const void* pointer, const void* pc) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (ex.self != nullptr && address % bytes != 0)
    stop(text("%s %zu bytes at %p, not a multiple of %zu", write ? "writes" : "reads", bytes, pointer, bytes), pc);
  check<write>(address, bytes, pc);
}

// ---------------------------------------------------------------- blocks

void fiber_main() {
  for (;;) {
    ex.launch->run_thread(ex.launch->call);
    ex.self->state = State::exited;
    suspend();
  }
}

// Runs a thread until it waits or exits. Returns false after an error.
bool resume(Fiber& fiber) {
  ex.self = &fiber;
  const int reason = _setjmp(ex.scheduler);
  if (reason == 0) {
    if (fiber.started) _longjmp(fiber.context, 1);
    fiber.started = true;
    setcontext(&fiber.first);
  }
  ex.self = nullptr;
  return reason == 1;
}

bool same(const char* a, const char* b) { return a == b || strcmp(a, b) == 0; }

bool same_place(const Fiber& a, const Fiber& b) {
  return b.state == State::waiting && a.mask == b.mask && a.site.line == b.site.line &&
         same(a.site.file, b.site.file) && same(a.name, b.name);
}

// The first thread that `fiber` waits for and that has not arrived, null if all have arrived.
const Fiber* missing(const Fiber& fiber) {
  const unsigned warp = fiber.id / warp_lanes * warp_lanes;
  const unsigned first = fiber.mask == 0 ? 0 : warp, last = fiber.mask == 0 ? ex.threads : warp + warp_lanes;
  for (unsigned id = first; id < last; ++id) {
    if (fiber.mask != 0 && (fiber.mask >> (id - warp) & 1) == 0) continue;
    if (id >= ex.threads || !same_place(fiber, ex.fibers[id])) return &ex.fibers[id];
  }
  return nullptr;
}

// Completes a warp collective at which all its lanes have arrived.
void finish_collective(unsigned warp, unsigned mask) {
  Fiber* lanes = &ex.fibers[warp * warp_lanes];
  uint64_t values[warp_lanes];
  unsigned present = 0;
  for (unsigned l = 0; l < warp_lanes; ++l) {
    if (warp * warp_lanes + l < ex.threads && lanes[l].state != State::exited) present |= 1U << l;
    values[l] = lanes[l].value;
  }
  const bool barrier = strcmp(lanes[__builtin_ctz(mask)].name, "__syncwarp") == 0;
  for (unsigned l = 0; l < warp_lanes; ++l) {
    if ((mask >> l & 1) == 0) continue;
    lanes[l].value = values[lanes[l].source];
    lanes[l].state = State::ready;
  }
  if (barrier && mask == present) ex.warp_barrier[warp] = ++ex.clock;
}

std::string waits(const Fiber& fiber) {
  if (fiber.id >= ex.threads) return "is not in the block";
  if (fiber.state == State::exited) return "has exited";
  const char* slash = strrchr(fiber.site.file, '/');
  std::string result = text("waits at %s (%s:%d", fiber.name, slash ? slash + 1 : fiber.site.file, fiber.site.line);
  if (fiber.mask != 0) result += text(", mask %#x", fiber.mask);
  return result + ")";
}

// Called when each thread waits or has exited. Releases the threads whose barrier is complete. Returns false when the
// block has ended.
bool release() {
  bool some = false, any_waiting = false;
  for (unsigned id = 0; id < ex.threads; ++id) {
    Fiber& fiber = ex.fibers[id];
    if (fiber.state != State::waiting) continue;
    any_waiting = true;
    if (fiber.mask == 0 || missing(fiber) != nullptr) continue;
    finish_collective(id / warp_lanes, fiber.mask);
    some = true;
  }
  if (some || !any_waiting) return some;
  const Fiber& first = ex.fibers[0];
  if (first.state == State::waiting && first.mask == 0 && missing(first) == nullptr) {
    ex.barrier = ++ex.clock;
    for (unsigned id = 0; id < ex.threads; ++id) ex.fibers[id].state = State::ready;
    return true;
  }
  for (unsigned id = 0; id < ex.threads; ++id) {
    Fiber& fiber = ex.fibers[id];
    if (fiber.state != State::waiting) continue;
    const Fiber* other = missing(fiber);
    ex.self = &fiber;
    stop(waits(fiber) + ", while " + thread_name(other->id) + " " + waits(*other));
  }
  return false;
}

bool run_block() {
  const Index& size = ex.launch->block;
  for (unsigned id = 0; id < ex.threads; ++id) {
    Fiber& fiber = ex.fibers[id];
    fiber.index = {id % size.x, id / size.x % size.y, id / size.x / size.y};
    fiber.state = State::ready;
    fiber.copies.clear();
  }
  ex.block_start = ex.barrier = ++ex.clock;
  if (ex.shuffled) std::shuffle(ex.order.begin(), ex.order.end(), ex.random);
  for (;;) {
    for (const unsigned id : ex.order)
      if (ex.fibers[id].state == State::ready && !resume(ex.fibers[id])) return false;
    const int reason = _setjmp(ex.scheduler);
    if (reason != 0) return false;
    if (!release()) return true;
  }
}

// ---------------------------------------------------------------- memory

uintptr_t map(size_t bytes, int protection) {
  void* memory = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    perror("simt: mmap");
    abort();
  }
  return reinterpret_cast<uintptr_t>(memory);
}

void open_slot(int slot, const char* name, size_t bytes, size_t offset) {
  Region& r = ex.regions[slot];
  const uintptr_t start = reinterpret_cast<uintptr_t>(ex.arena) + slot * slot_bytes + slot_bytes / 2;
  r = {name, start + offset, bytes, false, false, {}};
  if (mprotect(reinterpret_cast<void*>(start), (offset + bytes + page) / page * page, PROT_READ | PROT_WRITE) != 0) {
    perror("simt: mprotect");
    abort();
  }
}

// Finds the writable part of this module, without the part that the dynamic linker has made read-only.
int find_module(dl_phdr_info* info, size_t, void*) {
  static char variable;
  const auto here = reinterpret_cast<uintptr_t>(&variable) - info->dlpi_addr;
  uintptr_t start = UINTPTR_MAX, end = 0, relocated_end = 0;
  Region statics{"static shared memory", 0, 0, false, true, {}};
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr) & part = info->dlpi_phdr[i];
    const uintptr_t first = part.p_vaddr, last = part.p_vaddr + part.p_memsz;
    if (part.p_type == PT_GNU_RELRO) relocated_end = last;
    if (part.p_type != PT_LOAD) continue;
    start = std::min(start, first), end = std::max(end, last);
    if (here >= first && here < last) statics.start = first, statics.bytes = last - first;
  }
  if (statics.bytes == 0) return 0;
  if (relocated_end > statics.start && relocated_end < statics.start + statics.bytes) {
    statics.bytes -= relocated_end - statics.start;
    statics.start = relocated_end;
  }
  statics.start += info->dlpi_addr;
  ex.statics = statics;
  ex.module_start = start + info->dlpi_addr, ex.module_end = end + info->dlpi_addr;
  return 1;
}

// Reads the module's symbols from its file, because the dynamic linker does not know local symbols.
void read_symbols() {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&read_symbols), &info) == 0) return;
  std::ifstream file(info.dli_fname, std::ios::binary | std::ios::ate);
  std::vector<char> bytes(static_cast<size_t>(file.tellg()));
  file.seekg(0).read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(bytes.data());
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(bytes.data() + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    const ElfW(Shdr) & section = sections[i];
    if (section.sh_type != SHT_SYMTAB) continue;
    const char* names = bytes.data() + sections[section.sh_link].sh_offset;
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(bytes.data() + section.sh_offset);
    for (size_t k = 0; k < section.sh_size / sizeof(ElfW(Sym)); ++k)
      if (symbols[k].st_shndx != SHN_UNDEF && symbols[k].st_size > 0)
        ex.symbols.push_back({reinterpret_cast<uintptr_t>(info.dli_fbase) + symbols[k].st_value, symbols[k].st_size,
                              names + symbols[k].st_name});
  }
  std::sort(ex.symbols.begin(), ex.symbols.end(), [](const Symbol& a, const Symbol& b) { return a.start < b.start; });
}

void set_up() {
  ex.arena = reinterpret_cast<char*>(map(slots * slot_bytes, PROT_NONE));
  open_slot(shared_slot, "shared memory", max_shared, 0);
  ex.regions[shared_slot].shared = true;
  dl_iterate_phdr(find_module, nullptr);
  read_symbols();
  // Below each stack is a page that nothing may access.
  const uintptr_t stacks = map(max_threads * (stack_bytes + page), PROT_NONE);
  for (unsigned id = 0; id < max_threads; ++id) {
    Fiber& fiber = ex.fibers[id];
    fiber.id = static_cast<ThreadId>(id);
    fiber.stack = stacks + id * (stack_bytes + page) + page;
    mprotect(reinterpret_cast<void*>(fiber.stack), stack_bytes, PROT_READ | PROT_WRITE);
  }
}

void prepare(Fiber& fiber) {
  getcontext(&fiber.first);
  fiber.first.uc_stack.ss_sp = reinterpret_cast<void*>(fiber.stack);
  fiber.first.uc_stack.ss_size = stack_bytes;
  fiber.first.uc_link = nullptr;
  makecontext(&fiber.first, fiber_main, 0);
  fiber.started = false;
}

}  // namespace

// ---------------------------------------------------------------- interface

void begin(uint64_t seed, bool bounds_only) {
  if (ex.arena == nullptr) set_up();
  for (int slot = 1; slot < ex.used_slots; ++slot) {
    const Region& r = ex.regions[slot];
    const uintptr_t first = r.start / page * page;
    const size_t bytes = (r.start + r.bytes + page) / page * page - first;
    madvise(reinterpret_cast<void*>(first), bytes, MADV_DONTNEED);
    mprotect(reinterpret_cast<void*>(first), bytes, PROT_NONE);
    ex.regions[slot] = {};
  }
  ex.used_slots = 1;
  ex.regions[shared_slot].cells.assign(max_shared, {});
  ex.statics.cells.assign(ex.statics.bytes, {});
  ex.clock = ex.launch_start = ex.block_start = ex.barrier = 1;
  std::fill(std::begin(ex.warp_barrier), std::end(ex.warp_barrier), 0);
  ex.random.seed(seed);
  ex.shuffled = seed != 0;
  ex.bounds_only = bounds_only;
  ex.error.clear();
  ex.launched.clear();
}

void* add_buffer(const char* name, Access access, const void* host, size_t bytes, size_t offset) {
  if (ex.used_slots == slots) return fail("more than %d buffers", slots - 1), nullptr;
  open_slot(ex.used_slots, name, bytes, offset);
  Region& r = ex.regions[ex.used_slots++];
  r.read_only = access == Access::input;
  r.bytes_read = 0;
  if (r.read_only) {
    memcpy(reinterpret_cast<void*>(r.start), host, bytes);
  } else {
    memset(reinterpret_cast<void*>(r.start), 0xff, bytes);  // NaN in every type
    r.cells.resize(bytes);
  }
  return reinterpret_cast<void*>(r.start);
}

void read_buffer(const void* device, void* host) {
  const Region& r = *find(reinterpret_cast<uintptr_t>(device));
  memcpy(host, device, r.bytes);
}

uint64_t bytes_read(const char* name) {
  for (int slot = 1; slot < ex.used_slots; ++slot) {
    if (strcmp(ex.regions[slot].name, name) == 0) return ex.regions[slot].bytes_read;
  }
  return 0;
}

const char* launched() { return ex.launched.c_str(); }

const char* error() { return ex.error.empty() ? nullptr : ex.error.c_str(); }

void fail(const char* form, ...) {
  if (!ex.error.empty()) return;
  va_list arguments;
  va_start(arguments, form);
  ex.error = format(form, arguments);
  va_end(arguments);
}

void run(const Launch& launch) {
  if (!ex.error.empty()) return;
  const Index &grid = launch.grid, &block = launch.block;
  const std::string kernel = kernel_name(launch.kernel);
  const size_t threads = size_t{block.x} * block.y * block.z;
  if (threads < 1 || threads > max_threads || block.z > max_block_z)
    return fail("%s: a block of %s threads", kernel.c_str(), describe(block).c_str());
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > INT32_MAX || grid.y > max_grid_yz || grid.z > max_grid_yz)
    return fail("%s: a grid of %s blocks", kernel.c_str(), describe(grid).c_str());
  if (launch.shared_bytes > max_shared)
    return fail("%s: %zu bytes of shared memory, %zu are allowed", kernel.c_str(), launch.shared_bytes, max_shared);
  if (launch.parameter_bytes > max_parameters)
    return fail("%s: %zu bytes of parameters, %zu are allowed", kernel.c_str(), launch.parameter_bytes, max_parameters);

  ex.launched += kernel + "\n";
  ex.launch = &launch;
  ex.threads = static_cast<unsigned>(threads);
  ex.regions[shared_slot].bytes = launch.shared_bytes;
  ex.launch_start = ++ex.clock;
  ex.order.resize(threads);
  for (unsigned id = 0; id < threads; ++id) {
    ex.order[id] = id;
    if (!ex.fibers[id].started) prepare(ex.fibers[id]);
  }
  std::vector<uint32_t> blocks(size_t{grid.x} * grid.y * grid.z);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<uint32_t>(i);
  if (ex.shuffled) std::shuffle(blocks.begin(), blocks.end(), ex.random);
  for (const uint32_t i : blocks) {
    ex.block = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    if (run_block()) continue;
    for (Fiber& fiber : ex.fibers) fiber.started = false;  // their contexts are no longer of use
    break;
  }
  ex.self = nullptr;
  ex.launch = nullptr;
}

void* dynamic_shared() { return reinterpret_cast<void*>(ex.regions[shared_slot].start); }

Index thread_index() { return ex.self->index; }
Index block_index() { return ex.block; }
Index block_size() { return ex.launch->block; }
Index grid_size() { return ex.launch->grid; }
unsigned lane() { return ex.self->id % warp_lanes; }

void block_barrier(Site site) {
  Fiber& self = *ex.self;
  self.state = State::waiting, self.name = "__syncthreads", self.site = site, self.mask = 0;
  suspend();
}

uint64_t warp_collective(const char* name, unsigned mask, uint64_t value, unsigned source, Site site) {
  Fiber& self = *ex.self;
  if ((mask >> lane() & 1) == 0) stop(text("is not in the mask %#x of its %s", mask, name));
  if ((mask >> source & 1) == 0) stop(text("%s reads lane %u, not in its mask %#x", name, source, mask));
  self.state = State::waiting, self.name = name, self.site = site;
  self.mask = mask, self.value = value, self.source = source;
  suspend();
  return self.value;
}

void copy_async(void* shared, const void* global, int bytes, int valid_bytes) {
  const void* pc = __builtin_return_address(0);
  const auto to = reinterpret_cast<uintptr_t>(shared), from = reinterpret_cast<uintptr_t>(global);
  if ((bytes != 4 && bytes != 8 && bytes != 16) || valid_bytes < 0 || valid_bytes > bytes)
    stop(text("cp.async of %d bytes, %d of them valid", bytes, valid_bytes), pc);
  if (to % bytes != 0 || from % bytes != 0)
    stop(text("cp.async of %d bytes from %p to %p, not multiples of it", bytes, global, shared), pc);
  Region* r = find(to);
  if (r == nullptr || !r->shared) stop("cp.async to what is not shared memory", pc);
  if (valid_bytes > 0) check<false>(from, static_cast<size_t>(valid_bytes), pc);
  check<true>(to, static_cast<size_t>(bytes), pc);
  for (int i = 0; i < bytes; ++i) r->cells[to - r->start + i].copying = true;
  ex.self->copies.push_back({static_cast<char*>(shared), static_cast<const char*>(global), bytes, valid_bytes});
}

void wait_all() {
  for (const Copy& copy : ex.self->copies) {
    memcpy(copy.shared, copy.global, static_cast<size_t>(copy.valid_bytes));
    memset(copy.shared + copy.valid_bytes, 0, static_cast<size_t>(copy.bytes - copy.valid_bytes));
    const auto address = reinterpret_cast<uintptr_t>(copy.shared);
    Region& r = *find(address);
    for (int i = 0; i < copy.bytes; ++i) r.cells[address - r.start + i] = {ex.clock, 0, ex.self->id};
  }
  ex.self->copies.clear();
}

}  // namespace simt

// ---------------------------------------------------------------- functions that the compiler calls

#define SIMT_CALLER __builtin_return_address(0)
#define SIMT_ACCESS(bytes)                                                                             \
  void __tsan_read##bytes(void* p) { simt::check_aligned<false, bytes>(p, SIMT_CALLER); }              \
  void __tsan_write##bytes(void* p) { simt::check_aligned<true, bytes>(p, SIMT_CALLER); }              \
  void __tsan_unaligned_read##bytes(void* p) { simt::check<false>(uintptr_t(p), bytes, SIMT_CALLER); } \
  void __tsan_unaligned_write##bytes(void* p) { simt::check<true>(uintptr_t(p), bytes, SIMT_CALLER); }

extern "C" {

SIMT_ACCESS(1)
SIMT_ACCESS(2)
SIMT_ACCESS(4)
SIMT_ACCESS(8)
SIMT_ACCESS(16)
void __tsan_read_range(void* p, size_t bytes) { simt::check<false>(uintptr_t(p), bytes, SIMT_CALLER); }
void __tsan_write_range(void* p, size_t bytes) { simt::check<true>(uintptr_t(p), bytes, SIMT_CALLER); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}

// For -fsanitize=bounds and -fsanitize=alignment. The first argument starts with the place in the source.
struct Place {
  const char* file;
  uint32_t line, column;
};

void __ubsan_handle_out_of_bounds(const Place* place, uintptr_t index) {
  if (simt::ex.self == nullptr) abort();
  simt::stop(simt::text("index %td is outside its array [at %s:%u]", ptrdiff_t(index), place->file, place->line));
}

void __ubsan_handle_type_mismatch_v1(const Place* place, uintptr_t address) {
  if (simt::ex.self == nullptr) abort();
  simt::stop(simt::text("an access at %#zx, not a multiple of its type's alignment [at %s:%u]", address, place->file,
                        place->line));
}
}
