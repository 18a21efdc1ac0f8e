#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "preprocess.hpp"

namespace vtn::detail {
namespace {

struct Rgb {
    int r, g, b;
};

int clamp(int value) {
    return std::clamp(value, 0, 255);
}

// numerator / denominator to the nearest integer, ties to even, as numpy's rint.
std::uint8_t divide(std::int64_t numerator, std::int64_t denominator) {
    std::int64_t quotient = numerator / denominator;
    const std::int64_t twice = 2 * (numerator - quotient * denominator);
    quotient += twice > denominator || (twice == denominator && (quotient & 1));
    return static_cast<std::uint8_t>(quotient);
}

}  // namespace

YuvCoefficients yuv_coefficients(ColorMatrix matrix, ColorRange range) {
    const bool hd = matrix == ColorMatrix::bt709, full = range == ColorRange::full;
    const double kr = hd ? 0.2126 : 0.299, kb = hd ? 0.0722 : 0.114, kg = 1 - kr - kb;
    const double luma = full ? 1.0 : 255.0 / 219, chroma = full ? 1.0 : 255.0 / 224;
    const auto fixed = [](double value) { return static_cast<int>(std::lround(value * 65536)); };
    return {fixed(luma),
            full ? 0 : 16,
            fixed(chroma * 2 * (1 - kr)),
            fixed(-chroma * 2 * (1 - kb) * kb / kg),
            fixed(-chroma * 2 * (1 - kr) * kr / kg),
            fixed(chroma * 2 * (1 - kb))};
}

Taps taps(int size, int resized, int crop) {
    const std::int64_t common = std::gcd(size, resized);
    Taps result;
    result.denominator = 2 * resized / common;
    const std::int64_t offset = (resized - crop + 1) / 2;
    for (std::int64_t i = offset; i < offset + crop; ++i) {
        const std::int64_t numerator = std::max<std::int64_t>((2 * i + 1) * (size / common) - resized / common, 0);
        const std::int64_t low = std::min<std::int64_t>(numerator / result.denominator, size - 1);
        const std::int64_t high = std::min<std::int64_t>(low + 1, size - 1);
        result.low.push_back(static_cast<std::int32_t>(low));
        result.high.push_back(static_cast<std::int32_t>(high));
        result.weight.push_back(low == high ? 0 : numerator - low * result.denominator);
    }
    return result;
}

CpuPreprocessor::CpuPreprocessor(const Preprocessing& pre, InputType type) : pre_(pre), type_(type) {
    for (int channel = 0; channel < 3; ++channel) {
        for (int level = 0; level < 256; ++level) {
            levels_.push_back(static_cast<float>((level / 255.0 - pre.mean[channel]) / pre.std[channel]));
        }
    }
}

template <typename Load>
void CpuPreprocessor::resize(Load load, void* out) {
    const int crop = pre_.crop_size;
    const std::int64_t total = x_.denominator * y_.denominator;
    const std::size_t plane = std::size_t(crop) * crop;
    for (int i = 0; i < crop; ++i) {
        const std::int64_t down = y_.weight[i], up = y_.denominator - down;
        for (int j = 0; j < crop; ++j) {
            const std::int64_t right = x_.weight[j], left = x_.denominator - right;
            const Rgb a = load(y_.low[i], x_.low[j]), b = load(y_.low[i], x_.high[j]);
            const Rgb c = load(y_.high[i], x_.low[j]), d = load(y_.high[i], x_.high[j]);
            const auto mix = [&](int p, int q, int r, int s) {
                return divide((p * left + q * right) * up + (r * left + s * right) * down, total);
            };
            const std::uint8_t rgb[3]{mix(a.r, b.r, c.r, d.r), mix(a.g, b.g, c.g, d.g), mix(a.b, b.b, c.b, d.b)};
            const std::size_t at = std::size_t(i) * crop + j;
            if (type_ == InputType::uint8) {
                std::memcpy(static_cast<std::uint8_t*>(out) + 3 * at, rgb, 3);
            } else {
                for (int k = 0; k < 3; ++k) static_cast<float*>(out)[k * plane + at] = levels_[256 * k + rgb[k]];
            }
        }
    }
}

void CpuPreprocessor::run(const ImageView& image, void* out) {
    if (image.width != width_ || image.height != height_) {
        const double w = image.width, h = image.height;
        int wide = pre_.short_side, high = pre_.short_side;
        if (w < h) {
            high = static_cast<int>(std::floor(h / w * pre_.short_side));
        } else {
            wide = static_cast<int>(std::floor(w / h * pre_.short_side));
        }
        x_ = taps(image.width, wide, pre_.crop_size);
        y_ = taps(image.height, high, pre_.crop_size);
        width_ = image.width, height_ = image.height;
    }
    if (image.format == PixelFormat::nv12) {
        const YuvCoefficients k = yuv_coefficients(image.matrix, image.range);
        resize(
            [&](int row, int column) {
                const std::uint8_t* uv = image.chroma + (row / 2) * image.chroma_stride + (column / 2) * 2;
                const int y = k.luma * (image.data[row * image.stride + column] - k.black) + 32768;
                const int u = uv[0] - 128, v = uv[1] - 128;
                return Rgb{clamp((y + k.rv * v) >> 16), clamp((y + k.gu * u + k.gv * v) >> 16),
                           clamp((y + k.bu * u) >> 16)};
            },
            out);
        return;
    }
    const int bytes = image.format == PixelFormat::rgba ? 4 : 3;
    const int r = image.format == PixelFormat::bgr ? 2 : 0, b = 2 - r;
    resize(
        [&](int row, int column) {
            const std::uint8_t* p = image.data + row * image.stride + std::int64_t{bytes} * column;
            return Rgb{p[r], p[1], p[b]};
        },
        out);
}

}  // namespace vtn::detail
