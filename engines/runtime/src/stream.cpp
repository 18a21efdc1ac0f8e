#include "stream.hpp"

#include <algorithm>
#include <cstdint>

#include "error.hpp"

namespace vtn::detail {
namespace {

constexpr int kMaxWindow = 1 << 16, kMaxQueue = 4096;

StreamOptions checked(StreamOptions options, const Manifest& manifest) {
    if (options.window == 0) options.window = manifest.preprocessing.num_frames;
    const auto within = [](const char* what, int got, int low, int high) {
        if (got < low || got > high) {
            throw Error(VTN_ERROR_USAGE, std::string(what) + ": got " + std::to_string(got) + ", expected " +
                                             std::to_string(low) + ".." + std::to_string(high));
        }
    };
    within("window", options.window, 1, kMaxWindow);
    within("stride", options.stride, 1, kMaxWindow);  // beyond the window: some frames are in no result
    if (options.queue == 0) options.queue = std::min(options.stride, kMaxQueue);
    within("queue", options.queue, 1, kMaxQueue);
    if (!(options.deadline >= 0)) throw Error(VTN_ERROR_USAGE, "deadline: expected seconds, 0 or more");
    return options;
}

}  // namespace

Ring::Ring(std::size_t window, std::size_t width)
    : window_(window), width_(width), features_(window * width), index_(window) {}

float* Ring::next(std::int64_t index) {
    std::size_t at = (start_ + count_) % window_;
    if (count_ == window_) {
        start_ = (start_ + 1) % window_;  // over the oldest
    } else {
        ++count_;
    }
    index_[at] = index;
    return features_.data() + at * width_;
}

std::size_t Ring::copy(std::size_t skip, float* features, std::int64_t* index) const {
    const std::size_t count = count_ - std::min(skip, count_), start = (start_ + count_ - count) % window_;
    const std::size_t head = std::min(count, window_ - start), tail = count - head;
    std::copy_n(features_.data() + start * width_, head * width_, features);
    std::copy_n(features_.data(), tail * width_, features + head * width_);
    std::copy_n(index_.data() + start, head, index);
    std::copy_n(index_.data(), tail, index + head);
    return count;
}

Stream::Stream(std::unique_ptr<Classifier> classifier, const StreamOptions& options)
    : classifier_(std::move(classifier)),
      incoming_(classifier_->make_preprocessor()),
      options_(checked(options, classifier_->manifest())),
      ring_(std::size_t(options_.window), std::size_t(classifier_->manifest().feature_dim)),
      window_(std::size_t(options_.window) * classifier_->manifest().feature_dim),
      window_index_(std::size_t(options_.window)),
      feature_(std::size_t(classifier_->manifest().feature_dim)),
      pixels_(classifier_->room(1)) {
    result_.logits.resize(std::size_t(num_classes()));
    published_.logits.resize(std::size_t(num_classes()));
    slots_.resize(std::size_t(options_.queue));
    for (Slot& slot : slots_) slot.pixels = classifier_->room(1);
    working_.pixels = classifier_->room(1);
    staged_.pixels = classifier_->room(1);
}

Stream::~Stream() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    filled_.notify_all();
    freed_.notify_all();
    resulted_.notify_all();
    if (thread_.joinable()) thread_.join();
}

std::int64_t Stream::checked_index(std::int64_t index) const {
    if (index == -1 && newest_ < INT64_MAX) return newest_ + 1;
    if (index == -1) {
        throw Error(VTN_ERROR_USAGE,
                    "frame_index: got 9223372036854775808, expected less than 2^63; reset() starts a "
                    "new video");
    }
    if (index <= newest_) {
        throw Error(VTN_ERROR_USAGE, "frame_index: got " + std::to_string(index) + ", expected more than " +
                                         std::to_string(newest_) + ", the newest frame's; reset() starts a new video");
    }
    return index;
}

// A frame's feature into the ring; true when result_ is new. Where the temporal graph fails, the ring is as before.
bool Stream::keep(const float* feature, std::int64_t index, Clock::time_point arrived) {
    const std::size_t width = std::size_t(classifier_->manifest().feature_dim);
    const bool due = since_ + 1 >= options_.stride;
    bool late = false;
    if (due) {
        const std::size_t full = std::size_t(options_.window);
        const std::size_t old = ring_.copy(ring_.size() == full ? 1 : 0, window_.data(), window_index_.data());
        std::copy_n(feature, width, window_.data() + old * width);
        window_index_[old] = index;
        classifier_->classify(window_.data(), old + 1, window_index_.data(), result_.logits.data(),
                              result_.logits.size());
        result_.frame_index = index;
        result_.frames = static_cast<int>(old + 1);
        result_.latency = std::chrono::duration<double>(Clock::now() - arrived).count();
        late = options_.deadline > 0 && result_.latency > options_.deadline;
    }
    std::copy_n(feature, width, ring_.next(index));
    since_ = due ? 0 : since_ + 1;
    const std::lock_guard<std::mutex> lock(mutex_);
    ++counters_.frames;
    counters_.results += due, counters_.late += late;
    return due;
}

void Stream::check_pushed() const {
    if (thread_.joinable()) {
        throw Error(VTN_ERROR_USAGE, "push: this stream has a queue in use; offer its frames, or open another stream");
    }
}

const Result* Stream::push(const ImageView& image, std::int64_t index) {
    const std::lock_guard<std::mutex> one(offering_);
    check_pushed();
    const auto arrived = Clock::now();
    const std::int64_t at = checked_index(index);
    classifier_->preprocess(image, pixels_.get());
    newest_ = at;  // a frame that fails from here on is a dropped one
    classifier_->backbone(pixels_.get(), 1, feature_.data());
    return keep(feature_.data(), at, arrived) ? &result_ : nullptr;
}

std::exception_ptr Stream::push_together(Stream* const* streams, const ImageView* images, const std::int64_t* index,
                                         std::size_t count, const Result** results) {
    const auto arrived = Clock::now();
    Stream& first = *streams[0];
    Classifier& shared = *first.classifier_;
    first.held_.reserve(count);
    struct Release {
        std::vector<std::unique_lock<std::mutex>>& locks;
        ~Release() { locks.clear(); }
    } release{first.held_};
    for (std::size_t i = 0; i < count; ++i) {
        results[i] = nullptr;
        first.held_.emplace_back(streams[i]->offering_, std::try_to_lock);
        if (!first.held_.back().owns_lock()) {
            throw Error(VTN_ERROR_USAGE, "streams: one is in use by another thread");
        }
        streams[i]->check_pushed();
        if (!shared.same_engine(*streams[i]->classifier_)) {
            throw Error(VTN_ERROR_USAGE, "streams: got streams of several bundles, expected clones of one classifier");
        }
        streams[i]->checked_index(index == nullptr ? -1 : index[i]);
    }
    const std::size_t width = std::size_t(shared.manifest().feature_dim), size = shared.frame_size();
    if (count > first.pixel_frames_) {
        first.pixels_ = shared.room(count);
        first.pixel_frames_ = count;
        first.feature_.resize(count * width);
    }
    for (std::size_t i = 0; i < count; ++i) shared.preprocess(images[i], first.pixels_.get() + i * size);
    for (std::size_t i = 0; i < count; ++i) {
        streams[i]->newest_ = streams[i]->checked_index(index == nullptr ? -1 : index[i]);
    }
    shared.backbone(first.pixels_.get(), std::int64_t(count), first.feature_.data());
    std::exception_ptr failure;
    for (std::size_t i = 0; i < count; ++i) {
        Stream& stream = *streams[i];
        try {
            if (stream.keep(first.feature_.data() + i * width, stream.newest_, arrived)) results[i] = &stream.result_;
        } catch (...) {
            if (failure == nullptr) failure = std::current_exception();
        }
    }
    return failure;
}

bool Stream::offer(const ImageView& image, std::int64_t index) {
    const std::lock_guard<std::mutex> one(offering_);
    const auto arrived = Clock::now();
    std::unique_lock<std::mutex> lock(mutex_);
    if (failure_ != nullptr) std::rethrow_exception(failure_);
    const std::int64_t at = checked_index(index);
    if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
    newest_ = at;
    if (waiting_ == slots_.size() && options_.policy == Policy::drop_newest) {
        ++counters_.dropped;
        return false;
    }
    lock.unlock();  // the pixels are made without holding up the worker
    incoming_->run(image, staged_.pixels.get());
    staged_.index = at, staged_.arrived = arrived;
    lock.lock();
    if (options_.policy == Policy::block) {
        freed_.wait(lock, [this] { return waiting_ < slots_.size() || stop_ || failure_ != nullptr; });
        if (failure_ != nullptr) std::rethrow_exception(failure_);
        if (stop_) return false;
    }
    if (waiting_ == slots_.size()) {
        first_ = (first_ + 1) % slots_.size();
        --waiting_;
        ++counters_.dropped;
    }
    std::swap(slots_[(first_ + waiting_) % slots_.size()], staged_);
    ++waiting_;
    filled_.notify_one();
    return true;
}

void Stream::work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
        filled_.wait(lock, [this] { return waiting_ > 0 || stop_; });
        if (stop_) return;
        std::swap(working_, slots_[first_]);
        first_ = (first_ + 1) % slots_.size();
        --waiting_;
        busy_ = true;
        freed_.notify_all();
        lock.unlock();
        bool ready = false;
        std::exception_ptr failure;
        try {
            classifier_->backbone(working_.pixels.get(), 1, feature_.data());
            ready = keep(feature_.data(), working_.index, working_.arrived);
        } catch (...) {
            failure = std::current_exception();
        }
        lock.lock();
        busy_ = false;
        if (ready) {
            std::swap(published_, result_);
            fresh_ = true;
        }
        if (failure != nullptr) failure_ = failure;
        freed_.notify_all();
        resulted_.notify_all();
        if (failure != nullptr) {
            // waits for reset() or the end
            filled_.wait(lock, [this] { return failure_ == nullptr || stop_; });
        }
    }
}

bool Stream::poll(double timeout, Result& result) {
    if (!(timeout >= 0)) throw Error(VTN_ERROR_USAGE, "timeout: expected seconds, 0 or more");
    const auto limit = std::chrono::duration<double>(std::min(timeout, 1e6));
    std::unique_lock<std::mutex> lock(mutex_);
    resulted_.wait_for(lock, limit, [this] { return fresh_ || failure_ != nullptr || stop_; });
    if (fresh_) {
        fresh_ = false;
        result = published_;
        return true;
    }
    if (failure_ != nullptr) std::rethrow_exception(failure_);
    return false;
}

void Stream::reset() {
    const std::lock_guard<std::mutex> one(offering_);
    std::unique_lock<std::mutex> lock(mutex_);
    waiting_ = 0;
    freed_.wait(lock, [this] { return !busy_; });
    ring_.clear();
    since_ = 0;
    newest_ = -1;
    fresh_ = false;
    failure_ = nullptr;
    filled_.notify_all();
}

Counters Stream::counters() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return counters_;
}

}  // namespace vtn::detail
