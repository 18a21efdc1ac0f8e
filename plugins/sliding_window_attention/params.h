// What the host hands to a kernel. Plain data: no CUDA and no TensorRT types, so that host tests and
// other tools can read the layout.
#pragma once

#include <cstdint>

namespace vtn::swa {

// Exact unsigned division by a constant known on the host: q = (umulhi(x, magic) + x) >> shift.
// Right for x < 2^31 and 1 <= divisor <= 2^31 (round-up method with a 33-bit multiplier; the sum
// cannot carry because umulhi(x, magic) < x).
struct Divisor {
    uint32_t value{1};
    uint32_t magic{1};
    uint32_t shift{0};
};

constexpr Divisor make_divisor(uint32_t value) {
    uint32_t shift = 0;
    while ((uint64_t{1} << shift) < value) {
        ++shift;
    }
    const uint64_t magic = ((uint64_t{1} << 32) * ((uint64_t{1} << shift) - value)) / value + 1;
    return Divisor{value, static_cast<uint32_t>(magic), shift};
}

// One launch: grid (samples * residue classes, blocks of queries, heads). Lengths are in tokens. Byte
// counts of a whole tensor fit in 32 bits for 16-bit types, because tensors of 2^31 elements are refused;
// those from one key of a row to the next (token_bytes * dilation) in 31, in 32 for float32, because
// check_sizes refuses 2^30 elements there.
struct alignas(16) KernelParams {
    const void* qkv;         // [batch, sequence, 3 * heads * head_dim]
    void* output;            // [batch, sequence, heads * head_dim]
    const int32_t* lengths;  // [batch]
    uint64_t third_bytes;    // of a token of qkv: from its queries to its keys, and on to its values
    uint32_t token_bytes;    // of qkv
    uint32_t output_bytes;   // of a token of the output
    int32_t sequence;
    int32_t window;       // keys looked back at
    int32_t reach;        // a row's own key and those ahead of it: window + 1, or 1 if causal
    int32_t span;         // keys behind and ahead: 2 * window, or window if causal
    int32_t globals;      // first columns that every row sees
    int32_t global_slot;  // resident kernels: first slot of the last tile that holds globals
    float score_factor;   // |scale| * log2(e), or 1 where scale is 0
    float minus_factor;   // its negative
    float score_floor;    // the lowest float whose product with score_factor is finite
    float unused;         // 16 bytes of one type: one load, and no moves between kinds of register
    uint32_t query_and;   // 0 where scale is 0, else all ones
    uint32_t query_xor;   // the type's sign bits where scale is negative, else 0
    Divisor dilation;     // the gap between band keys
    Divisor classes;      // residue classes modulo the dilation that hold a token
};

}  // namespace vtn::swa
