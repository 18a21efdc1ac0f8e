#include "c_api.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "support.hpp"
#include "vtn/stream.hpp"

namespace {

TEST(CApi, NullsClosedAndInventedHandles) {
    vtn_classifier* classifier = reinterpret_cast<vtn_classifier*>(0x1234);
    EXPECT_EQ(vtn_classifier_open(nullptr, nullptr, &classifier), VTN_ERROR_USAGE);
    EXPECT_EQ(classifier, nullptr);
    EXPECT_STREQ(vtn_last_error(), "bundle: got a null pointer");
    EXPECT_EQ(vtn_classifier_open("x", nullptr, nullptr), VTN_ERROR_USAGE);
    for (auto handle : {static_cast<vtn_classifier*>(nullptr), reinterpret_cast<vtn_classifier*>(0x1234)}) {
        float logits[3];
        vtn_frame frame{};
        vtn_classifier* copy = nullptr;
        vtn_stream* stream = nullptr;
        EXPECT_EQ(vtn_classifier_close(handle), VTN_ERROR_USAGE);
        EXPECT_EQ(vtn_classifier_clone(handle, &copy), VTN_ERROR_USAGE);
        EXPECT_EQ(vtn_classify_full(handle, &frame, 1, nullptr, logits, 3), VTN_ERROR_USAGE);
        EXPECT_EQ(vtn_classify_chunked(handle, &frame, 1, nullptr, 1, logits, 3), VTN_ERROR_USAGE);
        EXPECT_EQ(vtn_features(handle, &frame, 1, 1, logits, 3), VTN_ERROR_USAGE);
        EXPECT_EQ(vtn_classify_features(handle, logits, 1, nullptr, logits, 3), VTN_ERROR_USAGE);
        EXPECT_EQ(vtn_classifier_num_classes(handle), 0);
        EXPECT_EQ(vtn_classifier_feature_dim(handle), 0);
        EXPECT_EQ(vtn_classifier_num_frames(handle), 0);
        EXPECT_EQ(vtn_classifier_label(handle, 0), nullptr);
        EXPECT_EQ(vtn_classifier_backend(handle), nullptr);
        const vtn_stream_options options{sizeof(vtn_stream_options), 0, 1, 0, 0, 0};
        EXPECT_EQ(vtn_stream_open(handle, &options, &stream), VTN_ERROR_USAGE);
        EXPECT_EQ(vtn_stream_open(handle, nullptr, &stream), VTN_ERROR_USAGE);
    }
    for (auto handle : {static_cast<vtn_stream*>(nullptr), reinterpret_cast<vtn_stream*>(0x1234)}) {
        vtn_result result{};
        vtn_counters counters{};
        counters.struct_size = sizeof(counters);
        EXPECT_EQ(vtn_stream_push(handle, nullptr, -1, &result), VTN_ERROR_USAGE);
        EXPECT_EQ(vtn_stream_offer(handle, nullptr, -1, nullptr), VTN_ERROR_USAGE);
        EXPECT_EQ(vtn_stream_poll(handle, 0, &result), VTN_ERROR_USAGE);
        EXPECT_EQ(vtn_stream_counters(handle, &counters), VTN_ERROR_USAGE);
        EXPECT_EQ(vtn_stream_reset(handle), VTN_ERROR_USAGE);
        const vtn_frame frame{};
        EXPECT_EQ(vtn_streams_push(&handle, &frame, nullptr, 1, &result), VTN_ERROR_USAGE);
        EXPECT_EQ(vtn_streams_push(&handle, &frame, nullptr, 0, &result), VTN_ERROR_USAGE);
        EXPECT_EQ(vtn_streams_push(&handle, nullptr, nullptr, 1, &result), VTN_ERROR_USAGE);
        EXPECT_EQ(vtn_streams_push(&handle, &frame, nullptr, 1, nullptr), VTN_ERROR_USAGE);
        EXPECT_EQ(vtn_streams_push(nullptr, &frame, nullptr, 1, &result), VTN_ERROR_USAGE);
        EXPECT_EQ(vtn_stream_close(handle), VTN_ERROR_USAGE);
    }
}

TEST(CApi, BadOptionsAndBundles) {
    const vtn::detail::Folder folder;
    vtn::detail::write_bundle(folder);
    vtn_classifier* classifier = nullptr;
    vtn_options options{};
    EXPECT_EQ(vtn_classifier_open(folder.path.c_str(), &options, &classifier), VTN_ERROR_USAGE);  // struct_size 0
    options.struct_size = sizeof(options);
    options.backend = "magic";
    EXPECT_EQ(vtn_classifier_open(folder.path.c_str(), &options, &classifier), VTN_ERROR_USAGE);
    EXPECT_STREQ(vtn_last_error(), "backend: got 'magic', expected auto, tensorrt or openvino");
    options.backend = "openvino", options.threads = -1;
    EXPECT_EQ(vtn_classifier_open(folder.path.c_str(), &options, &classifier), VTN_ERROR_USAGE);
    options.threads = 1;  // no graph for OpenVINO, or no OpenVINO
    EXPECT_EQ(vtn_classifier_open(folder.path.c_str(), &options, &classifier), VTN_ERROR_BACKEND);
    EXPECT_EQ(vtn_classifier_open("/none", nullptr, &classifier), VTN_ERROR_BUNDLE);
    folder.write("labels.txt", "one\n");
    EXPECT_EQ(vtn_classifier_open(folder.path.c_str(), &options, &classifier), VTN_ERROR_BUNDLE);
    EXPECT_EQ(classifier, nullptr);
}

// The ABI over a stub of the engine: what a program may do to handles and arguments.
class Handles : public testing::Test {
protected:
    Handles() {
        vtn::detail::write_bundle(folder_);
        classifier_ = vtn::detail::adopt(vtn::detail::stub_classifier(folder_));
        result_.struct_size = sizeof(result_);
        result_.logits = logits_, result_.num_logits = 3;
    }
    ~Handles() override { vtn_classifier_close(classifier_); }
    vtn_stream* open_stream(vtn_classifier* classifier, int stride = 1) {
        const vtn_stream_options options{sizeof(vtn_stream_options), 4, stride, 0, VTN_BLOCK, 0};
        vtn_stream* stream = nullptr;
        EXPECT_EQ(vtn_stream_open(classifier, &options, &stream), VTN_OK) << vtn_last_error();
        return stream;
    }

    vtn::detail::Folder folder_;
    vtn_classifier* classifier_ = nullptr;
    vtn::detail::Picture picture_{1};
    vtn_frame frame_ = picture_.frame();
    float logits_[3]{};
    vtn_result result_{};
};

TEST_F(Handles, AnswerAndEndOnce) {
    EXPECT_EQ(vtn_classifier_num_classes(classifier_), 3);
    EXPECT_EQ(vtn_classifier_feature_dim(classifier_), 4);
    EXPECT_EQ(vtn_classifier_num_frames(classifier_), 6);
    EXPECT_STREQ(vtn_classifier_label(classifier_, 2), "three");
    EXPECT_EQ(vtn_classifier_label(classifier_, 3), nullptr);
    EXPECT_EQ(vtn_classifier_label(classifier_, -1), nullptr);
    EXPECT_STREQ(vtn_classifier_backend(classifier_), "stub");
    EXPECT_EQ(vtn_classify_chunked(classifier_, &frame_, 1, nullptr, 16, logits_, 3), VTN_OK) << vtn_last_error();
    EXPECT_STREQ(vtn_last_error(), "");
    EXPECT_EQ(vtn_classifier_close(classifier_), VTN_OK);
    EXPECT_EQ(vtn_classify_chunked(classifier_, &frame_, 1, nullptr, 16, logits_, 3), VTN_ERROR_USAGE);
    EXPECT_STREQ(vtn_last_error(), "classifier: got a handle that is closed or was never opened");
    EXPECT_EQ(vtn_classifier_close(classifier_), VTN_ERROR_USAGE);
}

TEST_F(Handles, ClonesAndStreamsOutliveWhatTheyCameFrom) {
    vtn_classifier* copy = nullptr;
    ASSERT_EQ(vtn_classifier_clone(classifier_, &copy), VTN_OK);
    vtn_stream* stream = open_stream(copy);
    EXPECT_EQ(vtn_classifier_close(classifier_), VTN_OK);
    EXPECT_EQ(vtn_stream_push(stream, &frame_, -1, &result_), VTN_OK) << vtn_last_error();
    EXPECT_EQ(result_.ready, 1);
    EXPECT_EQ(vtn_classifier_close(copy), VTN_OK);
    EXPECT_EQ(vtn_stream_push(stream, &frame_, -1, &result_), VTN_OK) << vtn_last_error();
    EXPECT_EQ(result_.frame_index, 1);
    EXPECT_EQ(vtn_stream_close(stream), VTN_OK);
    EXPECT_EQ(vtn_stream_push(stream, &frame_, -1, &result_), VTN_ERROR_USAGE);
    EXPECT_STREQ(vtn_last_error(), "stream: got a handle that is closed or was never opened");
    // a stream's handle is no classifier's
    EXPECT_EQ(vtn_classifier_close(reinterpret_cast<vtn_classifier*>(stream)), VTN_ERROR_USAGE);
}

TEST_F(Handles, EveryBadArgumentIsACodeAndASentence) {
    vtn_stream* stream = open_stream(classifier_);
    const auto told = [](int code) { return std::make_pair(code, std::string(vtn_last_error())); };
    using Told = std::pair<int, std::string>;
    EXPECT_EQ(told(vtn_classify_chunked(classifier_, nullptr, 1, nullptr, 16, logits_, 3)),
              Told(VTN_ERROR_USAGE, "frames: got a null pointer"));
    EXPECT_EQ(told(vtn_classify_chunked(classifier_, &frame_, 0, nullptr, 16, logits_, 3)),
              Told(VTN_ERROR_SHAPE, "frames: got 0, expected 1..1048576"));
    EXPECT_EQ(told(vtn_classify_chunked(classifier_, &frame_, 1, nullptr, 0, logits_, 3)),
              Told(VTN_ERROR_USAGE, "chunk: got 0, expected 1..4096"));
    EXPECT_EQ(told(vtn_classify_chunked(classifier_, &frame_, 1, nullptr, 16, nullptr, 3)),
              Told(VTN_ERROR_USAGE, "logits: got a null pointer"));
    EXPECT_EQ(told(vtn_classify_chunked(classifier_, &frame_, 1, nullptr, 16, logits_, 2)),
              Told(VTN_ERROR_SHAPE, "logits: got room for 2, expected at least 3 (vtn_classifier_num_classes)"));
    const std::int64_t negative = -4;
    EXPECT_EQ(told(vtn_classify_chunked(classifier_, &frame_, 1, &negative, 16, logits_, 3)).first, VTN_ERROR_SHAPE);
    EXPECT_EQ(told(vtn_classify_features(classifier_, nullptr, 1, nullptr, logits_, 3)),
              Told(VTN_ERROR_USAGE, "features: got a null pointer"));
    EXPECT_EQ(told(vtn_features(classifier_, &frame_, 1, 1, logits_, 3)),
              Told(VTN_ERROR_SHAPE, "features: got room for 3, expected at least 4"));
    EXPECT_EQ(told(vtn_classify_full(classifier_, &frame_, 1, nullptr, logits_, 3)).first, VTN_ERROR_BUNDLE);
    EXPECT_EQ(told(vtn_stream_push(stream, nullptr, -1, &result_)), Told(VTN_ERROR_USAGE, "frame: got a null pointer"));
    EXPECT_EQ(told(vtn_stream_push(stream, &frame_, -1, nullptr)), Told(VTN_ERROR_USAGE, "result: got a null pointer"));
    vtn_frame frame = frame_;
    frame.width = 0;
    EXPECT_EQ(told(vtn_stream_push(stream, &frame, -1, &result_)).first, VTN_ERROR_SHAPE);
    frame = frame_, frame.format = 9;
    EXPECT_EQ(told(vtn_stream_offer(stream, &frame, -1, nullptr)),
              Told(VTN_ERROR_SHAPE, "frame: got format 9, expected one of the constants 0..3"));
    frame = frame_, frame.memory = VTN_DEVICE;
    EXPECT_EQ(told(vtn_stream_push(stream, &frame, -1, &result_)).first, VTN_ERROR_BACKEND);
    result_.num_logits = 2;
    EXPECT_EQ(told(vtn_stream_push(stream, &frame_, -1, &result_)),
              Told(VTN_ERROR_SHAPE, "result: got room for 2 logits, expected at least 3"));
    result_.num_logits = 3;
    EXPECT_EQ(told(vtn_stream_poll(stream, -1, &result_)),
              Told(VTN_ERROR_USAGE, "timeout: expected seconds, 0 or more"));
    vtn_stream* const twice[]{stream, stream};
    const vtn_frame frames[]{frame_, frame_};
    vtn_result results[]{result_, result_};
    EXPECT_EQ(told(vtn_streams_push(twice, frames, nullptr, 2, results)),
              Told(VTN_ERROR_USAGE, "streams: got one of them twice, expected a frame of each"));
    const vtn_stream_options zero{sizeof(vtn_stream_options), 4, 0, 0, VTN_BLOCK, 0};
    vtn_stream* none = nullptr;
    EXPECT_EQ(told(vtn_stream_open(classifier_, &zero, &none)),
              Told(VTN_ERROR_USAGE, "stride: got 0, expected 1..65536"));
    EXPECT_EQ(none, nullptr);
    vtn_counters counters{};
    counters.struct_size = sizeof(counters);
    EXPECT_EQ(vtn_stream_counters(stream, &counters), VTN_OK);
    EXPECT_EQ(counters.frames, 0U);  // none of it counted
    EXPECT_EQ(vtn_stream_close(stream), VTN_OK);
}

TEST_F(Handles, EightThreadsWithClonesAgreeAndOneHandleIsOneThreads) {
    float expected[3];
    ASSERT_EQ(vtn_classify_chunked(classifier_, &frame_, 1, nullptr, 16, expected, 3), VTN_OK);
    std::vector<std::thread> threads;
    std::atomic<int> refused{0}, wrong{0};
    for (int t = 0; t < 8; ++t) {
        threads.emplace_back([&] {
            vtn_classifier* mine = nullptr;
            while (vtn_classifier_clone(classifier_, &mine) != VTN_OK) ++refused;  // the original is one thread's, too
            for (int i = 0; i < 100; ++i) {
                float logits[3];
                wrong += vtn_classify_chunked(mine, &frame_, 1, nullptr, 16, logits, 3) != VTN_OK ||
                         !std::equal(logits, logits + 3, expected);
                // all on one handle: an answer or a refusal, nothing else
                const int code = vtn_classify_chunked(classifier_, &frame_, 1, nullptr, 16, logits, 3);
                refused += code == VTN_ERROR_USAGE;
                wrong += code != VTN_ERROR_USAGE && (code != VTN_OK || !std::equal(logits, logits + 3, expected));
            }
            wrong += vtn_classifier_close(mine) != VTN_OK;
        });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0);
}

TEST_F(Handles, ClosingWhileOthersWaitIsNoCrash) {
    vtn_stream* stream = open_stream(classifier_, 4);
    EXPECT_EQ(vtn_stream_offer(stream, &frame_, -1, nullptr), VTN_OK);
    std::thread waiting([&] {
        float logits[3];
        vtn_result result{};
        result.struct_size = sizeof(result), result.logits = logits, result.num_logits = 3;
        for (int i = 0; i < 50; ++i) vtn_stream_poll(stream, 0.01, &result);
    });
    EXPECT_EQ(vtn_stream_close(stream), VTN_OK);
    waiting.join();
}

TEST_F(Handles, CamerasTogether) {
    vtn_stream* streams[]{open_stream(classifier_, 2), open_stream(classifier_, 2)};
    const vtn_frame frames[]{frame_, frame_};
    float more[3];
    vtn_result results[]{result_, result_};
    results[1].logits = more;
    for (int i = 0; i < 4; ++i) {
        ASSERT_EQ(vtn_streams_push(streams, frames, nullptr, 2, results), VTN_OK) << vtn_last_error();
        EXPECT_EQ(results[0].ready, i % 2);
        EXPECT_EQ(results[1].ready, i % 2);
    }
    EXPECT_TRUE(std::equal(logits_, logits_ + 3, more));
    EXPECT_EQ(results[1].frame_index, 3);
    for (vtn_stream* stream : streams) EXPECT_EQ(vtn_stream_close(stream), VTN_OK);
}

TEST(CApi, MessagesAreTheThreadsOwn) {
    vtn_classifier* classifier = nullptr;
    EXPECT_EQ(vtn_classifier_open("/none", nullptr, &classifier), VTN_ERROR_BUNDLE);
    std::thread([] { EXPECT_STREQ(vtn_last_error(), ""); }).join();
    EXPECT_NE(std::string(vtn_last_error()).find("no such folder"), std::string::npos);
    const std::string path(5000, 'x');
    EXPECT_EQ(vtn_classifier_open(path.c_str(), nullptr, &classifier), VTN_ERROR_BUNDLE);
    EXPECT_EQ(std::string(vtn_last_error()).size(), 1023U);
}

TEST(Cpp, ErrorsCarryTheirCode) {
    try {
        const vtn::Classifier classifier("/none");
        FAIL();
    } catch (const vtn::Error& error) {
        EXPECT_EQ(error.code(), VTN_ERROR_BUNDLE);
        EXPECT_STREQ(error.what(), "bundle /none: no such folder; make one with `vtn-export onnx --out /none`");
    }
}

}  // namespace
