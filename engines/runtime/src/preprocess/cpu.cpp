#include "error.hpp"
#include "pixel.hpp"

namespace vtn::detail {
namespace {

class CpuPreprocessor final : public Preprocessor {
public:
    CpuPreprocessor(const Preprocessing& pre, InputType type)
        : pre_(pre), type_(type), levels_(normalised_levels(pre)) {}

    void run(const ImageView& image, void* out) override {
        if (image.device) {
            throw Error(VTN_ERROR_BACKEND,
                        "frame: got device memory, expected host memory; this backend resizes on the CPU");
        }
        if (image.width != width_ || image.height != height_) {
            axes_ = axes(image.width, image.height, pre_);
            x_.resize(std::size_t(pre_.crop_size));
            for (int i = 0; i < pre_.crop_size; ++i) x_[std::size_t(i)] = tap(axes_.x, i);
            width_ = image.width, height_ = image.height;
        }
        switch (image.format) {
            case PixelFormat::rgb: return resize<PixelFormat::rgb>(source(image), out);
            case PixelFormat::bgr: return resize<PixelFormat::bgr>(source(image), out);
            case PixelFormat::rgba: return resize<PixelFormat::rgba>(source(image), out);
            case PixelFormat::nv12: return resize<PixelFormat::nv12>(source(image), out);
        }
    }

    std::shared_ptr<std::uint8_t> room(std::size_t bytes) override {
        return {new std::uint8_t[bytes], std::default_delete<std::uint8_t[]>()};
    }
    bool on_device() const override { return false; }

private:
    template <PixelFormat Format>
    void resize(const Source& from, void* out) const {
        const std::size_t crop = std::size_t(pre_.crop_size), plane = crop * crop;
        auto bytes = static_cast<std::uint8_t*>(out);
        auto floats = static_cast<float*>(out);
        for (std::size_t i = 0; i < crop; ++i) {
            const Tap y = tap(axes_.y, int(i));
            for (std::size_t j = 0; j < crop; ++j) {
                const Rgb rgb = pixel<Format>(from, y, x_[j], axes_.y.denominator, axes_.x.denominator);
                const std::size_t at = i * crop + j;
                if (type_ == InputType::uint8) {
                    bytes[3 * at] = std::uint8_t(rgb.r);
                    bytes[3 * at + 1] = std::uint8_t(rgb.g);
                    bytes[3 * at + 2] = std::uint8_t(rgb.b);
                } else {
                    floats[at] = levels_[std::size_t(rgb.r)];
                    floats[plane + at] = levels_[256 + std::size_t(rgb.g)];
                    floats[2 * plane + at] = levels_[512 + std::size_t(rgb.b)];
                }
            }
        }
    }

    Preprocessing pre_;
    InputType type_;
    int width_ = 0, height_ = 0;
    Axes axes_{};
    std::vector<Tap> x_;
    std::vector<float> levels_;
};

}  // namespace

std::unique_ptr<Preprocessor> make_cpu_preprocessor(const Preprocessing& pre, InputType type) {
    return std::make_unique<CpuPreprocessor>(pre, type);
}

}  // namespace vtn::detail
