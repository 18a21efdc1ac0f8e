// From a frame of any size to the graph's input, as vtn_export/video/preprocess.py defines it: resize of the shorter
// side (bilinear, align_corners=False, no antialias), centre crop, RGB, rounded to uint8; normalised for float32
// graphs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

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
    bool device = false;     // CUDA pointers
    void* stream = nullptr;  // with these: the cudaStream_t that makes the pixels
};

struct Preprocessing {
    int short_side = 256, crop_size = 224, num_frames = 250;
    double mean[3]{0.45, 0.45, 0.45}, std[3]{0.225, 0.225, 0.225};
};

enum class InputType { uint8, float32 };

inline std::size_t frame_bytes(const Preprocessing& pre, InputType type) {
    return std::size_t{3} * pre.crop_size * pre.crop_size * (type == InputType::uint8 ? 1 : 4);
}

// For one thread. Keeps what depends on the frame's size; allocates only when that changes.
class Preprocessor {
public:
    virtual ~Preprocessor() = default;
    // out: uint8 [crop, crop, 3] or float32 [3, crop, crop], in memory of room(). When it returns, out is ready and the
    // image's pixels are the caller's again. Throws Error.
    virtual void run(const ImageView& image, void* out) = 0;
    // Memory for inputs, as this preprocessor writes and its backend's executors read it.
    virtual std::shared_ptr<std::uint8_t> room(std::size_t bytes) = 0;
    virtual bool on_device() const = 0;  // room() is the GPU's
};

std::unique_ptr<Preprocessor> make_cpu_preprocessor(const Preprocessing& pre, InputType type);
// One CUDA kernel, on the image's stream. Throws Error where there is no GPU, or in a build without TensorRT.
std::unique_ptr<Preprocessor> make_gpu_preprocessor(const Preprocessing& pre, InputType type);

}  // namespace vtn::detail
