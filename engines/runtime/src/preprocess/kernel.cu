// A thread a pixel of the crop. All arithmetic is pixel.hpp's, which the CPU uses too.
#include "kernel.hpp"

namespace vtn::detail {
namespace {

// 8 rows of 32: a warp writes 32 neighbours, and reads pixels of one or two source rows
constexpr unsigned kWide = 32, kHigh = 8;

template <PixelFormat Format, InputType Type>
__global__ void __launch_bounds__(kWide* kHigh) preprocess(const KernelParams p) {
    const int j = static_cast<int>(blockIdx.x * kWide + threadIdx.x);
    const int i = static_cast<int>(blockIdx.y * kHigh + threadIdx.y);
    if (i >= p.crop || j >= p.crop) return;
    const Rgb rgb = pixel<Format>(p.source, tap(p.y, i), tap(p.x, j), p.y.denominator, p.x.denominator);
    const std::int64_t at = std::int64_t{i} * p.crop + j;
    if constexpr (Type == InputType::uint8) {
        std::uint8_t* out = static_cast<std::uint8_t*>(p.out) + 3 * at;
        out[0] = static_cast<std::uint8_t>(rgb.r);
        out[1] = static_cast<std::uint8_t>(rgb.g);
        out[2] = static_cast<std::uint8_t>(rgb.b);
    } else {
        float* out = static_cast<float*>(p.out) + at;
        const std::int64_t plane = std::int64_t{p.crop} * p.crop;
        out[0] = p.levels[rgb.r];
        out[plane] = p.levels[256 + rgb.g];
        out[2 * plane] = p.levels[512 + rgb.b];
    }
}

template <PixelFormat Format>
void start(const KernelParams& p, InputType type, cudaStream_t stream) {
    const unsigned crop = static_cast<unsigned>(p.crop);
    const dim3 grid((crop + kWide - 1) / kWide, (crop + kHigh - 1) / kHigh), block(kWide, kHigh);
    if (type == InputType::uint8) {
        preprocess<Format, InputType::uint8><<<grid, block, 0, stream>>>(p);
    } else {
        preprocess<Format, InputType::float32><<<grid, block, 0, stream>>>(p);
    }
}

}  // namespace

cudaError_t launch_preprocess(const KernelParams& params, PixelFormat format, InputType type, cudaStream_t stream) {
    switch (format) {
        case PixelFormat::rgb: start<PixelFormat::rgb>(params, type, stream); break;
        case PixelFormat::bgr: start<PixelFormat::bgr>(params, type, stream); break;
        case PixelFormat::rgba: start<PixelFormat::rgba>(params, type, stream); break;
        case PixelFormat::nv12: start<PixelFormat::nv12>(params, type, stream); break;
    }
    return cudaGetLastError();
}

}  // namespace vtn::detail
