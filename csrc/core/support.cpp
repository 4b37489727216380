#include "support.h"

#include <algorithm>
#include <array>
#include <bit>
#include <stdexcept>
#include <string>

namespace sparsegan {
namespace {

constexpr int kMaxRice = 30;

[[noreturn]] void fail(const std::string& sentence) { throw std::invalid_argument(sentence); }

void check_size(int64_t size) {
  if (size < 0 || size > kMaxSupportSize) {
    fail("size is " + std::to_string(size) + "; it must be between 0 and 2147483648");
  }
}

// Calls use(gap) for each position in order. The positions must have passed check_support.
template <typename Use>
void for_each_gap(const int32_t* positions, size_t n, Use use) {
  int64_t next = 0;
  for (size_t i = 0; i < n; ++i) {
    use(static_cast<uint32_t>(positions[i] - next));
    next = int64_t{positions[i]} + 1;
  }
}

// Returns the number of bits that all gaps take, per k.
std::array<uint64_t, kMaxRice + 1> code_lengths(const int32_t* positions, size_t n) {
  std::array<uint64_t, kMaxRice + 1> bits{};
  for_each_gap(positions, n, [&](uint32_t gap) {
    for (int k = 0; k <= kMaxRice; ++k) bits[k] += (gap >> k) + 1 + k;
  });
  return bits;
}

class BitWriter {
 public:
  explicit BitWriter(std::vector<uint8_t>& bytes) : bytes_(bytes) {}

  // Appends the low `count` bits, at most 32. The other bits must be 0.
  void put(uint64_t bits, int count) {
    held_ |= bits << used_;
    used_ += count;
    for (; used_ >= 8; used_ -= 8, held_ >>= 8) bytes_.push_back(static_cast<uint8_t>(held_));
  }

  void put_ones(uint32_t count) {
    for (; count > 32; count -= 32) put(0xffffffffu, 32);
    put((uint64_t{1} << count) - 1, static_cast<int>(count));
  }

  void finish() {
    if (used_ > 0) bytes_.push_back(static_cast<uint8_t>(held_ | 0xffu << used_));
  }

 private:
  std::vector<uint8_t>& bytes_;
  uint64_t held_ = 0;  // the low used_ bits are not yet in bytes_
  int used_ = 0;
};

class BitReader {
 public:
  BitReader(const uint8_t* bytes, size_t nbytes) : next_(bytes), end_(bytes + nbytes) {}

  // Takes ones up to the next zero, and the zero. Returns the number of ones. Throws where there are more than `limit`
  // or where the bytes end first.
  int64_t take_unary(int64_t limit) {
    int64_t ones = 0;
    for (;;) {
      fill();
      const int run = std::min(std::countr_one(held_), have_);
      ones += run;
      if (ones > limit) fail("the support's code reaches past the end of the weight");
      drop(run);
      if (have_ > 0) break;
      if (next_ == end_) fail("the support's code ends early");
    }
    drop(1);
    return ones;
  }

  // Takes the next `count` bits, at most 32.
  uint32_t take(int count) {
    fill();
    if (have_ < count) fail("the support's code ends early");
    const auto bits = static_cast<uint32_t>(held_ & ((uint64_t{1} << count) - 1));
    drop(count);
    return bits;
  }

  // Throws unless the bits that are left are padding: ones, fewer than 8.
  void finish() {
    fill();
    if (have_ >= 8 || std::countr_one(held_) != have_) fail("bits are left over behind the support's code");
  }

 private:
  void fill() {
    for (; have_ <= 56 && next_ != end_; have_ += 8) held_ |= uint64_t{*next_++} << have_;
  }

  void drop(int count) {
    held_ = count < 64 ? held_ >> count : 0;
    have_ -= count;
  }

  const uint8_t* next_;
  const uint8_t* end_;
  uint64_t held_ = 0;  // the low have_ bits are valid, the other bits are 0
  int have_ = 0;
};

}  // namespace

void check_support(const int32_t* positions, size_t n, int64_t size) {
  check_size(size);
  int64_t before = -1;
  for (size_t i = 0; i < n; ++i) {
    const int64_t position = positions[i];
    if (position < 0 || position >= size) {
      fail("support[" + std::to_string(i) + "] is " + std::to_string(position) + "; it must be at least 0 and below " +
           std::to_string(size));
    }
    if (position <= before) {
      fail("support[" + std::to_string(i) + "] is " + std::to_string(position) + " and comes after " +
           std::to_string(before) + "; positions must be sorted and unique");
    }
    before = position;
  }
}

std::vector<uint8_t> encode_support(const int32_t* positions, size_t n, int64_t size) {
  check_support(positions, n, size);
  std::vector<uint8_t> bytes;
  if (n == 0) return bytes;

  const auto lengths = code_lengths(positions, n);
  const auto best = std::min_element(lengths.begin(), lengths.end());
  const int k = static_cast<int>(best - lengths.begin());

  bytes.reserve(1 + (*best + 7) / 8);
  bytes.push_back(static_cast<uint8_t>(k));
  BitWriter out(bytes);
  for_each_gap(positions, n, [&](uint32_t gap) {
    out.put_ones(gap >> k);
    out.put(uint64_t{gap & ((1u << k) - 1)} << 1, k + 1);  // the zero, then the low bits
  });
  out.finish();
  return bytes;
}

void check_support_count(size_t nbytes, int64_t size, size_t count) {
  check_size(size);
  if (count > static_cast<uint64_t>(size)) {
    fail("the support is said to have " + std::to_string(count) + " positions; the weight has " + std::to_string(size));
  }
  // The code has one byte for k and at least one bit per position.
  if (count > 0 && (nbytes == 0 || (count + 7) / 8 > nbytes - 1)) {
    fail("the support is said to have " + std::to_string(count) + " positions; its code of " + std::to_string(nbytes) +
         " bytes cannot hold that many");
  }
  if (count == 0 && nbytes > 0) {
    fail("the support is said to be empty; its code has " + std::to_string(nbytes) + " bytes");
  }
}

void decode_support(const uint8_t* bytes, size_t nbytes, int64_t size, size_t count, int32_t* out) {
  check_support_count(nbytes, size, count);
  if (count == 0) return;
  const int k = bytes[0];
  if (k > kMaxRice) fail("the support's Golomb-Rice parameter is " + std::to_string(k) + "; it must be 0 to 30");

  BitReader in(bytes + 1, nbytes - 1);
  int64_t next = 0;
  for (size_t i = 0; i < count; ++i) {
    const int64_t high = in.take_unary((size - next) >> k);
    const int64_t position = next + (high << k) + in.take(k);
    if (position >= size) fail("the support's code reaches past the end of the weight");
    out[i] = static_cast<int32_t>(position);
    next = position + 1;
  }
  in.finish();
}

}  // namespace sparsegan
