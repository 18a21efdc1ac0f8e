// Live video: each frame passes the backbone once; the temporal graph runs over a ring of features.
#pragma once

#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "classifier.hpp"

namespace vtn::detail {

enum class Policy { drop_oldest, drop_newest, block };

struct StreamOptions {
    int window = 0;  // 0: the bundle's num_frames
    int stride = 8;
    int queue = 0;  // 0: one stride
    Policy policy = Policy::drop_oldest;
    double deadline = 0;  // seconds; 0: nothing is late
};

// The newest `window` features with their source indices. All memory is taken at once.
class Ring {
public:
    Ring(std::size_t window, std::size_t width);
    float* next(std::int64_t index);  // where the newest feature goes
    void clear() { count_ = start_ = 0; }
    std::size_t size() const { return count_; }
    // All but the `skip` oldest, in order of time; how many.
    std::size_t copy(std::size_t skip, float* features, std::int64_t* index) const;

private:
    std::size_t window_, width_, start_ = 0, count_ = 0;
    std::vector<float> features_;
    std::vector<std::int64_t> index_;
};

struct Counters {
    std::uint64_t frames = 0, results = 0, dropped = 0, late = 0;
};

struct Result {
    std::vector<float> logits;
    std::int64_t frame_index = 0;
    int frames = 0;
    double latency = 0;
};

class Stream {
public:
    Stream(std::unique_ptr<Classifier> classifier, const StreamOptions& options);  // throws Error
    ~Stream();

    // In the caller's thread; the result, or null between strides. It lives until the next call. A push that fails
    // takes no frame; once the pixels are made its index is spent, as a dropped frame's.
    const Result* push(const ImageView& image, std::int64_t index);
    // Several cameras through one backbone call: push() of each, in order. The streams are different ones of one
    // classifier. Throws Error before anything happened, or where the backbone fails; returns the first failure of a
    // temporal graph, which is no other camera's.
    static std::exception_ptr push_together(Stream* const* streams, const ImageView* images, const std::int64_t* index,
                                            std::size_t count, const Result** results);
    // For the stream's own thread, which the first call starts. False: this frame was dropped.
    bool offer(const ImageView& image, std::int64_t index);
    // The newest result not taken yet, into `result`; false: none came in time. Rethrows what broke the thread.
    bool poll(double timeout, Result& result);
    void reset();
    Counters counters() const;
    int num_classes() const { return classifier_->manifest().num_classes; }

private:
    using Clock = std::chrono::steady_clock;
    struct Slot {
        std::shared_ptr<std::uint8_t> pixels;
        std::int64_t index = 0;
        Clock::time_point arrived;
    };
    std::int64_t checked_index(std::int64_t index) const;
    void check_pushed() const;
    bool keep(const float* feature, std::int64_t index, Clock::time_point arrived);
    void work();

    std::unique_ptr<Classifier> classifier_;
    std::unique_ptr<Preprocessor> incoming_;  // of the thread that offers
    StreamOptions options_;
    Ring ring_;
    std::vector<float> window_;
    std::vector<std::int64_t> window_index_;
    std::vector<float> feature_;  // of the newest frame, or of one of each camera
    std::shared_ptr<std::uint8_t> pixels_;
    std::size_t pixel_frames_ = 1;
    int since_ = 0;
    std::int64_t newest_ = -1;  // of what was pushed or offered
    Result result_;

    mutable std::mutex mutex_;
    std::condition_variable filled_, freed_, resulted_;
    std::vector<Slot> slots_;  // a ring of its own
    Slot working_, staged_;
    std::size_t first_ = 0, waiting_ = 0;
    bool busy_ = false, stop_ = false, fresh_ = false;
    Result published_;
    Counters counters_;
    std::exception_ptr failure_;
    std::mutex offering_;                             // held by whoever brings frames
    std::vector<std::unique_lock<std::mutex>> held_;  // of the other streams, while this one leads push_together()
    std::thread thread_;
};

}  // namespace vtn::detail
