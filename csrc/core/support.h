// A support is the strictly increasing int32 positions of the kept units among the `size` units of a dense weight.
//
// In a file a support is delta-coded. Each position becomes a gap: the number of dropped units between it and the
// position before it. The gaps are written as Golomb-Rice codes with one parameter k:
//
//     byte 0          k, 0 to 30
//     from byte 1 on  per gap: (gap >> k) ones, a zero, then the k low bits of the gap; least significant bit first
//     padding         ones up to the next whole byte. They are not the code of a gap: the bytes fit only one count
//
// An empty support has no bytes. k is the parameter that gives the fewest bits. At 90 % random sparsity a position
// takes about 4.8 bits (the entropy is 4.7).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sparsegan {

// The limit of int32 positions.
inline constexpr int64_t kMaxSupportSize = int64_t{1} << 31;

// Throws std::invalid_argument unless the positions are sorted, unique and in [0, size). The error names index and
// value.
void check_support(const int32_t* positions, size_t n, int64_t size);

// Returns the bytes of a support. Throws as check_support does.
std::vector<uint8_t> encode_support(const int32_t* positions, size_t n, int64_t size);

// Throws std::invalid_argument where `nbytes` cannot hold `count` positions below `size`. Callers check before they
// allocate memory for the positions.
void check_support_count(size_t nbytes, int64_t size, size_t count);

// Writes `count` positions to `out`, or throws std::invalid_argument. The bytes are not trusted: nothing outside them
// is read, and the work is bounded by nbytes. The code must give exactly `count` valid positions and end in its last
// byte.
void decode_support(const uint8_t* bytes, size_t nbytes, int64_t size, size_t count, int32_t* out);

}  // namespace sparsegan
