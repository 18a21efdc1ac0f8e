#include <atomic>
#include <cstdlib>
#include <new>

#include "stream_support.hpp"

namespace {
std::atomic<std::size_t> allocations{0};
}

// Counts what libvtn takes from the heap in this program; sanitizers keep their own checks underneath malloc.
void* operator new(std::size_t size) {
    ++allocations;
    if (void* memory = std::malloc(size)) return memory;
    throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
    std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
    std::free(memory);
}

namespace vtn::detail {
namespace {

TEST_F(Streams, NoAllocationAfterWarmUp) {
    Stream stream(stub_classifier(folder_), {6, 2, 0, Policy::block, 0});
    const Picture picture(1);
    const vtn_frame frame = picture.frame();
    for (int i = 0; i < 20; ++i) stream.push(checked_view(&frame), -1);
    const std::size_t before = allocations;
    for (int i = 0; i < 10000; ++i) stream.push(checked_view(&frame), -1);
    EXPECT_EQ(allocations, before);
}

TEST_F(Streams, NoAllocationInGroupsAndQueuesAfterWarmUp) {
    const auto original = stub_classifier(folder_);
    const StreamOptions options{6, 2, 0, Policy::block, 0};
    Stream a(original->clone(), options), b(original->clone(), options), queued(original->clone(), options);
    Stream* streams[]{&a, &b};
    const Result* results[2];
    const Picture picture(1);
    const vtn_frame frame = picture.frame();
    const ImageView images[]{checked_view(&frame), checked_view(&frame)};
    Result result;
    const auto round = [&](int count) {
        for (int i = 0; i < count; ++i) {
            Stream::push_together(streams, images, nullptr, 2, results);
            queued.offer(images[0], -1);
            queued.poll(i % 2 == 1 ? 5 : 0, result);
        }
    };
    round(20);
    const std::size_t before = allocations;
    round(500);
    EXPECT_EQ(allocations, before);
}

}  // namespace
}  // namespace vtn::detail
