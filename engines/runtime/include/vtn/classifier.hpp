// vtn::Classifier: a bundle, ready to run. Thin over the C ABI (vtn/vtn.h has the rules for threads and ownership).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "vtn/error.hpp"
#include "vtn/frame.hpp"

namespace vtn {

struct Options {
    std::string backend = "auto";  // "tensorrt", "openvino"
    int threads = 0;               // of the CPU executor; 0: all
    std::string tensorrt_library, plugin_library;
};

struct Label {
    std::string name;
    double probability;
};

class Classifier {
public:
    // Throws Error: the bundle, its engines, the GPU or the libraries are not as they must be.
    explicit Classifier(const std::string& bundle, const Options& options = {}) {
        const auto given = [](const std::string& text) { return text.empty() ? nullptr : text.c_str(); };
        const vtn_options plain{sizeof(vtn_options), given(options.backend), options.threads,
                                given(options.tensorrt_library), given(options.plugin_library)};
        vtn_classifier* handle = nullptr;
        check(vtn_classifier_open(bundle.c_str(), &plain, &handle));
        handle_.reset(handle);
    }

    // For another thread; shares the engine.
    Classifier clone() const {
        vtn_classifier* handle = nullptr;
        check(vtn_classifier_clone(handle_.get(), &handle));
        return Classifier(handle);
    }

    // Logits, one a class. index: the frames' places in their source, rising; empty: 0, 1, 2, …
    std::vector<float> full(const std::vector<Frame>& frames, const std::vector<std::int64_t>& index = {}) {
        std::vector<float> logits = room(frames.size(), index);
        check(vtn_classify_full(handle_.get(), frames.data(), frames.size(), pointer(index), logits.data(),
                                logits.size()));
        return logits;
    }

    std::vector<float> chunked(const std::vector<Frame>& frames, const std::vector<std::int64_t>& index = {},
                               int chunk = 16) {
        std::vector<float> logits = room(frames.size(), index);
        check(vtn_classify_chunked(handle_.get(), frames.data(), frames.size(), pointer(index), chunk, logits.data(),
                                   logits.size()));
        return logits;
    }

    // [frames, feature_dim()], row after row.
    std::vector<float> features(const std::vector<Frame>& frames, int chunk = 16) {
        std::vector<float> values(frames.size() * std::size_t(feature_dim()));
        check(vtn_features(handle_.get(), frames.data(), frames.size(), chunk, values.data(), values.size()));
        return values;
    }

    std::vector<float> classify(const std::vector<float>& features, const std::vector<std::int64_t>& index = {}) {
        const std::size_t width = std::max<std::size_t>(1, std::size_t(feature_dim()));
        if (features.empty() || features.size() % width != 0) {
            throw Error(VTN_ERROR_SHAPE, "features: got " + std::to_string(features.size()) +
                                             " values, expected a multiple of " + std::to_string(width));
        }
        std::vector<float> logits = room(features.size() / width, index);
        check(vtn_classify_features(handle_.get(), features.data(), features.size() / width, pointer(index),
                                    logits.data(), logits.size()));
        return logits;
    }

    // The likeliest labels, likeliest first.
    std::vector<Label> top(const std::vector<float>& logits, std::size_t count = 5) const {
        std::vector<int> order(logits.size());
        double sum = 0;
        const float most = logits.empty() ? 0 : *std::max_element(logits.begin(), logits.end());
        for (std::size_t i = 0; i < logits.size(); ++i) {
            order[i] = int(i);
            sum += std::exp(double(logits[i]) - most);
        }
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
        std::vector<Label> found;
        for (std::size_t i = 0; i < std::min(count, order.size()); ++i) {
            const char* name = vtn_classifier_label(handle_.get(), order[i]);
            found.push_back({name == nullptr ? "?" : name, std::exp(double(logits[order[i]]) - most) / sum});
        }
        return found;
    }

    int num_classes() const { return vtn_classifier_num_classes(handle_.get()); }
    int feature_dim() const { return vtn_classifier_feature_dim(handle_.get()); }
    int num_frames() const { return vtn_classifier_num_frames(handle_.get()); }
    std::string backend() const { return vtn_classifier_backend(handle_.get()); }
    vtn_classifier* handle() const { return handle_.get(); }

private:
    struct Close {
        void operator()(vtn_classifier* handle) const { vtn_classifier_close(handle); }
    };
    explicit Classifier(vtn_classifier* handle) : handle_(handle) {}
    static const std::int64_t* pointer(const std::vector<std::int64_t>& index) {
        return index.empty() ? nullptr : index.data();
    }
    std::vector<float> room(std::size_t frames, const std::vector<std::int64_t>& index) const {
        if (!index.empty() && index.size() != frames) {
            throw Error(VTN_ERROR_SHAPE, "frame_index: got " + std::to_string(index.size()) + " for " +
                                             std::to_string(frames) + " frames");
        }
        return std::vector<float>(std::size_t(num_classes()));
    }

    std::unique_ptr<vtn_classifier, Close> handle_;
};

}  // namespace vtn
