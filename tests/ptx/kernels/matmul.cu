// C[M, N] = A[M, K] · B[K, N] in half precision on tensor cores: 64×64 tiles, double-buffered cp.async with
// zero-filled edges, swizzled shared memory, ldmatrix, mma.sync. N and K are multiples of 8.
#include <cuda_fp16.h>

#include <cstdint>

namespace {

constexpr int kTile = 64, kDepth = 32, kWarps = 4;

__device__ uint32_t shared_address(void const* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ void copy16(void* to, void const* from, bool valid) {
    int const bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(bytes));
}

// Chunks of 8 halves; the swizzle keeps any 8 rows of one chunk column in different banks.
__device__ int a_at(int row, int chunk) { return row * kDepth + (chunk ^ (row / 2 % 4)) * 8; }
__device__ int b_at(int row, int chunk) { return row * kTile + (chunk ^ (row % 8)) * 8; }

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * kWarps)
    matmul(__half const* a, __half const* b, float* c, int m, int n, int k) {
    __shared__ __align__(128) __half as[2][kTile * kDepth];
    __shared__ __align__(128) __half bs[2][kDepth * kTile];
    int const t = threadIdx.x, lane = t % 32, warp = t / 32;
    int const row0 = blockIdx.y * kTile, column0 = blockIdx.x * kTile;
    auto fetch = [&](int stage, int depth0) {
        for (int i = t; i < kTile * kDepth / 8; i += 32 * kWarps) {
            int const row = i / (kDepth / 8), chunk = i % (kDepth / 8);
            bool const valid = row0 + row < m && depth0 + chunk * 8 < k;
            copy16(&as[stage][a_at(row, chunk)], a + size_t(row0 + row) * k + depth0 + chunk * 8, valid);
        }
        for (int i = t; i < kDepth * kTile / 8; i += 32 * kWarps) {
            int const row = i / (kTile / 8), chunk = i % (kTile / 8);
            bool const valid = depth0 + row < k && column0 + chunk * 8 < n;
            copy16(&bs[stage][b_at(row, chunk)], b + size_t(depth0 + row) * n + column0 + chunk * 8, valid);
        }
        asm volatile("cp.async.commit_group;\n");
    };
    float acc[kTile / 8][4] = {};
    int const steps = (k + kDepth - 1) / kDepth;
    fetch(0, 0);
    for (int s = 0; s < steps; ++s) {
        if (s + 1 < steps) {
            fetch((s + 1) % 2, (s + 1) * kDepth);
            asm volatile("cp.async.wait_group 1;\n");
        } else {
            asm volatile("cp.async.wait_group 0;\n");
        }
        __syncthreads();
        for (int kk = 0; kk < kDepth; kk += 16) {
            uint32_t f[4];
            uint32_t const from = shared_address(&as[s % 2][a_at(warp * 16 + lane % 16, kk / 8 + lane / 16)]);
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                         : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
                         : "r"(from));
            for (int j = 0; j < kTile / 8; ++j) {
                uint32_t g[2];
                uint32_t const at = shared_address(&bs[s % 2][b_at(kk + lane % 16, j)]);
                asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];\n"
                             : "=r"(g[0]), "=r"(g[1])
                             : "r"(at));
                asm volatile(
                    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                    "{%0,%1,%2,%3};\n"
                    : "+f"(acc[j][0]), "+f"(acc[j][1]), "+f"(acc[j][2]), "+f"(acc[j][3])
                    : "r"(f[0]), "r"(f[1]), "r"(f[2]), "r"(f[3]), "r"(g[0]), "r"(g[1]));
            }
        }
        __syncthreads();
    }
    for (int j = 0; j < kTile / 8; ++j) {
        for (int half = 0; half < 2; ++half) {
            int const row = row0 + warp * 16 + lane / 4 + 8 * half, column = column0 + j * 8 + lane % 4 * 2;
            if (row < m && column < n)
                *reinterpret_cast<float2*>(c + size_t(row) * n + column) =
                    make_float2(acc[j][2 * half], acc[j][2 * half + 1]);
        }
    }
}
