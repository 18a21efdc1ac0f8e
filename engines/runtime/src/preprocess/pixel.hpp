// One pixel of the crop from a frame of any size, in whole numbers. The CPU's loop and the CUDA kernel both call this,
// so both give the same bytes.
#pragma once

#include <cstdint>
#include <vector>

#include "preprocess.hpp"

#if defined(__CUDACC__)
#define VTN_BOTH __host__ __device__ __forceinline__
#else
#define VTN_BOTH inline
#endif

namespace vtn::detail {

// Along one axis, pixel i of the crop has its centre at ((2·(offset + i) + 1)·step - half) / denominator of the source:
// (i + 1/2)·size/resized - 1/2, as a fraction.
struct Axis {
    std::int64_t step, half, denominator;
    std::int32_t offset, size;
};

// The value between two source pixels: (low·(denominator - weight) + high·weight) / denominator.
struct Tap {
    std::int64_t weight;
    std::int32_t low, high;
};

VTN_BOTH Tap tap(const Axis& axis, int i) {
    const std::int64_t place = (2 * (std::int64_t{axis.offset} + i) + 1) * axis.step - axis.half;
    const std::int64_t numerator = place < 0 ? 0 : place;
    const std::int64_t low = numerator / axis.denominator;
    if (low >= axis.size - 1) return {0, axis.size - 1, axis.size - 1};  // beyond the last centre: the edge itself
    return {numerator - low * axis.denominator, static_cast<std::int32_t>(low), static_cast<std::int32_t>(low + 1)};
}

// NV12 to RGB in 16.16 fixed point: R = (luma·(Y - black) + rv·(V - 128) + half) >> 16, and so on.
struct YuvCoefficients {
    std::int32_t luma, black, rv, gu, gv, bu;
};

struct Source {
    const std::uint8_t* data;
    const std::uint8_t* chroma;
    std::int64_t stride, chroma_stride;
    YuvCoefficients yuv;
};

struct Rgb {
    std::int32_t r, g, b;
};

VTN_BOTH std::int32_t clamp_level(std::int32_t value) {
    return value < 0 ? 0 : value > 255 ? 255 : value;
}

template <PixelFormat Format>
VTN_BOTH Rgb load(const Source& source, std::int32_t row, std::int32_t column) {
    if constexpr (Format == PixelFormat::nv12) {
        const std::uint8_t* uv = source.chroma + (row / 2) * source.chroma_stride + (column / 2) * 2;
        const YuvCoefficients& k = source.yuv;
        const std::int32_t y = k.luma * (source.data[row * source.stride + column] - k.black) + 32768;
        const std::int32_t u = uv[0] - 128, v = uv[1] - 128;
        return {clamp_level((y + k.rv * v) >> 16), clamp_level((y + k.gu * u + k.gv * v) >> 16),
                clamp_level((y + k.bu * u) >> 16)};
    } else {
        constexpr int bytes = Format == PixelFormat::rgba ? 4 : 3;
        const std::uint8_t* p = source.data + row * source.stride + std::int64_t{bytes} * column;
        constexpr int red = Format == PixelFormat::bgr ? 2 : 0;
        return {p[red], p[1], p[2 - red]};
    }
}

// numerator / denominator to the nearest integer, ties to even, as numpy's rint.
VTN_BOTH std::uint8_t divide_rounded(std::int64_t numerator, std::int64_t denominator) {
    std::int64_t quotient = numerator / denominator;
    const std::int64_t twice = 2 * (numerator - quotient * denominator);
    quotient += twice > denominator || (twice == denominator && (quotient & 1) != 0);
    return static_cast<std::uint8_t>(quotient);
}

// The pixel at (y, x); 255 · both denominators stays below 2^62 for every frame and crop that is accepted.
template <PixelFormat Format>
VTN_BOTH Rgb pixel(const Source& source, const Tap& y, const Tap& x, std::int64_t y_denominator,
                   std::int64_t x_denominator) {
    const Rgb a = load<Format>(source, y.low, x.low), b = load<Format>(source, y.low, x.high);
    const Rgb c = load<Format>(source, y.high, x.low), d = load<Format>(source, y.high, x.high);
    const std::int64_t left = x_denominator - x.weight, up = y_denominator - y.weight;
    const std::int64_t total = x_denominator * y_denominator;
    const auto mix = [&](std::int32_t p, std::int32_t q, std::int32_t r, std::int32_t s) -> std::int32_t {
        return divide_rounded((p * left + q * x.weight) * up + (r * left + s * x.weight) * y.weight, total);
    };
    return {mix(a.r, b.r, c.r, d.r), mix(a.g, b.g, c.g, d.g), mix(a.b, b.b, c.b, d.b)};
}

struct Axes {
    Axis y, x;
};
Axes axes(int width, int height, const Preprocessing& pre);
Source source(const ImageView& image);
// float32 of every grey level, [3, 256].
std::vector<float> normalised_levels(const Preprocessing& pre);

}  // namespace vtn::detail
