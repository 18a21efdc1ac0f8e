// Small known kernels: elementwise, reduction, histogram, scan, local memory, calls, branch tables.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

struct Saxpy {
    float const* x;
    float* y;
    int n;
    float a;
};

extern "C" __global__ void saxpy(Saxpy const p) {
    int const i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.n) p.y[i] = p.a * p.x[i] + p.y[i];
}

extern "C" __global__ void block_sums(float const* x, float* sums, int n) {
    __shared__ float partial[32];
    float total = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) total += x[i];
    for (int step = 16; step; step /= 2) total += __shfl_down_sync(0xffffffffu, total, step);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = total;
    __syncthreads();
    if (threadIdx.x < 32) {
        total = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.0f;
        for (int step = 16; step; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
        if (threadIdx.x == 0) sums[blockIdx.x] = total;
    }
}

extern "C" __global__ void histogram(unsigned char const* data, int n, unsigned* counts) {
    __shared__ unsigned local[256];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) local[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(&local[data[i]], 1u);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x) atomicAdd(&counts[i], local[i]);
}

extern "C" __global__ void scan(int const* in, int* out) {
    extern __shared__ int buffer[];
    int const t = threadIdx.x, n = blockDim.x;
    buffer[t] = in[t];
    for (int step = 1; step < n; step *= 2) {
        __syncthreads();
        int const add = t >= step ? buffer[t - step] : 0;
        __syncthreads();
        buffer[t] += add;
    }
    out[t] = buffer[t];
}

extern "C" __global__ void transpose(float const* in, float* out, int rows, int columns) {
    __shared__ float tile[32][33];
    int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
    for (int k = 0; k < 32; k += 8)
        if (x < columns && y + k < rows) tile[threadIdx.y + k][threadIdx.x] = in[(y + k) * columns + x];
    __syncthreads();
    x = blockIdx.y * 32 + threadIdx.x, y = blockIdx.x * 32 + threadIdx.y;
    for (int k = 0; k < 32; k += 8)
        if (x < rows && y + k < columns) out[(y + k) * rows + x] = tile[threadIdx.x][threadIdx.y + k];
}

__device__ __noinline__ float polynomial(float x, int n) {
    float value = 0;
    for (int i = 0; i < n; ++i) value = value * x + i;
    return value;
}

extern "C" __global__ void divergent(float const* x, float* y, int n) {
    // Every lane takes a path and a trip count of its own, keeps a local array, and calls a function.
    int const i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float kept[8];
    for (int k = 0; k < 8; ++k) kept[k] = x[i] * k;
    int const kind = i % 9;
    float value = 0;
    switch (kind) {
        case 0: value = 1; break;
        case 1: value = kept[(i / 9) % 8]; break;
        case 2: value = polynomial(x[i], i % 5); break;
        case 3: value = sqrtf(fabsf(x[i])); break;
        case 4: value = expf(x[i]); break;
        case 5: value = sinf(x[i]); break;
        case 6: value = i / (kind + 1) % 7; break;
        case 7: value = logf(fabsf(x[i]) + 1); break;
    }
    y[i] = value + polynomial(0.5f, kind);
}

extern "C" __global__ void half_math(__half2 const* a, __half2 const* b, __half2* product, __nv_bfloat162* sum, int n) {
    int const i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    product[i] = __hfma2(a[i], b[i], a[i]);
    float2 const x = __half22float2(a[i]), y = __half22float2(b[i]);
    sum[i] = __floats2bfloat162_rn(x.x + y.x, x.y + y.y);
}
