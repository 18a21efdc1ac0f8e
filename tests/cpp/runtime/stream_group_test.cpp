#include "stream_support.hpp"

namespace vtn::detail {
namespace {

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

}  // namespace
}  // namespace vtn::detail
