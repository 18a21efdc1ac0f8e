// The C ABI: handles are numbers, looked up in a table, so that a closed or invented one is an error code.
#include "c_api.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <new>
#include <unordered_map>

#include "error.hpp"
#include "stream.hpp"
#include "vtn/vtn.h"

namespace vtn::detail {
namespace {

thread_local char last_error[1024] = "";

void remember(const char* message) noexcept {
    std::size_t size = strnlen(message, sizeof(last_error) - 1);
    while (size > 0 && message[size] != '\0' && (message[size] & 0xc0) == 0x80) --size;  // whole UTF-8 characters
    std::memcpy(last_error, message, size);
    last_error[size] = '\0';
}

template <typename Body>
int guarded(Body&& body) noexcept {
    last_error[0] = '\0';
    try {
        body();
        return VTN_OK;
    } catch (const Error& error) {
        remember(error.what());
        return error.code;
    } catch (const std::bad_alloc&) {
        remember("no memory");
    } catch (const std::exception& error) {
        remember(error.what());
    } catch (...) {
        remember("unknown error");
    }
    return VTN_ERROR_INTERNAL;
}

template <typename Object>
struct Entry {
    std::mutex busy;
    std::unique_ptr<Object> object;
};

std::atomic<std::uintptr_t> next_handle{16};

// Handles of both kinds come from one counter: a stream's is never a classifier's.
template <typename Object, typename Handle>
class Table {
public:
    explicit Table(const char* kind) : kind_(kind) {}

    Handle* add(std::unique_ptr<Object> object) {
        auto entry = std::make_shared<Entry<Object>>();
        entry->object = std::move(object);
        const std::uintptr_t key = next_handle.fetch_add(16);
        const std::lock_guard<std::mutex> lock(mutex_);
        entries_.emplace(key, std::move(entry));
        return reinterpret_cast<Handle*>(key);
    }

    std::shared_ptr<Entry<Object>> find(Handle* handle, bool remove = false) {
        if (handle == nullptr) throw Error(VTN_ERROR_USAGE, std::string(kind_) + ": got a null pointer");
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = entries_.find(reinterpret_cast<std::uintptr_t>(handle));
        if (found == entries_.end()) {
            throw Error(VTN_ERROR_USAGE, std::string(kind_) + ": got a handle that is closed or was never opened");
        }
        auto entry = found->second;
        if (remove) entries_.erase(found);
        return entry;
    }

    template <typename Body>
    void with(Handle* handle, Body&& body) {
        const auto entry = find(handle);
        const std::unique_lock<std::mutex> lock(entry->busy, std::try_to_lock);
        if (!lock.owns_lock()) {
            throw Error(VTN_ERROR_USAGE,
                        std::string(kind_) + ": in use by another thread; give each thread a clone of its own");
        }
        body(*entry->object);
    }

private:
    const char* kind_;
    std::mutex mutex_;
    std::unordered_map<std::uintptr_t, std::shared_ptr<Entry<Object>>> entries_;
};

// Never destroyed: a program's own static objects may close their handles after ours would be gone.
auto& classifiers() {
    static auto& table = *new Table<Classifier, vtn_classifier>("classifier");
    return table;
}

auto& streams() {
    static auto& table = *new Table<Stream, vtn_stream>("stream");
    return table;
}

template <typename Struct>
void check_struct(const Struct* value, const char* what) {
    if (value == nullptr) throw Error(VTN_ERROR_USAGE, std::string(what) + ": got a null pointer");
    if (value->struct_size != sizeof(Struct)) {
        throw Error(VTN_ERROR_USAGE, std::string(what) + ": got struct_size " + std::to_string(value->struct_size) +
                                         ", expected " + std::to_string(sizeof(Struct)) + "; fill it with sizeof");
    }
}

template <typename Value>
void check_out(Value* value, const char* what) {
    if (value == nullptr) throw Error(VTN_ERROR_USAGE, std::string(what) + ": got a null pointer");
}

void check_result(const vtn_result* result, int classes) {
    check_struct(result, "result");
    if (result->logits == nullptr || result->num_logits < std::size_t(classes)) {
        throw Error(VTN_ERROR_SHAPE, "result: got room for " +
                                         std::to_string(result->logits == nullptr ? 0 : result->num_logits) +
                                         " logits, expected at least " + std::to_string(classes));
    }
}

void fill(vtn_result* out, const Result* result) {
    out->ready = result != nullptr;
    if (result == nullptr) return;
    std::copy(result->logits.begin(), result->logits.end(), out->logits);
    out->frames = result->frames, out->frame_index = result->frame_index, out->latency = result->latency;
}

std::string text(const char* value) {
    return value == nullptr ? "" : value;
}

}  // namespace

vtn_classifier* adopt(std::unique_ptr<Classifier> classifier) {
    return classifiers().add(std::move(classifier));
}

}  // namespace vtn::detail

using namespace vtn::detail;

const char* vtn_version(void) {
    return VTN_VERSION;
}
const char* vtn_last_error(void) {
    return last_error;
}

int vtn_classifier_open(const char* bundle, const vtn_options* options, vtn_classifier** out) {
    return guarded([&] {
        check_out(out, "out");
        *out = nullptr;
        check_out(bundle, "bundle");
        Options chosen;
        if (options != nullptr) {
            check_struct(options, "options");
            if (options->backend != nullptr) chosen.backend = options->backend;
            if (options->threads < 0) throw Error(VTN_ERROR_USAGE, "threads: got less than 0");
            chosen.threads = options->threads;
            chosen.tensorrt_library = text(options->tensorrt_library);
            chosen.plugin_library = text(options->plugin_library);
        }
        *out = classifiers().add(std::make_unique<Classifier>(bundle, chosen));
    });
}

int vtn_classifier_clone(vtn_classifier* classifier, vtn_classifier** out) {
    return guarded([&] {
        check_out(out, "out");
        *out = nullptr;
        classifiers().with(classifier, [&](Classifier& object) { *out = classifiers().add(object.clone()); });
    });
}

int vtn_classifier_close(vtn_classifier* classifier) {
    return guarded([&] { classifiers().find(classifier, true); });
}

int32_t vtn_classifier_num_classes(vtn_classifier* classifier) {
    int32_t value = 0;
    guarded([&] { value = classifiers().find(classifier)->object->manifest().num_classes; });
    return value;
}

int32_t vtn_classifier_feature_dim(vtn_classifier* classifier) {
    int32_t value = 0;
    guarded([&] { value = classifiers().find(classifier)->object->manifest().feature_dim; });
    return value;
}

int32_t vtn_classifier_num_frames(vtn_classifier* classifier) {
    int32_t value = 0;
    guarded([&] { value = classifiers().find(classifier)->object->manifest().preprocessing.num_frames; });
    return value;
}

const char* vtn_classifier_label(vtn_classifier* classifier, int32_t index) {
    const char* value = nullptr;
    guarded([&] {
        const auto entry = classifiers().find(classifier);
        const auto& labels = entry->object->labels();
        if (index < 0 || std::size_t(index) >= labels.size()) {
            throw Error(VTN_ERROR_USAGE,
                        "label: got " + std::to_string(index) + ", expected 0.." + std::to_string(labels.size() - 1));
        }
        value = labels[std::size_t(index)].c_str();
    });
    return value;
}

const char* vtn_classifier_backend(vtn_classifier* classifier) {
    const char* value = nullptr;
    guarded([&] { value = classifiers().find(classifier)->object->backend().c_str(); });
    return value;
}

int vtn_classify_full(vtn_classifier* classifier, const vtn_frame* frames, size_t num_frames,
                      const int64_t* frame_index, float* logits, size_t count) {
    return guarded([&] {
        classifiers().with(classifier, [&](Classifier& c) { c.full(frames, num_frames, frame_index, logits, count); });
    });
}

int vtn_classify_chunked(vtn_classifier* classifier, const vtn_frame* frames, size_t num_frames,
                         const int64_t* frame_index, int32_t chunk, float* logits, size_t count) {
    return guarded([&] {
        classifiers().with(classifier,
                           [&](Classifier& c) { c.chunked(frames, num_frames, frame_index, chunk, logits, count); });
    });
}

int vtn_features(vtn_classifier* classifier, const vtn_frame* frames, size_t num_frames, int32_t chunk, float* features,
                 size_t count) {
    return guarded([&] {
        classifiers().with(classifier, [&](Classifier& c) { c.features(frames, num_frames, chunk, features, count); });
    });
}

int vtn_classify_features(vtn_classifier* classifier, const float* features, size_t num_frames,
                          const int64_t* frame_index, float* logits, size_t count) {
    return guarded([&] {
        classifiers().with(classifier,
                           [&](Classifier& c) { c.classify(features, num_frames, frame_index, logits, count); });
    });
}

int vtn_stream_open(vtn_classifier* classifier, const vtn_stream_options* options, vtn_stream** out) {
    return guarded([&] {
        check_out(out, "out");
        *out = nullptr;
        check_struct(options, "options");
        if (options->policy < VTN_DROP_OLDEST || options->policy > VTN_BLOCK) {
            throw Error(VTN_ERROR_USAGE, "policy: got " + std::to_string(options->policy) +
                                             ", expected VTN_DROP_OLDEST, VTN_DROP_NEWEST or VTN_BLOCK");
        }
        const StreamOptions chosen{options->window, options->stride, options->queue,
                                   static_cast<Policy>(options->policy), options->deadline};
        classifiers().with(classifier, [&](Classifier& object) {
            *out = streams().add(std::make_unique<Stream>(object.clone(), chosen));
        });
    });
}

int vtn_stream_close(vtn_stream* stream) {
    return guarded([&] { streams().find(stream, true); });
}

int vtn_stream_reset(vtn_stream* stream) {
    return guarded([&] { streams().with(stream, [](Stream& object) { object.reset(); }); });
}

int vtn_stream_push(vtn_stream* stream, const vtn_frame* frame, int64_t frame_index, vtn_result* result) {
    return guarded([&] {
        streams().with(stream, [&](Stream& object) {
            check_result(result, object.num_classes());
            result->ready = 0;
            fill(result, object.push(checked_view(frame), frame_index));
        });
    });
}

int vtn_streams_push(vtn_stream* const* streams_, const vtn_frame* frames, const int64_t* frame_index, size_t count,
                     vtn_result* results) {
    return guarded([&] {
        check_out(streams_, "streams");
        check_out(frames, "frames");
        check_out(results, "results");
        if (count < 1 || count > 1024) {
            throw Error(VTN_ERROR_USAGE, "streams: got " + std::to_string(count) + ", expected 1..1024");
        }
        // Kept from call to call: no allocation after the first
        thread_local std::vector<std::shared_ptr<Entry<Stream>>> entries;
        thread_local std::vector<Stream*> objects;
        thread_local std::vector<ImageView> images;
        thread_local std::vector<const Result*> found;
        const struct Clear {
            ~Clear() { entries.clear(); }  // a closed stream must not live on in here
        } clear;
        entries.clear(), objects.clear(), images.clear(), found.assign(count, nullptr);
        for (size_t i = 0; i < count; ++i) {
            entries.push_back(streams().find(streams_[i]));
            objects.push_back(entries.back()->object.get());
            if (std::find(objects.begin(), objects.end() - 1, objects.back()) != objects.end() - 1) {
                throw Error(VTN_ERROR_USAGE, "streams: got one of them twice, expected a frame of each");
            }
            images.push_back(checked_view(frames + i));
            check_result(results + i, objects.back()->num_classes());
            results[i].ready = 0;
        }
        const std::exception_ptr failure =
            Stream::push_together(objects.data(), images.data(), frame_index, count, found.data());
        for (size_t i = 0; i < count; ++i) fill(results + i, found[i]);
        if (failure != nullptr) std::rethrow_exception(failure);
    });
}

int vtn_stream_offer(vtn_stream* stream, const vtn_frame* frame, int64_t frame_index, int32_t* accepted) {
    return guarded([&] {
        if (accepted != nullptr) *accepted = 0;
        const auto entry = streams().find(stream);  // locks by itself: polled from another thread
        const bool taken = entry->object->offer(checked_view(frame), frame_index);
        if (accepted != nullptr) *accepted = taken;
    });
}

int vtn_stream_poll(vtn_stream* stream, double timeout, vtn_result* result) {
    return guarded([&] {
        const auto entry = streams().find(stream);
        check_result(result, entry->object->num_classes());
        result->ready = 0;
        thread_local Result taken;  // its memory is kept from call to call
        if (entry->object->poll(timeout, taken)) fill(result, &taken);
    });
}

int vtn_stream_counters(vtn_stream* stream, vtn_counters* counters) {
    return guarded([&] {
        check_struct(counters, "counters");
        const Counters now = streams().find(stream)->object->counters();
        counters->frames = now.frames, counters->results = now.results;
        counters->dropped = now.dropped, counters->late = now.late;
    });
}
