// One bundle's graphs, ready to run in one thread.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "executor.hpp"
#include "preprocess/preprocess.hpp"
#include "vtn/vtn.h"

namespace vtn::detail {

using MakeExecutor = std::function<std::unique_ptr<Executor>(const Bundle&, Part)>;

// Frames whose shape and format were checked. Throws Error (shape) for what cannot be a frame.
ImageView checked_view(const vtn_frame* frame);

class Classifier {
public:
    Classifier(const std::string& bundle, const Options& options);             // throws Error
    Classifier(Bundle bundle, std::string backend, const MakeExecutor& make);  // labels are read from the bundle
    std::unique_ptr<Classifier> clone();

    void full(const vtn_frame* frames, std::size_t count, const std::int64_t* index, float* logits, std::size_t size);
    void chunked(const vtn_frame* frames, std::size_t count, const std::int64_t* index, int chunk, float* logits,
                 std::size_t size);
    void features(const vtn_frame* frames, std::size_t count, int chunk, float* features, std::size_t size);
    void classify(const float* features, std::size_t count, const std::int64_t* index, float* logits, std::size_t size);

    // One frame: into the graph's input type, in memory of room(), and from there through the backbone.
    void preprocess(const ImageView& image, void* out) { preprocessor_->run(image, out); }
    std::shared_ptr<std::uint8_t> room(std::size_t frames) { return preprocessor_->room(frames * frame_size()); }
    void backbone(const void* frames, std::int64_t count, float* features);
    std::unique_ptr<Preprocessor> make_preprocessor() const;  // for a second thread
    bool same_engine(const Classifier& other) const { return shared_ == other.shared_; }

    const Manifest& manifest() const { return shared_->bundle.manifest; }
    const std::vector<std::string>& labels() const { return shared_->labels; }
    const std::string& backend() const { return shared_->backend; }
    std::size_t frame_size() const { return frame_bytes(manifest().preprocessing, manifest().input_type); }

private:
    // What clones have in common. A graph is loaded once, by whoever asks first; each takes a clone.
    struct Shared {
        Bundle bundle;
        std::vector<std::string> labels;
        std::string backend;
        MakeExecutor make;
        bool gpu = false;

        const Executor& load(Part part);  // to be cloned

    private:
        std::mutex mutex_;
        std::unique_ptr<Executor> loaded_[3];
    };
    static std::shared_ptr<Shared> open(const std::string& path, const Options& options);
    explicit Classifier(std::shared_ptr<Shared> shared);
    Executor& executor(Part part);
    std::uint8_t* pixels(std::size_t frames);
    const std::int32_t* positions(const std::int64_t* index, std::size_t count);

    std::shared_ptr<Shared> shared_;
    std::unique_ptr<Preprocessor> preprocessor_;
    std::unique_ptr<Executor> executors_[3];
    std::shared_ptr<std::uint8_t> pixels_;
    std::size_t pixel_frames_ = 0;
    std::vector<float> features_;
    std::vector<std::int32_t> positions_;
};

}  // namespace vtn::detail
