// Calls of the C ABI in any order: live, closed and invented handles, arguments in and out of their ranges, null
// pointers. A code and a sentence for each, never a crash. Non-null pointers are valid, as C cannot check them.
#include "c_api.hpp"

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../support.hpp"
#include "vtn/vtn.h"

namespace {

using namespace vtn::detail;

class Input {
public:
    Input(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
    template <typename Value>
    Value take() {
        Value value{};
        const std::size_t part = std::min(size_, sizeof(Value));
        if (part > 0) std::memcpy(&value, data_, part);
        data_ += part, size_ -= part;
        return value;
    }
    int below(int limit) { return take<std::uint8_t>() % limit; }
    bool empty() const { return size_ == 0; }

private:
    const std::uint8_t* data_;
    std::size_t size_;
};

void checked(int code) {
    // what the header promises of every call
    if ((code == VTN_OK) != (*vtn_last_error() == '\0')) std::abort();
}

// Mostly a frame, sometimes none. Memory is exactly what the header says that a frame has: ASan sees a byte beyond.
vtn_frame frame_of(Input& input, std::vector<std::uint8_t>& pixels) {
    vtn_frame frame{};
    const auto odd = input.take<std::uint16_t>();  // a bit a field that is out of its range
    const auto strange = [&](int bit) { return (odd >> bit & 7) == 7; };
    frame.struct_size = strange(0) ? input.take<std::uint8_t>() : sizeof(frame);
    frame.format = strange(1) ? input.take<std::int32_t>() : input.below(4);
    frame.width = strange(2) ? input.take<std::int32_t>() : 1 + input.below(40);
    frame.height = strange(3) ? input.take<std::int32_t>() : 1 + input.below(40);
    frame.matrix = strange(4) ? input.take<std::int32_t>() : input.below(2);
    frame.range = strange(5) ? input.take<std::int32_t>() : input.below(2);
    frame.memory = strange(6) ? input.take<std::int32_t>() : VTN_HOST;
    frame.stride = strange(7) ? input.take<std::int64_t>() : 0;
    frame.chroma_stride = strange(8) ? input.take<std::int64_t>() : 0;
    if (strange(9)) return frame;
    if (frame.width < 1 || frame.height < 1 || frame.width > 256 || frame.height > 256) {
        pixels.assign(16, 0);  // refused by its size, whatever the pointer
        if (std::int64_t{frame.width} * frame.height < (1 << 20)) return frame;
        if (frame.height > 0) frame.height = -frame.height;
    } else {
        const bool nv12 = frame.format == VTN_NV12;
        const std::int64_t row = std::int64_t{frame.width} * (nv12 ? 1 : frame.format == VTN_RGBA ? 4 : 3);
        if (frame.stride > 4096 || frame.chroma_stride > 4096) return frame;
        const std::int64_t stride = frame.stride == 0 ? row : std::max(frame.stride, row);
        const std::int64_t pair = 2 * ((std::int64_t{frame.width} + 1) / 2);
        const std::int64_t chroma = frame.chroma_stride != 0 ? std::max(frame.chroma_stride, pair)
                                                             : (frame.stride == 0 ? pair : std::max(stride, pair));
        const std::int64_t luma = nv12 ? stride * frame.height : stride * (frame.height - 1) + row;
        const std::int64_t rows = (frame.height + 1) / 2;
        pixels.assign(std::size_t(luma + (nv12 ? chroma * (rows - 1) + pair : 0)), std::uint8_t(odd));
    }
    frame.data = pixels.data();
    return frame;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const Folder folder;
    static const std::unique_ptr<Classifier> original = (write_bundle(folder), stub_classifier(folder));
    Input input(data, size);
    std::array<vtn_classifier*, 4> classifiers{adopt(original->clone())};
    std::array<vtn_stream*, 4> streams{};
    std::array<float, 64> floats{};
    std::array<std::vector<std::uint8_t>, 3> pixels;
    for (int step = 0; step < 48 && !input.empty(); ++step) {
        vtn_classifier*& classifier = classifiers[std::size_t(input.below(4))];
        vtn_stream*& stream = streams[std::size_t(input.below(4))];
        std::array<vtn_frame, 3> frames{frame_of(input, pixels[0])};
        std::array<vtn_result, 3> results{};
        for (vtn_result& result : results) {
            result.struct_size = sizeof(vtn_result);
            result.logits = floats.data(), result.num_logits = floats.size();
        }
        const int odd = input.below(16);
        if (odd == 1) results[0].num_logits = std::size_t(input.below(4));
        if (odd == 2) results[0].logits = nullptr;
        if (odd == 3) results[0].struct_size = std::size_t(input.below(99));
        std::int64_t index = odd == 4 ? input.take<std::int64_t>() : -1;
        vtn_result* result = odd == 5 ? nullptr : results.data();
        const vtn_frame* frame = odd == 6 ? nullptr : frames.data();
        const std::size_t room = odd == 7 ? input.take<std::uint8_t>() : floats.size();
        float* out = odd == 8 ? nullptr : floats.data();
        switch (input.below(15)) {
            case 0: {
                vtn_classifier* copy = nullptr;
                checked(vtn_classifier_clone(classifier, odd == 9 ? nullptr : &copy));
                if (copy != nullptr) {
                    vtn_classifier_close(classifiers[3]);
                    classifiers[3] = copy;
                }
                break;
            }
            case 1: checked(vtn_classifier_close(classifier)); break;  // the handle stays: use after close
            case 2: {
                vtn_stream_options options{sizeof(options), input.below(9), 1 + input.below(9),
                                           input.below(5),  input.below(3), 0};
                if (odd == 10) options.window = input.take<std::int32_t>() % 70000;
                if (odd == 11) options.stride = input.take<std::int32_t>();
                if (odd == 12) options.queue = input.take<std::int16_t>();
                if (odd == 13) options.policy = input.take<std::int32_t>();
                if (odd == 14) options.deadline = input.take<double>();
                vtn_stream* opened = nullptr;
                checked(vtn_stream_open(classifier, odd == 15 ? nullptr : &options, &opened));
                if (opened != nullptr) {
                    vtn_stream_close(stream);
                    stream = opened;
                }
                break;
            }
            case 3: checked(vtn_stream_close(stream)); break;
            case 4: checked(vtn_stream_reset(stream)); break;
            case 5:
            case 6: checked(vtn_stream_push(stream, frame, index, result)); break;
            case 7: {
                std::int32_t accepted = 0;
                checked(vtn_stream_offer(stream, frame, index, odd == 9 ? nullptr : &accepted));
                break;
            }
            case 8: checked(vtn_stream_poll(stream, odd == 9 ? -1 : 0, result)); break;
            case 9: {
                vtn_counters counters{};
                counters.struct_size = odd == 9 ? 3 : sizeof(counters);
                checked(vtn_stream_counters(stream, &counters));
                break;
            }
            case 10: {
                std::array<vtn_stream*, 3> some{};
                for (std::size_t i = 0; i < 3; ++i) {
                    some[i] = streams[std::size_t(input.below(4))];
                    if (i > 0) frames[i] = frame_of(input, pixels[i]);
                }
                const std::array<std::int64_t, 3> places{index, index, index};
                checked(vtn_streams_push(some.data(), frame, odd == 9 ? nullptr : places.data(),
                                         std::size_t(input.below(4)), result));
                break;
            }
            case 11: checked(vtn_classify_chunked(classifier, frame, 1, &index, input.below(5), out, room)); break;
            case 12: checked(vtn_features(classifier, frame, 1, 1 + input.below(2), out, room)); break;
            case 13:
                checked(vtn_classify_features(classifier, out, std::size_t(input.below(9)), nullptr, out, room));
                break;
            default:
                checked(vtn_classify_full(classifier, frame, 1, &index, out, room));
                vtn_classifier_label(classifier, input.take<std::int32_t>());
                classifier = odd == 9 ? reinterpret_cast<vtn_classifier*>(std::uintptr_t{input.take<std::uint16_t>()})
                                      : classifier;
        }
    }
    for (vtn_stream* stream : streams) vtn_stream_close(stream);
    for (vtn_classifier* classifier : classifiers) vtn_classifier_close(classifier);
    return 0;
}
