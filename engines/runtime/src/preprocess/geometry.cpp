#include <cmath>
#include <numeric>

#include "pixel.hpp"

namespace vtn::detail {
namespace {

Axis axis(int size, int resized, int crop) {
    const std::int64_t common = std::gcd(size, resized);
    return {size / common, resized / common, 2 * resized / common, (resized - crop + 1) / 2, size};
}

YuvCoefficients yuv_coefficients(ColorMatrix matrix, ColorRange range) {
    const bool hd = matrix == ColorMatrix::bt709, full = range == ColorRange::full;
    const double kr = hd ? 0.2126 : 0.299, kb = hd ? 0.0722 : 0.114, kg = 1 - kr - kb;
    const double luma = full ? 1.0 : 255.0 / 219, chroma = full ? 1.0 : 255.0 / 224;
    const auto fixed = [](double value) { return static_cast<std::int32_t>(std::lround(value * 65536)); };
    return {fixed(luma),
            full ? 0 : 16,
            fixed(chroma * 2 * (1 - kr)),
            fixed(-chroma * 2 * (1 - kb) * kb / kg),
            fixed(-chroma * 2 * (1 - kr) * kr / kg),
            fixed(chroma * 2 * (1 - kb))};
}

}  // namespace

Axes axes(int width, int height, const Preprocessing& pre) {
    const double w = width, h = height;
    int wide = pre.short_side, high = pre.short_side;
    if (width < height) {
        high = static_cast<int>(std::floor(h / w * pre.short_side));
    } else {
        wide = static_cast<int>(std::floor(w / h * pre.short_side));
    }
    return {axis(height, high, pre.crop_size), axis(width, wide, pre.crop_size)};
}

Source source(const ImageView& image) {
    return {image.data, image.chroma, image.stride, image.chroma_stride, yuv_coefficients(image.matrix, image.range)};
}

std::vector<float> normalised_levels(const Preprocessing& pre) {
    std::vector<float> levels;
    for (int channel = 0; channel < 3; ++channel) {
        for (int level = 0; level < 256; ++level) {
            levels.push_back(static_cast<float>((level / 255.0 - pre.mean[channel]) / pre.std[channel]));
        }
    }
    return levels;
}

}  // namespace vtn::detail
