#include <cstring>

#include "../cuda.hpp"
#include "kernel.hpp"

namespace vtn::detail {
namespace {

class GpuPreprocessor final : public Preprocessor {
public:
    GpuPreprocessor(const Preprocessing& pre, InputType type) : pre_(pre), type_(type), device_(Device::current()) {
        const std::vector<float> levels = normalised_levels(pre);
        levels_.reserve(levels.size() * sizeof(float), false, false);
        check_cuda(cudaMemcpy(levels_.device, levels.data(), levels.size() * sizeof(float), cudaMemcpyHostToDevice),
                   "cudaMemcpy");
        check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    }
    ~GpuPreprocessor() override { cudaStreamDestroy(stream_); }

    void run(const ImageView& image, void* out) override {
        const DeviceScope scope(device_.id);
        if (image.width != width_ || image.height != height_) {
            axes_ = axes(image.width, image.height, pre_);
            width_ = image.width, height_ = image.height;
        }
        KernelParams params{source(image), axes_.y, axes_.x, out, static_cast<const float*>(levels_.device),
                            pre_.crop_size};
        const cudaStream_t stream = image.device ? static_cast<cudaStream_t>(image.stream) : stream_;
        if (!image.device) upload(image, params.source);
        check_cuda(launch_preprocess(params, image.format, type_, stream), "preprocessing kernel");
        // The pixels are the caller's when this returns, and the engine's stream need not know the caller's.
        check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    }

    std::shared_ptr<std::uint8_t> room(std::size_t bytes) override {
        const DeviceScope scope(device_.id);
        auto buffer = std::make_shared<Buffer>();
        buffer->reserve(bytes, device_.integrated, false);
        return {buffer, static_cast<std::uint8_t*>(buffer->device)};
    }
    bool on_device() const override { return true; }

private:
    // The frame without its rows' gaps, where the kernel can read it.
    void upload(const ImageView& image, Source& from) {
        const bool nv12 = image.format == PixelFormat::nv12;
        const std::size_t channels = nv12 ? 1 : image.format == PixelFormat::rgba ? 4 : 3;
        const std::size_t row = std::size_t(image.width) * channels, rows = std::size_t(image.height);
        const std::size_t pair = nv12 ? 2 * ((std::size_t(image.width) + 1) / 2) : 0, pairs = (rows + 1) / 2;
        staging_.reserve(row * rows + pair * pairs, device_.integrated, false);
        const auto copy = [&](std::size_t at, const std::uint8_t* data, std::int64_t stride, std::size_t width,
                              std::size_t height) {
            if (staging_.mapped) {
                auto to = static_cast<std::uint8_t*>(staging_.host) + at;
                for (std::size_t i = 0; i < height; ++i, to += width, data += stride) std::memcpy(to, data, width);
            } else {
                check_cuda(cudaMemcpy2DAsync(static_cast<std::uint8_t*>(staging_.device) + at, width, data,
                                             std::size_t(stride), width, height, cudaMemcpyHostToDevice, stream_),
                           "cudaMemcpy2DAsync");
            }
        };
        copy(0, image.data, image.stride, row, rows);
        from.data = static_cast<const std::uint8_t*>(staging_.device);
        from.stride = std::int64_t(row);
        if (nv12) {
            copy(row * rows, image.chroma, image.chroma_stride, pair, pairs);
            from.chroma = from.data + row * rows;
            from.chroma_stride = std::int64_t(pair);
        }
    }

    Preprocessing pre_;
    InputType type_;
    Device device_;
    int width_ = 0, height_ = 0;
    Axes axes_{};
    Buffer levels_, staging_;
    cudaStream_t stream_ = nullptr;
};

}  // namespace

std::unique_ptr<Preprocessor> make_gpu_preprocessor(const Preprocessing& pre, InputType type) {
    return std::make_unique<GpuPreprocessor>(pre, type);
}

}  // namespace vtn::detail
