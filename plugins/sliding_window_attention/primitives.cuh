// The PTX instructions the kernels are made of, each behind one function.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace vtn::swa {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kHasAsyncCopy = false;  // SM 7.5: neither cp.async nor m16n8k16 nor bf16
#else
constexpr bool kHasAsyncCopy = true;
#endif

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Makes the compiler keep a value that it would otherwise compute again after every branch.
__device__ __forceinline__ void keep(uint32_t& value) {
    asm volatile("" : "+r"(value));
}
__device__ __forceinline__ void keep(int32_t& value) {
    asm volatile("" : "+r"(value));
}

// pointer + count * bytes in one multiply-add; the compiler makes two additions and more of it.
template <typename Pointer>
__device__ __forceinline__ Pointer advance(Pointer pointer, uint32_t count, uint32_t bytes) {
    Pointer result;
    asm("mad.wide.u32 %0, %1, %2, %3;\n" : "=l"(result) : "r"(count), "r"(bytes), "l"(pointer));
    return result;
}

template <int Bytes, typename Pointer>
__device__ __forceinline__ Pointer advance_by(Pointer pointer, uint32_t count) {
    Pointer result;
    asm("mad.wide.u32 %0, %1, %2, %3;\n" : "=l"(result) : "r"(count), "n"(Bytes), "l"(pointer));
    return result;
}

template <typename Pointer>
__device__ __forceinline__ Pointer advance_signed(Pointer pointer, int32_t count, int32_t bytes) {
    Pointer result;
    asm("mad.wide.s32 %0, %1, %2, %3;\n" : "=l"(result) : "r"(count), "r"(bytes), "l"(pointer));
    return result;
}

// 16 bytes from global to shared memory, both addresses with a constant offset; zeros where bytes is 0
// (nothing is read then).
template <int SharedOffset>
__device__ __forceinline__ void copy_chunk(uint32_t shared, const void* global, uint32_t bytes) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0+%3], [%1], 16, %2;\n" ::"r"(shared), "l"(global), "r"(bytes),
                 "n"(SharedOffset)
                 : "memory");
#else
    uint4 value = make_uint4(0, 0, 0, 0);
    if (bytes != 0) {
        value = __ldg(static_cast<const uint4*>(global));
    }
    asm volatile("st.shared.v4.b32 [%0+%5], {%1, %2, %3, %4};\n" ::"r"(shared), "r"(value.x), "r"(value.y),
                 "r"(value.z), "r"(value.w), "n"(SharedOffset)
                 : "memory");
#endif
}

__device__ __forceinline__ void commit_copies() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

__device__ __forceinline__ void wait_for_copies() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group 0;\n" ::: "memory");
#endif
}

// Reads of memory that no kernel here writes; the compiler may move them.
template <int Offset>
__device__ __forceinline__ uint4 load_global_128(const void* address) {
    uint4 value;
    asm("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4+%5];\n"
        : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
        : "l"(address), "n"(Offset));
    return value;
}

template <int Offset>
__device__ __forceinline__ uint2 load_global_64(const void* address) {
    uint2 value;
    asm("ld.global.nc.v2.b32 {%0, %1}, [%2+%3];\n" : "=r"(value.x), "=r"(value.y) : "l"(address), "n"(Offset));
    return value;
}

template <int Offset>
__device__ __forceinline__ void store_global_64(void* address, uint2 value) {
    asm volatile("st.global.v2.b32 [%0+%1], {%2, %3};\n" ::"l"(address), "n"(Offset), "r"(value.x), "r"(value.y)
                 : "memory");
}

__device__ __forceinline__ void store_global_128(void* address, uint4 value) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"l"(address), "r"(value.x), "r"(value.y), "r"(value.z),
                 "r"(value.w)
                 : "memory");
}

template <int Offset>
__device__ __forceinline__ uint4 load_shared_128(uint32_t address) {
    uint4 value;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4+%5];\n"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(address), "n"(Offset)
                 : "memory");
    return value;
}

template <int Offset>
__device__ __forceinline__ uint2 load_shared_64(uint32_t address) {
    uint2 value;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2+%3];\n"
                 : "=r"(value.x), "=r"(value.y)
                 : "r"(address), "n"(Offset)
                 : "memory");
    return value;
}

template <int Offset>
__device__ __forceinline__ float4 load_shared_float4(uint32_t address) {
    const uint4 value = load_shared_128<Offset>(address);
    return make_float4(__uint_as_float(value.x), __uint_as_float(value.y), __uint_as_float(value.z),
                       __uint_as_float(value.w));
}

template <int Offset>
__device__ __forceinline__ float2 load_shared_float2(uint32_t address) {
    const uint2 value = load_shared_64<Offset>(address);
    return make_float2(__uint_as_float(value.x), __uint_as_float(value.y));
}

// Four (two) 8x8 matrices of 16-bit elements, transposed: rows are keys, registers hold key pairs.
template <int Offset>
__device__ __forceinline__ void load_transposed_x4(uint32_t (&matrix)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4+%5];\n"
                 : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
                 : "r"(address), "n"(Offset)
                 : "memory");
}

template <int Offset>
__device__ __forceinline__ void load_transposed_x2(uint32_t (&matrix)[2], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2+%3];\n"
                 : "=r"(matrix[0]), "=r"(matrix[1])
                 : "r"(address), "n"(Offset)
                 : "memory");
}

__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

// (x & mask) ^ flip
__device__ __forceinline__ uint32_t and_xor(uint32_t x, uint32_t mask, uint32_t flip) {
    uint32_t y;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;\n" : "=r"(y) : "r"(x), "r"(mask), "r"(flip));
    return y;
}

// The value of the lane whose number differs in the bits of Mask.
template <int Mask>
__device__ __forceinline__ float shuffle_xor(float x) {
    float y;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, 0xffffffff;\n" : "=f"(y) : "f"(x), "n"(Mask));
    return y;
}

template <int Mask>
__device__ __forceinline__ uint32_t shuffle_xor(uint32_t x) {
    uint32_t y;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, 0xffffffff;\n" : "=r"(y) : "r"(x), "n"(Mask));
    return y;
}

// The value of lane 0.
__device__ __forceinline__ uint32_t shuffle_first(uint32_t x) {
    return __shfl_sync(0xffffffffu, x, 0);
}

__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm volatile("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

template <typename Type>
struct Math;

template <>
struct Math<__half> {
    static constexpr uint32_t kOnes = 0x3c003c00;
    static constexpr uint32_t kSigns = 0x80008000;

    static __device__ __forceinline__ uint32_t pack(float low, float high) {
        const __half2 pair = __floats2half2_rn(low, high);
        return *reinterpret_cast<const uint32_t*>(&pair);
    }
    // d = a (16 x 8) * b (8 x 8) + c
    static __device__ __forceinline__ void mma_k8(float (&d)[4], const uint32_t (&a)[2], uint32_t b0,
                                                  const float (&c)[4]) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
            "{%7, %8, %9, %10};\n"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(b0), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
    }
    // d = a (16 x 16) * b (16 x 8) + c
    static __device__ __forceinline__ void mma_k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                                   const float (&c)[4]) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
            "{%8, %9}, {%10, %11, %12, %13};\n"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#else
        const uint32_t low[2] = {a[0], a[1]};
        const uint32_t high[2] = {a[2], a[3]};
        mma_k8(d, low, b0, c);
        mma_k8(d, high, b1, d);
#endif
    }
};

template <>
struct Math<__nv_bfloat16> {
    static constexpr uint32_t kOnes = 0x3f803f80;
    static constexpr uint32_t kSigns = 0x80008000;

    static __device__ __forceinline__ uint32_t pack(float low, float high) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        return *reinterpret_cast<const uint32_t*>(&pair);
    }
    static __device__ __forceinline__ void mma_k8(float (&d)[4], const uint32_t (&a)[2], uint32_t b0,
                                                  const float (&c)[4]) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
        asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
            "{%7, %8, %9, %10};\n"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(b0), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#endif
    }
    static __device__ __forceinline__ void mma_k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                                   const float (&c)[4]) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
            "{%8, %9}, {%10, %11, %12, %13};\n"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#endif
    }
};

}  // namespace vtn::swa
