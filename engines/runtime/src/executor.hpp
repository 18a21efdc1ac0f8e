// What runs one graph: TensorRT (tensorrt.cpp), OpenVINO on the CPU (openvino.cpp), a stub in tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "bundle.hpp"

namespace vtn::detail {

struct Options {
    std::string backend = "auto";
    int threads = 0;
    std::string tensorrt_library, plugin_library;
};

// Inputs of one call, in the caller's memory; frames may be on the device. frames: backbone and full; features:
// temporal.
struct Inputs {
    const void* frames = nullptr;
    const float* features = nullptr;
    const std::int32_t* frame_index = nullptr;  // full and temporal: [1, count]
    std::int64_t count = 0;                     // frames of the chunk or video
    bool on_device = false;                     // frames are in the device's memory
};

// One graph, one thread. clone() shares what is heavy and keeps it alive. The first of a graph is there to be cloned:
// it need not hold what a run takes.
class Executor {
public:
    virtual ~Executor() = default;
    // output: the graph's only one, features [count, feature_dim] or logits [1, num_classes]. Throws Error.
    virtual void run(const Inputs& inputs, float* output, std::size_t output_size) = 0;
    virtual std::unique_ptr<Executor> clone() const = 0;
};

// Each throws Error; a build without one says so.
std::unique_ptr<Executor> make_openvino(const Bundle& bundle, Part part, const Options& options);
std::unique_ptr<Executor> make_tensorrt(const Bundle& bundle, Part part, const Options& options);
bool has_openvino();
bool has_tensorrt();

}  // namespace vtn::detail
