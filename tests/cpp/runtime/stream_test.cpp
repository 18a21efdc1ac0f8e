#include <algorithm>

#include "stream_support.hpp"

namespace vtn::detail {
namespace {

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

}  // namespace
}  // namespace vtn::detail
