// A support: the strictly increasing int32 positions of the kept weights in a dense weight of `size` elements.
//
// On disk it is delta-coded: each position becomes the gap to the one before it (how many dropped weights lie between),
// and the gaps become Golomb-Rice codes of one parameter k:
//
//     byte 0          k, 0 to 30
//     bits from 1 on  for each gap: gap >> k ones, a zero, then the k low bits of the gap; least significant bit first
//     padding         ones up to the byte: no gap's code, so that the bytes fit one count of positions only
//
// An empty support is zero bytes. k is the one that gives the fewest bits; at 90 % random sparsity a position costs
// about 4.8 bits (the entropy is 4.7).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sparsegan {

// Positions are int32.
inline constexpr int64_t kMaxSupportSize = int64_t{1} << 31;

// Throws std::invalid_argument, naming index and value, unless positions are sorted, unique and in [0, size).
void check_support(const int32_t* positions, size_t n, int64_t size);

// Checks, then codes. Throws as check_support does.
std::vector<uint8_t> encode_support(const int32_t* positions, size_t n, int64_t size);

// Throws std::invalid_argument where `count` positions below `size` cannot be held in `nbytes`: ask before allocating.
void check_support_count(size_t nbytes, int64_t size, size_t count);

// Writes `count` positions to `out`, or throws std::invalid_argument. The bytes may come from anyone: nothing outside
// them is read, the work is bounded by nbytes, and only a code that yields exactly `count` valid positions and ends in
// its last byte is accepted.
void decode_support(const uint8_t* bytes, size_t nbytes, int64_t size, size_t count, int32_t* out);

}  // namespace sparsegan
