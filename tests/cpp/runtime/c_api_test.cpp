#include <gtest/gtest.h>

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
