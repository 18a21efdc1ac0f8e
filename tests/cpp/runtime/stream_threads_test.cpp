#include <atomic>
#include <thread>

#include "stream_support.hpp"

namespace vtn::detail {
namespace {

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
