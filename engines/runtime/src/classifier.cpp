#include "classifier.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"

namespace vtn::detail {
namespace {

constexpr std::size_t kMaxFrames = 1 << 20;

void check_count(std::size_t count) {
    if (count < 1 || count > kMaxFrames) {
        throw Error(VTN_ERROR_SHAPE,
                    "frames: got " + std::to_string(count) + ", expected 1.." + std::to_string(kMaxFrames));
    }
}

void check_logits(const float* logits, std::size_t size, int classes) {
    if (logits == nullptr) throw Error(VTN_ERROR_USAGE, "logits: got a null pointer");
    if (size < std::size_t(classes)) {
        throw Error(VTN_ERROR_SHAPE, "logits: got room for " + std::to_string(size) + ", expected at least " +
                                         std::to_string(classes) + " (vtn_classifier_num_classes)");
    }
}

}  // namespace

ImageView checked_view(const vtn_frame* frame) {
    if (frame == nullptr) throw Error(VTN_ERROR_USAGE, "frame: got a null pointer");
    if (frame->struct_size != sizeof(vtn_frame)) {
        throw Error(VTN_ERROR_USAGE, "frame: got struct_size " + std::to_string(frame->struct_size) + ", expected " +
                                         std::to_string(sizeof(vtn_frame)) + "; fill it with sizeof(vtn_frame)");
    }
    if (frame->data == nullptr) throw Error(VTN_ERROR_USAGE, "frame: got null data");
    const auto one_of = [](const char* what, int got, int last) {
        if (got < 0 || got > last) {
            throw Error(VTN_ERROR_SHAPE, "frame: got " + std::string(what) + " " + std::to_string(got) +
                                             ", expected one of the constants 0.." + std::to_string(last));
        }
    };
    one_of("format", frame->format, VTN_NV12);
    one_of("matrix", frame->matrix, VTN_BT709);
    one_of("range", frame->range, VTN_FULL_RANGE);
    one_of("memory", frame->memory, VTN_DEVICE);
    const int w = frame->width, h = frame->height;
    if (w < 1 || h < 1 || w > 32768 || h > 32768 || w > 256 * std::int64_t{h} || h > 256 * std::int64_t{w}) {
        throw Error(VTN_ERROR_SHAPE, "frame: got " + std::to_string(w) + " x " + std::to_string(h) +
                                         " pixels, expected 1..32768 each and no side over 256 times the other");
    }
    ImageView view;
    view.data = frame->data, view.width = w, view.height = h;
    view.format = static_cast<PixelFormat>(frame->format);
    view.matrix = static_cast<ColorMatrix>(frame->matrix);
    view.range = static_cast<ColorRange>(frame->range);
    view.device = frame->memory == VTN_DEVICE;
    view.stream = frame->stream;
    const bool nv12 = view.format == PixelFormat::nv12;
    const std::int64_t row = std::int64_t{w} * (nv12 ? 1 : view.format == PixelFormat::rgba ? 4 : 3);
    const auto stride = [](const char* what, std::int64_t got, std::int64_t least) {
        if (got < least || got > (std::int64_t{1} << 31)) {
            throw Error(VTN_ERROR_SHAPE, "frame: got " + std::string(what) + " " + std::to_string(got) +
                                             ", expected at least " + std::to_string(least) + " bytes");
        }
        return got;
    };
    view.stride = stride("stride", frame->stride == 0 ? row : frame->stride, row);
    if (nv12) {
        const std::int64_t pair = 2 * ((std::int64_t{w} + 1) / 2);
        view.chroma = frame->chroma != nullptr ? frame->chroma : frame->data + view.stride * h;
        const std::int64_t same = frame->stride == 0 ? pair : std::max(view.stride, pair);
        view.chroma_stride = stride("chroma_stride", frame->chroma_stride == 0 ? same : frame->chroma_stride, pair);
    }
    return view;
}

Classifier::Classifier(std::shared_ptr<Shared> shared)
    : shared_(std::move(shared)), preprocessor_(make_preprocessor()) {}

std::unique_ptr<Preprocessor> Classifier::make_preprocessor() const {
    const auto make = shared_->gpu ? make_gpu_preprocessor : make_cpu_preprocessor;
    return make(manifest().preprocessing, manifest().input_type);
}

Classifier::Classifier(Bundle bundle, std::string backend, const MakeExecutor& make)
    : Classifier([&] {
          auto shared = std::make_shared<Shared>();
          shared->labels = bundle.labels();
          shared->bundle = std::move(bundle), shared->backend = std::move(backend), shared->make = make;
          return shared;
      }()) {}

Classifier::Classifier(const std::string& path, const Options& options) : Classifier(open(path, options)) {
    // What runs first and most is loaded here, so that a wrong engine is an error of opening.
    if (manifest().graphs.count(Part::backbone) != 0) executor(Part::backbone);
    if (manifest().graphs.count(Part::temporal) != 0) executor(Part::temporal);
}

std::shared_ptr<Classifier::Shared> Classifier::open(const std::string& path, const Options& options) {
    auto shared = std::make_shared<Shared>();
    shared->bundle = Bundle::open(path);
    shared->labels = shared->bundle.labels();
    const auto use = [&](bool gpu) {
        shared->gpu = gpu, shared->backend = gpu ? "tensorrt" : "openvino";
        shared->make = [options, gpu](const Bundle& from, Part part) {
            return gpu ? make_tensorrt(from, part, options) : make_openvino(from, part, options);
        };
    };
    const bool automatic = options.backend == "auto";
    if (!automatic && options.backend != "tensorrt" && options.backend != "openvino") {
        throw Error(VTN_ERROR_USAGE, "backend: got '" + options.backend + "', expected auto, tensorrt or openvino");
    }
    use(automatic ? has_tensorrt() || !has_openvino() : options.backend == "tensorrt");
    const auto& graphs = shared->bundle.manifest.graphs;
    const Part first = graphs.count(Part::backbone) != 0 ? Part::backbone : graphs.begin()->first;
    try {
        // before anything of CUDA: what is told first is which library is missing
        if (shared->gpu) shared->load(first);
    } catch (const Error& reason) {
        // With both backends, the GPU where an engine fits this machine. Where OpenVINO cannot serve either, both
        // reasons are told, under the GPU's code.
        if (!automatic || !has_openvino()) throw;
        use(false);
        try {
            shared->load(first);
        } catch (const Error& other) {
            throw Error(reason.code, std::string(reason.what()) + "; nor on the CPU: " + other.what());
        }
    }
    return shared;
}

const Executor& Classifier::Shared::load(Part part) {
    bundle.graph(part);  // says which parts there are
    const std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<Executor>& one = loaded_[static_cast<int>(part)];
    if (one == nullptr) one = make(bundle, part);
    return *one;
}

std::unique_ptr<Classifier> Classifier::clone() {
    std::unique_ptr<Classifier> copy(new Classifier(shared_));
    for (int i = 0; i < 3; ++i) {
        if (executors_[i] != nullptr) copy->executors_[i] = executors_[i]->clone();
    }
    return copy;
}

Executor& Classifier::executor(Part part) {
    std::unique_ptr<Executor>& slot = executors_[static_cast<int>(part)];
    if (slot == nullptr) slot = shared_->load(part).clone();
    return *slot;
}

// Source indices as the graph takes them: int32. It takes them modulo the position table itself; done here, a camera
// may run for years.
const std::int32_t* Classifier::positions(const std::int64_t* index, std::size_t count) {
    positions_.resize(count);
    const std::int64_t period = manifest().frame_positions;
    for (std::size_t i = 0; i < count; ++i) {
        const std::int64_t at = index == nullptr ? std::int64_t(i) : index[i];
        if (at < 0 || (i > 0 && index != nullptr && at <= index[i - 1])) {
            throw Error(VTN_ERROR_SHAPE, "frame_index: got " + std::to_string(at) + " at " + std::to_string(i) +
                                             ", expected indices of 0 or more, each larger than the one before");
        }
        if (period == 0 && at > INT32_MAX) {
            throw Error(VTN_ERROR_SHAPE, "frame_index: got " + std::to_string(at) +
                                             ", expected less than 2^31: the bundle states no position table");
        }
        positions_[i] = static_cast<std::int32_t>(period == 0 ? at : at % period);
    }
    return positions_.data();
}

std::uint8_t* Classifier::pixels(std::size_t frames) {
    if (frames > pixel_frames_) {
        pixels_.reset();  // the old memory first: a device has little
        pixel_frames_ = 0;
        pixels_ = room(frames);
        pixel_frames_ = frames;
    }
    return pixels_.get();
}

void Classifier::backbone(const void* frames, std::int64_t count, float* features) {
    Inputs inputs;
    inputs.frames = frames, inputs.count = count, inputs.on_device = preprocessor_->on_device();
    executor(Part::backbone).run(inputs, features, std::size_t(count) * manifest().feature_dim);
}

void Classifier::full(const vtn_frame* frames, std::size_t count, const std::int64_t* index, float* logits,
                      std::size_t size) {
    if (frames == nullptr) throw Error(VTN_ERROR_USAGE, "frames: got a null pointer");
    check_count(count);
    check_logits(logits, size, manifest().num_classes);
    Executor& graph = executor(Part::full);
    std::uint8_t* out = pixels(count);
    for (std::size_t i = 0; i < count; ++i) preprocess(checked_view(frames + i), out + i * frame_size());
    Inputs inputs;
    inputs.on_device = preprocessor_->on_device();
    inputs.frames = out, inputs.frame_index = positions(index, count), inputs.count = std::int64_t(count);
    graph.run(inputs, logits, std::size_t(manifest().num_classes));
}

void Classifier::features(const vtn_frame* frames, std::size_t count, int chunk, float* out, std::size_t size) {
    if (frames == nullptr) throw Error(VTN_ERROR_USAGE, "frames: got a null pointer");
    if (out == nullptr) throw Error(VTN_ERROR_USAGE, "features: got a null pointer");
    check_count(count);
    if (chunk < 1 || chunk > 4096) {
        throw Error(VTN_ERROR_USAGE, "chunk: got " + std::to_string(chunk) + ", expected 1..4096");
    }
    const std::size_t width = std::size_t(manifest().feature_dim);
    if (size < count * width) {
        throw Error(VTN_ERROR_SHAPE, "features: got room for " + std::to_string(size) + ", expected at least " +
                                         std::to_string(count * width));
    }
    std::uint8_t* inputs = pixels(std::min(count, std::size_t(chunk)));
    for (std::size_t first = 0; first < count; first += std::size_t(chunk)) {
        const std::size_t part = std::min(std::size_t(chunk), count - first);
        for (std::size_t i = 0; i < part; ++i) {
            preprocess(checked_view(frames + first + i), inputs + i * frame_size());
        }
        backbone(inputs, std::int64_t(part), out + first * width);
    }
}

void Classifier::chunked(const vtn_frame* frames, std::size_t count, const std::int64_t* index, int chunk,
                         float* logits, std::size_t size) {
    check_count(count);
    check_logits(logits, size, manifest().num_classes);
    features_.resize(count * std::size_t(manifest().feature_dim));
    features(frames, count, chunk, features_.data(), features_.size());
    classify(features_.data(), count, index, logits, size);
}

void Classifier::classify(const float* features, std::size_t count, const std::int64_t* index, float* logits,
                          std::size_t size) {
    if (features == nullptr) throw Error(VTN_ERROR_USAGE, "features: got a null pointer");
    check_count(count);
    check_logits(logits, size, manifest().num_classes);
    Inputs inputs;
    inputs.features = features, inputs.frame_index = positions(index, count), inputs.count = std::int64_t(count);
    executor(Part::temporal).run(inputs, logits, std::size_t(manifest().num_classes));
}

}  // namespace vtn::detail
