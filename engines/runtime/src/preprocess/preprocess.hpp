// From a frame of any size to the graph's input, as vtn_export/video/preprocess.py defines it: resize of the shorter
// side (bilinear, align_corners=False, no antialias), centre crop, RGB, rounded to uint8; normalised for float32
// graphs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace vtn::detail {

enum class PixelFormat { rgb, bgr, rgba, nv12 };
enum class ColorMatrix { bt601, bt709 };
enum class ColorRange { limited, full };

struct ImageView {
    const std::uint8_t* data = nullptr;  // NV12: luma
    const std::uint8_t* chroma = nullptr;
    std::int64_t stride = 0;  // bytes
    std::int64_t chroma_stride = 0;
    int width = 0, height = 0;
    PixelFormat format = PixelFormat::rgb;
    ColorMatrix matrix = ColorMatrix::bt601;
    ColorRange range = ColorRange::limited;
};

struct Preprocessing {
    int short_side = 256, crop_size = 224, num_frames = 250;
    double mean[3]{0.45, 0.45, 0.45}, std[3]{0.225, 0.225, 0.225};
};

enum class InputType { uint8, float32 };

inline std::size_t frame_bytes(const Preprocessing& pre, InputType type) {
    return std::size_t{3} * pre.crop_size * pre.crop_size * (type == InputType::uint8 ? 1 : 4);
}

// NV12 to RGB in 16.16 fixed point: R = (luma·(Y - black) + rv·(V - 128) + half) >> 16, and so on.
struct YuvCoefficients {
    int luma, black, rv, gu, gv, bu;
};
YuvCoefficients yuv_coefficients(ColorMatrix matrix, ColorRange range);

// Where the crop's pixels come from along one axis: (low·(denominator - weight) + high·weight) / denominator.
struct Taps {
    std::vector<std::int32_t> low, high;
    std::vector<std::int64_t> weight;
    std::int64_t denominator = 1;
};
Taps taps(int size, int resized, int crop);

// On the CPU. Not for several threads; keeps the taps of the last frame size, allocates only when that changes.
class CpuPreprocessor {
public:
    CpuPreprocessor(const Preprocessing& pre, InputType type);
    // out: uint8 [crop, crop, 3] or float32 [3, crop, crop].
    void run(const ImageView& image, void* out);

private:
    template <typename Load>
    void resize(Load load, void* out);

    Preprocessing pre_;
    InputType type_;
    int width_ = 0, height_ = 0;
    Taps x_, y_;
    std::vector<float> levels_;  // [3, 256]
};

}  // namespace vtn::detail
