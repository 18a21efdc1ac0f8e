#include "stream.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <thread>

#include "support.hpp"

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

class Streams : public testing::Test {
protected:
    Streams() { write_bundle(folder_); }

    // What the batch modes give for the same frames.
    std::vector<float> batch(const std::vector<int>& seeds, const std::vector<std::int64_t>& index) {
        std::vector<Picture> pictures;
        std::vector<vtn_frame> frames;
        for (int seed : seeds) pictures.emplace_back(seed);
        for (const Picture& picture : pictures) frames.push_back(picture.frame());
        std::vector<float> logits(kClasses);
        stub_classifier(folder_)->chunked(frames.data(), frames.size(), index.data(), 2, logits.data(), logits.size());
        return logits;
    }

    Folder folder_;
};

TEST_F(Streams, EveryStepEqualsTheBatchResult) {
    for (int window : {1, 2, 5, 6, 17}) {
        for (int stride : {1, 2, 3, 4, 7, 13}) {  // beyond the window too
            Stream stream(stub_classifier(folder_), {window, stride, 0, Policy::block, 0});
            std::vector<int> seeds;
            std::vector<std::int64_t> index;
            std::int64_t at = 0;
            for (int i = 0; i < 41; ++i) {
                at += 1 + (i % 5 == 3 ? 4 : 0);  // dropped frames: indices jump, positions wrap at 10
                seeds.push_back(i), index.push_back(at);
                if (seeds.size() > std::size_t(window)) seeds.erase(seeds.begin()), index.erase(index.begin());
                const Picture picture(i);
                const vtn_frame frame = picture.frame();
                const Result* result = stream.push(checked_view(&frame), at);
                ASSERT_EQ(result != nullptr, (i + 1) % stride == 0);
                if (result == nullptr) continue;
                EXPECT_EQ(result->frames, int(seeds.size()));
                EXPECT_EQ(result->frame_index, at);
                EXPECT_GE(result->latency, 0);
                const auto expected = batch(seeds, index);
                for (int c = 0; c < kClasses; ++c) EXPECT_NEAR(result->logits[c], expected[c], 1e-4) << i;
            }
        }
    }
}

TEST_F(Streams, ResetStartsAnew) {
    Stream stream(stub_classifier(folder_), {6, 2, 0, Policy::block, 0});
    std::vector<float> first;
    for (int round = 0; round < 3; ++round) {
        std::vector<float> told;
        for (int i = 0; i < 9; ++i) {
            const Picture picture(i);
            const vtn_frame frame = picture.frame();
            if (const Result* result = stream.push(checked_view(&frame), -1)) {
                told.insert(told.end(), result->logits.begin(), result->logits.end());
            }
        }
        if (round == 0) first = told;
        EXPECT_EQ(told, first);
        stream.reset();
    }
    EXPECT_EQ(stream.counters().frames, 27U);
}

TEST_F(Streams, IndicesOfYearsGivePositionsOfSeconds) {
    const std::int64_t years = (std::int64_t{1} << 40) / 10 * 10;
    Stream near(stub_classifier(folder_), {6, 1, 0, Policy::block, 0});
    Stream far(stub_classifier(folder_), {6, 1, 0, Policy::block, 0});
    for (int i = 0; i < 30; ++i) {
        const Picture picture(i);
        const vtn_frame frame = picture.frame();
        const auto expected = near.push(checked_view(&frame), i)->logits;
        EXPECT_EQ(far.push(checked_view(&frame), years + i)->logits, expected) << i;
    }
}

TEST_F(Streams, CamerasTogetherEqualSeparateStreams) {
    const auto original = stub_classifier(folder_);
    std::vector<std::unique_ptr<Stream>> together, alone;
    for (int camera = 0; camera < 3; ++camera) {
        const StreamOptions options{5, 2 + camera, 0, Policy::block, 0};
        together.push_back(std::make_unique<Stream>(original->clone(), options));
        alone.push_back(std::make_unique<Stream>(original->clone(), options));
    }
    int compared = 0;
    for (int i = 0; i < 40; ++i) {
        std::vector<Stream*> streams;
        std::vector<ImageView> images;
        std::vector<std::int64_t> index;
        std::vector<Picture> pictures;
        std::vector<int> cameras;
        pictures.reserve(3);
        for (int camera = 0; camera < 3; ++camera) {
            if ((i + camera) % 4 == 0) continue;  // this one has no frame now
            pictures.emplace_back(100 * camera + i);
            const vtn_frame frame = pictures.back().frame();
            images.push_back(checked_view(&frame));
            streams.push_back(together[std::size_t(camera)].get());
            index.push_back(i * (camera + 1)), cameras.push_back(camera);
        }
        std::vector<const Result*> results(streams.size());
        Stream::push_together(streams.data(), images.data(), index.data(), streams.size(), results.data());
        for (std::size_t k = 0; k < streams.size(); ++k) {
            const Result* expected = alone[std::size_t(cameras[k])]->push(images[k], index[k]);
            ASSERT_EQ(results[k] != nullptr, expected != nullptr);
            if (expected == nullptr) continue;
            EXPECT_EQ(results[k]->logits, expected->logits);
            EXPECT_EQ(results[k]->frame_index, expected->frame_index);
            EXPECT_EQ(results[k]->frames, expected->frames);
            ++compared;
        }
    }
    EXPECT_GT(compared, 20);
}

TEST_F(Streams, GroupsRefuseWhatCannotShareABatch) {
    const auto original = stub_classifier(folder_), other = stub_classifier(folder_);
    const StreamOptions options{5, 2, 0, Policy::block, 0};
    Stream a(original->clone(), options), b(other->clone(), options), queued(original->clone(), options);
    const Picture picture(1);
    const vtn_frame frame = picture.frame();
    const ImageView images[]{checked_view(&frame), checked_view(&frame)};
    const Result* results[2];
    Stream* strangers[]{&a, &b};
    EXPECT_EQ(failure([&] { Stream::push_together(strangers, images, nullptr, 2, results); }).first, VTN_ERROR_USAGE);
    queued.offer(images[0], -1);
    Stream* mixed[]{&a, &queued};
    EXPECT_EQ(failure([&] { Stream::push_together(mixed, images, nullptr, 2, results); }).first, VTN_ERROR_USAGE);
    Stream* one[]{&a};
    const std::int64_t bad[]{-7};
    EXPECT_EQ(failure([&] { Stream::push_together(one, images, bad, 1, results); }).first, VTN_ERROR_USAGE);
    EXPECT_EQ(a.counters().frames, 0U);  // nothing of it happened
    Stream::push_together(one, images, nullptr, 1, results);
    EXPECT_EQ(a.counters().frames, 1U);
}

TEST_F(Streams, AFailedPushTakesNoFrameAndSpendsItsIndex) {
    for (Part broken_part : {Part::backbone, Part::temporal}) {
        bool broken = false;
        const auto fails = [&broken] {
            if (broken) throw Error(VTN_ERROR_BACKEND, "stub: broken");
        };
        auto classifier =
            std::make_unique<Classifier>(Bundle::open(folder_.path), "stub", [&](const Bundle&, Part part) {
                return std::make_unique<Stub>(part, part == broken_part ? std::function<void()>(fails) : [] {});
            });
        Stream stream(std::move(classifier), {3, 1, 0, Policy::block, 0});
        for (int i = 0; i < 7; ++i) {
            const Picture picture(i), other(100 + i);
            const vtn_frame frame = picture.frame(), bad = other.frame();
            broken = true;
            EXPECT_EQ(failure([&] { stream.push(checked_view(&bad), 3 * i); }).first, VTN_ERROR_BACKEND);
            broken = false;
            EXPECT_EQ(failure([&] { stream.push(checked_view(&frame), 3 * i); }).first, VTN_ERROR_USAGE);
            const Result* result = stream.push(checked_view(&frame), -1);
            ASSERT_NE(result, nullptr);
            std::vector<int> seeds;
            std::vector<std::int64_t> index;
            for (int k = std::max(0, i - 2); k <= i; ++k) seeds.push_back(k), index.push_back(3 * k + 1);
            EXPECT_EQ(result->logits, batch(seeds, index));
            EXPECT_EQ(result->frame_index, 3 * i + 1);
        }
        EXPECT_EQ(stream.counters().frames, 7U);
        EXPECT_EQ(stream.counters().results, 7U);
    }
}

TEST_F(Streams, IndicesEndAtTwoToThe63) {
    Stream stream(stub_classifier(folder_), {6, 1, 0, Policy::block, 0});
    const Picture picture(1);
    const vtn_frame frame = picture.frame();
    EXPECT_EQ(stream.push(checked_view(&frame), INT64_MAX)->frame_index, INT64_MAX);
    const auto [code, text] = failure([&] { stream.push(checked_view(&frame), -1); });
    EXPECT_EQ(code, VTN_ERROR_USAGE);
    EXPECT_EQ(text, "frame_index: got 9223372036854775808, expected less than 2^63; reset() starts a new video");
    stream.reset();
    EXPECT_EQ(stream.push(checked_view(&frame), -1)->frame_index, 0);
}

TEST_F(Streams, OneCamerasFailureIsNoOthers) {
    int calls = 0;
    const auto original =
        std::make_unique<Classifier>(Bundle::open(folder_.path), "stub", [&](const Bundle&, Part part) {
            return std::make_unique<Stub>(
                part, part == Part::temporal ? std::function<void()>([&] {
                    if (++calls == 2) throw Error(VTN_ERROR_BACKEND, "stub: broken");
                })
                                             : [] {});
        });
    const StreamOptions options{5, 1, 0, Policy::block, 0};
    Stream a(original->clone(), options), b(original->clone(), options), c(original->clone(), options);
    const Picture picture(1);
    const vtn_frame frame = picture.frame();
    const ImageView images[]{checked_view(&frame), checked_view(&frame), checked_view(&frame)};
    Stream* streams[]{&a, &b, &c};
    const Result* results[3];
    const std::exception_ptr told = Stream::push_together(streams, images, nullptr, 3, results);
    EXPECT_EQ(failure([&] { std::rethrow_exception(told); }).second, "stub: broken");
    EXPECT_NE(results[0], nullptr);
    EXPECT_EQ(results[1], nullptr);
    EXPECT_NE(results[2], nullptr);
    EXPECT_EQ(b.counters().frames, 0U);
    EXPECT_EQ(c.counters().results, 1U);
}

TEST_F(Streams, BadOptionsAndIndices) {
    for (const StreamOptions& options :
         {StreamOptions{6, 0, 0, Policy::block, 0}, StreamOptions{6, -1, 0, Policy::block, 0},
          StreamOptions{6, 65537, 0, Policy::block, 0}, StreamOptions{-1, 1, 0, Policy::block, 0},
          StreamOptions{6, 1, -1, Policy::block, 0}, StreamOptions{6, 1, 0, Policy::block, -1.0}}) {
        EXPECT_EQ(failure([&] { Stream(stub_classifier(folder_), options); }).first, VTN_ERROR_USAGE);
    }
    Stream stream(stub_classifier(folder_), {6, 1, 0, Policy::block, 0});
    const Picture picture(1);
    const vtn_frame frame = picture.frame();
    stream.push(checked_view(&frame), 5);
    for (std::int64_t index : {5, 4, 0, -2}) {
        EXPECT_EQ(failure([&] { stream.push(checked_view(&frame), index); }).first, VTN_ERROR_USAGE) << index;
    }
    EXPECT_EQ(stream.push(checked_view(&frame), -1)->frame_index, 6);
}

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

// A backbone that waits until it is let go.
struct Gate {
    std::atomic<int> open{0}, entered{0};
    std::function<void()> hook() {
        return [this] {
            ++entered;
            while (open.load() <= 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
            --open;
        };
    }
    void wait_entered(int count) const {
        while (entered < count) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
};

TEST_F(Streams, DropOldestKeepsTheNewest) {
    Gate gate;
    Stream stream(stub_classifier(folder_, gate.hook()), {6, 1, 2, Policy::drop_oldest, 0});
    const Picture picture(1);
    const vtn_frame frame = picture.frame();
    EXPECT_TRUE(stream.offer(checked_view(&frame), 0));
    gate.wait_entered(1);  // frame 0 is being computed; the queue is empty
    for (int i = 1; i < 6; ++i) EXPECT_TRUE(stream.offer(checked_view(&frame), i));
    EXPECT_EQ(stream.counters().dropped, 3U);
    gate.open = 100;
    Result result;
    while (stream.counters().results < 3) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ASSERT_TRUE(stream.poll(5, result));
    while (stream.poll(0.05, result)) {
    }
    EXPECT_EQ(result.frame_index, 5);
    EXPECT_EQ(result.frames, 3);  // 0, 4, 5
    EXPECT_EQ(stream.counters().frames, 3U);
}

TEST_F(Streams, DropNewestKeepsTheOldest) {
    Gate gate;
    Stream stream(stub_classifier(folder_, gate.hook()), {6, 1, 2, Policy::drop_newest, 1e-9});
    const Picture picture(1);
    const vtn_frame frame = picture.frame();
    EXPECT_TRUE(stream.offer(checked_view(&frame), -1));
    gate.wait_entered(1);
    EXPECT_TRUE(stream.offer(checked_view(&frame), -1));
    EXPECT_TRUE(stream.offer(checked_view(&frame), -1));
    EXPECT_FALSE(stream.offer(checked_view(&frame), -1));
    gate.open = 100;
    while (stream.counters().results < 3) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_TRUE(stream.offer(checked_view(&frame), -1));  // index 4: the dropped frame had one
    Result result;
    while (stream.counters().results < 4) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    while (stream.poll(0.05, result)) {
    }
    EXPECT_EQ(result.frame_index, 4);
    EXPECT_EQ(result.frames, 4);
    EXPECT_EQ(stream.counters().dropped, 1U);
    EXPECT_EQ(stream.counters().late, 4U);  // all, by that deadline
}

TEST_F(Streams, BlockLosesNothing) {
    Stream stream(stub_classifier(folder_), {6, 4, 1, Policy::block, 0});
    const Picture picture(1);
    const vtn_frame frame = picture.frame();
    for (int i = 0; i < 200; ++i) EXPECT_TRUE(stream.offer(checked_view(&frame), -1));
    while (stream.counters().results < 50) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const Counters counters = stream.counters();
    EXPECT_EQ(counters.frames, 200U);
    EXPECT_EQ(counters.dropped, 0U);
    EXPECT_EQ(failure([&] { stream.push(checked_view(&frame), -1); }).first, VTN_ERROR_USAGE);
}

TEST_F(Streams, FailuresOfTheThreadComeOutAndResetHeals) {
    std::atomic<bool> broken{true};
    Stream stream(stub_classifier(folder_,
                                  [&broken] {
                                      if (broken) throw Error(VTN_ERROR_BACKEND, "stub: broken");
                                  }),
                  {6, 1, 2, Policy::block, 0});
    const Picture picture(1);
    const vtn_frame frame = picture.frame();
    stream.offer(checked_view(&frame), -1);
    Result result;
    EXPECT_EQ(failure([&] { stream.poll(5, result); }),
              (std::pair<int, std::string>{VTN_ERROR_BACKEND, "stub: broken"}));
    EXPECT_EQ(failure([&] { stream.offer(checked_view(&frame), -1); }).first, VTN_ERROR_BACKEND);
    broken = false;
    stream.reset();
    EXPECT_TRUE(stream.offer(checked_view(&frame), -1));
    EXPECT_TRUE(stream.poll(5, result));
    EXPECT_EQ(result.frames, 1);
}

TEST_F(Streams, ClonesLoadAGraphOnce) {
    std::atomic<int> loaded{0};
    auto original = std::make_unique<Classifier>(Bundle::open(folder_.path), "stub", [&](const Bundle&, Part part) {
        ++loaded;
        return std::make_unique<Stub>(part);
    });
    auto copy = original->clone();  // before anything was loaded
    float features[kWidth]{1, 2, 3, 4}, logits[kClasses];
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t) {
        threads.emplace_back([&, mine = std::shared_ptr<Classifier>(copy->clone())] {
            float own[kClasses];
            mine->classify(features, 1, nullptr, own, kClasses);
        });
    }
    for (std::thread& thread : threads) thread.join();
    original.reset();
    copy->classify(features, 1, nullptr, logits, kClasses);
    EXPECT_EQ(loaded, 1);
}

TEST_F(Streams, EightThreadsWithClonesAgree) {
    const auto original = stub_classifier(folder_);
    std::vector<std::unique_ptr<Stream>> streams;
    for (int i = 0; i < 8; ++i) {
        streams.push_back(std::make_unique<Stream>(original->clone(), StreamOptions{6, 2, 0, Policy::block, 0}));
    }
    std::vector<std::vector<float>> told(8);
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t) {
        threads.emplace_back([&, t] {
            for (int i = 0; i < 60; ++i) {
                const Picture picture(i);
                const vtn_frame frame = picture.frame();
                if (const Result* result = streams[t]->push(checked_view(&frame), -1)) {
                    told[t].insert(told[t].end(), result->logits.begin(), result->logits.end());
                }
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(told[0].size(), 30U * kClasses);
    for (const auto& values : told) EXPECT_EQ(values, told[0]);
}

}  // namespace
}  // namespace vtn::detail
