// Any calls in any order with any arguments whose pointers are valid or null: a code, never a crash.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../support.hpp"
#include "stream.hpp"

namespace {

using namespace vtn::detail;

class Input {
public:
    Input(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
    template <typename Value>
    Value take() {
        Value value{};
        const std::size_t part = size_ < sizeof(Value) ? size_ : sizeof(Value);
        std::memcpy(&value, data_, part);
        data_ += part, size_ -= part;
        return value;
    }
    bool empty() const { return size_ == 0; }

private:
    const std::uint8_t* data_;
    std::size_t size_;
};

// Fields from the input; the pixels are as large as a checked frame may read, or the frame is refused.
vtn_frame frame_of(Input& input, std::vector<std::uint8_t>& pixels) {
    vtn_frame frame{};
    const auto flags = input.take<std::uint8_t>();
    frame.struct_size = flags & 1 ? sizeof(frame) : input.take<std::uint8_t>();
    frame.format = flags & 2 ? input.take<std::uint8_t>() % 4 : input.take<std::int32_t>();
    frame.width = flags & 4 ? input.take<std::uint8_t>() : input.take<std::int32_t>();
    frame.height = flags & 4 ? input.take<std::uint8_t>() : input.take<std::int32_t>();
    frame.stride = flags & 8 ? 0 : input.take<std::int16_t>();
    frame.matrix = flags & 16 ? 0 : input.take<std::int8_t>();
    frame.range = flags & 16 ? 1 : input.take<std::int8_t>();
    frame.memory = flags & 32 ? 0 : input.take<std::int8_t>();
    const std::int64_t stride = frame.stride > 0 ? frame.stride : std::int64_t{frame.width} * 4 + 4;
    const std::int64_t bytes = stride * (std::int64_t{frame.height} + 1) * 2;
    if (bytes > 0 && bytes < (1 << 24)) {
        pixels.assign(std::size_t(bytes), flags);
        frame.data = pixels.data();
    }
    return frame;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const Folder folder;
    static const bool written = (write_bundle(folder), true);
    (void)written;
    Input input(data, size);
    vtn_classifier* classifier = reinterpret_cast<vtn_classifier*>(std::uintptr_t{input.take<std::uint16_t>()});
    vtn_options options{sizeof(vtn_options), "openvino", input.take<std::int8_t>(), nullptr, nullptr};
    vtn_classifier* opened = nullptr;
    vtn_classifier_open(folder.path.c_str(), &options, &opened);
    vtn_stream* stream = reinterpret_cast<vtn_stream*>(std::uintptr_t{input.take<std::uint16_t>()});
    // The same calls on real objects, behind the ABI's checks.
    const StreamOptions chosen{input.take<std::int8_t>(), input.take<std::int8_t>(), input.take<std::int8_t>(),
                               Policy::block, 0};
    std::unique_ptr<Stream> real;
    try {
        real = std::make_unique<Stream>(stub_classifier(folder), chosen);
    } catch (const Error&) {
    }
    std::vector<std::uint8_t> pixels;
    float logits[8];
    for (int step = 0; step < 64 && !input.empty(); ++step) {
        vtn_frame frame = frame_of(input, pixels);
        vtn_result result{};
        result.struct_size = sizeof(result), result.logits = logits, result.num_logits = input.take<std::uint8_t>() % 9;
        const auto index = input.take<std::int64_t>();
        vtn_stream_push(stream, &frame, index, &result);
        vtn_classify_chunked(classifier, &frame, 1, &index, input.take<std::int8_t>(), logits, result.num_logits);
        vtn_classify_features(classifier, logits, 1, &index, logits, 8);
        vtn_stream_offer(stream, &frame, index, nullptr);
        vtn_classifier_label(classifier, frame.width);
        if (real == nullptr) continue;
        try {
            real->push(checked_view(&frame), index);
        } catch (const Error&) {
        }
    }
    vtn_stream_close(stream);
    vtn_classifier_close(classifier);
    return 0;
}
