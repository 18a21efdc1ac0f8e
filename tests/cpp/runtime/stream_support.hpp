// What tests of streams share: a bundle on disk, and what the batch modes say of the same frames.
#pragma once

#include <gtest/gtest.h>

#include "stream.hpp"
#include "support.hpp"

namespace vtn::detail {

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

}  // namespace vtn::detail
