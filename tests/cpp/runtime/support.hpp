// A stub of the executor and a bundle of it on disk: what needs no inference library is tested without one.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "classifier.hpp"
#include "error.hpp"
#include "sha256.hpp"

namespace vtn::detail {

constexpr int kWidth = 4, kClasses = 3, kCrop = 8;

inline std::string manifest_text(const std::string& files) {
    const std::string outer = R"({"schema_version": 1, "name": "stub", "precision": "fp32", "input_type": "uint8",
 "preprocessing": {"short_side": 10, "crop_size": 8, "num_frames": 6, "mean": [0.45, 0.45, 0.45],
                   "std": [0.225, 0.225, 0.225]},
 "config": {"temporal": {"max_position_embeddings": 12}}, "op": {"version": 1}, "tools": {},
 "weights": {"backbone_fingerprint": "f"},
 "graphs": {
  "backbone": {"file": "backbone.onnx", "accuracy": {"tolerance": 1e-5, "measured": 1e-6},
   "memory": {"fixed_bytes": 0, "bytes_per_frame": 0},
   "inputs": [{"name": "frames", "dtype": "uint8", "shape": ["chunk", 8, 8, 3]}],
   "outputs": [{"name": "features", "dtype": "float32", "shape": ["chunk", 4]}]},
  "temporal": {"file": "temporal.onnx", "accuracy": {"tolerance": 1e-5, "measured": 1e-6},
   "memory": {"fixed_bytes": 0, "bytes_per_frame": 0},
   "inputs": [{"name": "features", "dtype": "float32", "shape": ["batch", "frames", 4]},
              {"name": "frame_index", "dtype": "int32", "shape": ["batch", "frames"]},
              {"name": "lengths", "dtype": "int32", "shape": ["batch"]}],
   "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 3]}]}},
 "files": )";
    return outer + files + "}";
}

// A folder of its own, gone at the end.
class Folder {
public:
    Folder() {
        std::string name = (std::filesystem::temp_directory_path() / "vtn-XXXXXX").string();
        path = mkdtemp(name.data());
    }
    ~Folder() { std::filesystem::remove_all(path); }
    Folder(const Folder&) = delete;
    void write(const std::string& name, const std::string& text) const {
        std::filesystem::create_directories(std::filesystem::path(path + "/" + name).parent_path());
        std::ofstream(path + "/" + name, std::ios::binary) << text;
    }
    std::string path;
};

inline void write_bundle(const Folder& folder) {
    std::string files;
    for (const auto& [name, text] : {std::pair<std::string, std::string>{"labels.txt", "one\ntwo\nthree\n"},
                                     {"backbone.onnx", "backbone"},
                                     {"temporal.onnx", "temporal"}}) {
        folder.write(name, text);
        files += (files.empty() ? "{" : ", ") + ("\"" + name + "\": \"" + sha256_hex(text) + "\"");
    }
    folder.write("manifest.json", manifest_text(files + "}"));
}

// backbone: the frame's first four bytes; temporal: sums that depend on order, indices and count.
class Stub final : public Executor {
public:
    explicit Stub(Part part, std::function<void()> before = [] {}) : part_(part), before_(std::move(before)) {}
    void run(const Inputs& inputs, float* output, std::size_t) override {
        before_();
        if (part_ == Part::backbone) {
            auto pixels = static_cast<const std::uint8_t*>(inputs.frames);
            for (std::int64_t i = 0; i < inputs.count * kWidth; ++i) {
                output[i] = pixels[i / kWidth * kCrop * kCrop * 3 + i % kWidth];
            }
            return;
        }
        for (int c = 0; c < kClasses; ++c) output[c] = float(inputs.count);
        for (std::int64_t t = 0; t < inputs.count; ++t) {
            output[0] += float(t + 1) * inputs.features[t * kWidth];
            output[1] += float(inputs.frame_index[t] % 10) * inputs.features[t * kWidth + 1];
            output[2] = output[2] * 0.5F + inputs.features[t * kWidth + 2];
        }
    }
    std::unique_ptr<Executor> clone() const override { return std::make_unique<Stub>(part_, before_); }

private:
    Part part_;
    std::function<void()> before_;
};

inline std::unique_ptr<Classifier> stub_classifier(const Folder& folder, std::function<void()> before = [] {}) {
    return std::make_unique<Classifier>(Bundle::open(folder.path), "stub", [before](const Bundle&, Part part) {
        return std::make_unique<Stub>(part, part == Part::backbone ? before : [] {});
    });
}

struct Picture {
    explicit Picture(int seed, int w = 13, int h = 11) : width(w), height(h), pixels(std::size_t(w) * h * 3) {
        unsigned state = unsigned(seed) * 2654435761U + 1;
        for (auto& pixel : pixels) pixel = std::uint8_t((state = state * 1664525U + 1013904223U) >> 24);
    }
    vtn_frame frame() const {
        vtn_frame frame{};
        frame.struct_size = sizeof(frame);
        frame.width = width, frame.height = height, frame.data = pixels.data();
        return frame;
    }
    int width, height;
    std::vector<std::uint8_t> pixels;
};

template <typename Body>
std::pair<int, std::string> failure(Body&& body) {
    try {
        body();
    } catch (const Error& error) {
        return {error.code, error.what()};
    }
    return {0, ""};
}

}  // namespace vtn::detail
