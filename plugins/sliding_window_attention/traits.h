// Compile-time shape of each kernel family, shared by the kernels and by the host's planner.
#pragma once

namespace vtn::swa {

constexpr int kWarpSize = 32;
constexpr int kRowsPerWarp = 16;  // the M of mma.m16n8k*: each warp owns 16 queries
constexpr int kKeysPerTile = 8;   // its N
constexpr int kChunkBytes = 16;   // one cp.async, one ldmatrix row, one 128-bit load

// Blocks an SM that ptxas makes room for in the register file. The figures are those of SM 8.0 and 8.7; where
// a generation's ptxas would spill at them, the cap is off.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 750
constexpr int kFiveTileBlocks = 2;  // shared memory holds one block of them anyway
#else
constexpr int kFiveTileBlocks = 4;
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 800 && __CUDA_ARCH__ != 870
constexpr int kElevenTileBlocks = 2;
#else
constexpr int kElevenTileBlocks = 3;
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
constexpr int kStreamingBlocks = 1;  // one register over 128
#else
constexpr int kStreamingBlocks = 2;
#endif

// Layout of one K or V row of a 16-bit type in shared memory.
template <int HeadDim>
struct RowLayout {
    static_assert(HeadDim % 16 == 0, "the contraction of m16n8k16");
    static constexpr int kChunks = HeadDim / 8;
    // 80 elements are 10 chunks; a pitch of 12 keeps the swizzle below conflict-free for one fifth
    // more shared memory.
    static constexpr int kPitchChunks = kChunks % 4 == 0 ? kChunks : (kChunks + 3) / 4 * 4;
    static constexpr int kRowBytes = kPitchChunks * kChunkBytes;
    // Two access shapes must be free of bank conflicts: eight rows of one chunk (ldmatrix), and two
    // neighbouring rows of four chunks (a quarter warp of 128-bit loads). In pitches that are a multiple
    // of eight chunks, chunk c of row r lies at c ^ (5 r mod 8): eight different places for eight rows,
    // and rows 2 r and 2 r + 1 differ in bit 2. Other pitches turn by four chunks from row to row
    // themselves; there it lies at c ^ (r / 2 mod 4). Heads of 80 also read four rows of two chunks (64-bit
    // loads of their last 16 elements); c ^ (3 (r / 2) mod 4) sends those to eight places too.
    static constexpr bool kFullSwizzle = kPitchChunks % 8 == 0;
    static constexpr int kSwizzleMask = kFullSwizzle ? 7 : 3;
};

// The band of a block lies in shared memory at once and the scores of a row in registers: one pass,
// no rescaling. Tiles = 8-key tiles a warp multiplies with; the last one holds the globals.
template <int HeadDim, int Tiles, int Warps>
struct ResidentShape {
    static constexpr int kTiles = Tiles;
    static constexpr int kSlots = Tiles * kKeysPerTile;
    // 128 queries a block (8 warps) keep loads at (1 + 2 * (128 + 2w + 1) / 128) / 3 = 1.10 x for w = 9.
    // For w = 32 that is 1.34 x, with 192 queries 1.23 x; 256 would not fit twice into the registers of
    // an SM at 80 a thread. Wide heads stay at 128 queries or shared memory overflows.
    static constexpr int kWarps = Warps;
    static constexpr int kThreads = kWarps * kWarpSize;
    static constexpr int kQueries = kWarps * kRowsPerWarp;
    // With few tiles the last one also holds the end of the band, if globals leave room: for w = 9, 34
    // band keys and a global column are five tiles instead of six.
    static constexpr bool kSharedLast = Tiles <= 5;
    static constexpr int kBandSlots = kSlots - (kSharedLast ? 0 : kKeysPerTile);
    // The most that the window and the globals together can be: 16 + window + globals slots, if causal.
    static constexpr int kReach = Tiles <= 5 ? kSlots - kRowsPerWarp : 64;
    // Rows [0, kBandRows) hold the band; the eight rows after it the globals.
    static constexpr int kBandRows = kQueries - kRowsPerWarp + kBandSlots;
    static constexpr int kRows = kBandRows + kKeysPerTile;
    static constexpr int kSharedBytes = 2 * kRows * RowLayout<HeadDim>::kRowBytes;
    // Registers a thread are capped at 65536 / (kThreads * kMinBlocks): 64 and 80 for heads of 64 on SM 8.0
    // and 8.7. Eleven tiles spill at 80 elsewhere, and gain nothing where shared memory (8.6, 8.9,
    // 12.0) holds one block anyway.
    static constexpr int kMinBlocks =
        Tiles <= 5 ? (HeadDim <= 64 ? kFiveTileBlocks : 2)
                   : (HeadDim == 64 ? (Warps <= 8 ? kElevenTileBlocks : kElevenTileBlocks - 1) : 1);
    // Dilated kernels hold more of the sequence's shape.
    static constexpr int min_blocks(bool dilated) { return !dilated ? kMinBlocks : (Tiles > 5 ? 1 : 2); }
};

// Any window: keys stream through a double buffer of kKeys rows with an online softmax.
template <int HeadDim>
struct StreamingShape {
    static constexpr int kWarps = 8;
    static constexpr int kThreads = kWarps * kWarpSize;
    static constexpr int kQueries = kWarps * kRowsPerWarp;
    static constexpr int kKeys = HeadDim <= 64 ? 64 : 32;
    static constexpr int kTiles = kKeys / kKeysPerTile;
    static constexpr int kStages = 2;
    // Up to eight globals are one tile of their own, multiplied with once; more of them lead the
    // stream of band keys.
    static constexpr int kGlobalRows = kKeysPerTile;
    static constexpr int kRows = kStages * kKeys + kGlobalRows;
    static constexpr int kSharedBytes = 2 * kRows * RowLayout<HeadDim>::kRowBytes;
    static constexpr int kMinBlocks = HeadDim <= 64 ? kStreamingBlocks : 1;
};

// float32 without tensor cores: 16 x 8 threads, each 4 queries x 4 keys of a 64 x 32 tile. Heads of 128
// take 16 keys at a time: 32 would need 66 KB and SM 7.5 has 64.
template <int HeadDim>
struct ScalarShape {
    static constexpr int kThreads = 128;
    static constexpr int kQueries = 64;
    static constexpr int kKeys = HeadDim <= 96 ? 32 : 16;
    static constexpr int kLanesPerRow = 8;
    static constexpr int kRowsPerThread = 4;
    static constexpr int kKeysPerThread = kKeys / kLanesPerRow;
    static constexpr int kPairs = HeadDim / 2 / kLanesPerRow;  // float2 of the output a thread owns, per row
    // An odd number of 16-byte units: eight lanes reading eight rows hit eight bank groups.
    static constexpr int kPitch = HeadDim + 4;
    static constexpr int kSharedBytes = (kQueries + 2 * kKeys) * kPitch * 4;
    static constexpr int kMinBlocks = HeadDim <= 80 ? 3 : 2;  // 168 registers, or wide heads spill
};

}  // namespace vtn::swa
