// vtn::Stream: live video. push() for a caller that keeps up, offer() and poll() for a camera that does not wait.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "vtn/classifier.hpp"

namespace vtn {

enum class Policy { drop_oldest = VTN_DROP_OLDEST, drop_newest = VTN_DROP_NEWEST, block = VTN_BLOCK };

struct StreamOptions {
    int window = 0;  // frames; 0: the bundle's num_frames
    int stride = 8;  // frames from result to result
    int queue = 0;   // frames that may wait; 0: one stride
    Policy policy = Policy::drop_oldest;
    double deadline = 0;  // seconds; 0: nothing is late
};

struct Result {
    std::vector<float> logits;
    int frames;                // in the window
    std::int64_t frame_index;  // of the newest
    double latency;            // seconds
};

class Stream {
public:
    explicit Stream(const Classifier& classifier, const StreamOptions& options = {})
        : classes_(std::size_t(classifier.num_classes())) {
        const vtn_stream_options plain{sizeof(vtn_stream_options),       options.window,  options.stride, options.queue,
                                       static_cast<int>(options.policy), options.deadline};
        vtn_stream* handle = nullptr;
        check(vtn_stream_open(classifier.handle(), &plain, &handle));
        handle_.reset(handle);
    }

    // index: the frame's place in its source; -1: one after the newest.
    std::optional<Result> push(const Frame& frame, std::int64_t index = -1) {
        return taken([&](vtn_result* result) { return vtn_stream_push(handle_.get(), &frame, index, result); });
    }

    // False: this frame was dropped.
    bool offer(const Frame& frame, std::int64_t index = -1) {
        std::int32_t accepted = 0;
        check(vtn_stream_offer(handle_.get(), &frame, index, &accepted));
        return accepted != 0;
    }

    std::optional<Result> poll(double timeout_seconds = 0) {
        return taken([&](vtn_result* result) { return vtn_stream_poll(handle_.get(), timeout_seconds, result); });
    }

    void reset() { check(vtn_stream_reset(handle_.get())); }
    vtn_stream* handle() const { return handle_.get(); }

    vtn_counters counters() const {
        vtn_counters counters{};
        counters.struct_size = sizeof(counters);
        check(vtn_stream_counters(handle_.get(), &counters));
        return counters;
    }

private:
    struct Close {
        void operator()(vtn_stream* handle) const { vtn_stream_close(handle); }
    };

    template <typename Call>
    std::optional<Result> taken(Call call) {
        Result found{std::vector<float>(classes_), 0, 0, 0};
        vtn_result result{};
        result.struct_size = sizeof(result);
        result.logits = found.logits.data(), result.num_logits = classes_;
        check(call(&result));
        if (result.ready == 0) return std::nullopt;
        found.frames = result.frames, found.frame_index = result.frame_index, found.latency = result.latency;
        return found;
    }

    std::size_t classes_;
    std::unique_ptr<vtn_stream, Close> handle_;
};

// Cameras that share one backbone call. Results equal those of separate streams.
class StreamGroup {
public:
    StreamGroup(const Classifier& classifier, std::size_t cameras, const StreamOptions& options = {})
        : classes_(std::size_t(classifier.num_classes())) {
        for (std::size_t i = 0; i < cameras; ++i) streams_.emplace_back(classifier, options);
    }

    // One frame of each of these cameras, each once. index: empty, or their places in their sources.
    std::vector<std::optional<Result>> push(const std::vector<std::size_t>& cameras, const std::vector<Frame>& frames,
                                            const std::vector<std::int64_t>& index = {}) {
        if (cameras.size() != frames.size() || (!index.empty() && index.size() != frames.size())) {
            throw Error(VTN_ERROR_USAGE, "frames: got " + std::to_string(frames.size()) + " for " +
                                             std::to_string(cameras.size()) + " cameras");
        }
        std::vector<vtn_stream*> handles;
        std::vector<Result> found;
        std::vector<vtn_result> results(frames.size());
        for (std::size_t camera : cameras) {
            handles.push_back(streams_.at(camera).handle());
            found.push_back({std::vector<float>(classes_), 0, 0, 0});
        }
        for (std::size_t i = 0; i < results.size(); ++i) {
            results[i].struct_size = sizeof(vtn_result);
            results[i].logits = found[i].logits.data(), results[i].num_logits = classes_;
        }
        check(vtn_streams_push(handles.data(), frames.data(), index.empty() ? nullptr : index.data(), frames.size(),
                               results.data()));
        std::vector<std::optional<Result>> told(frames.size());
        for (std::size_t i = 0; i < results.size(); ++i) {
            if (results[i].ready == 0) continue;
            found[i].frames = results[i].frames, found[i].frame_index = results[i].frame_index;
            found[i].latency = results[i].latency;
            told[i] = std::move(found[i]);
        }
        return told;
    }

    Stream& operator[](std::size_t camera) { return streams_.at(camera); }
    std::size_t size() const { return streams_.size(); }

private:
    std::size_t classes_;
    std::vector<Stream> streams_;
};

}  // namespace vtn
