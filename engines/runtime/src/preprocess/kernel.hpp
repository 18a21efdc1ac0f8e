// The CUDA kernel's launcher.
#pragma once

#include <cuda_runtime_api.h>

#include "pixel.hpp"

namespace vtn::detail {

struct KernelParams {
    Source source;  // pointers that the device can read
    Axis y, x;
    void* out;            // uint8 [crop, crop, 3] or float32 [3, crop, crop]
    const float* levels;  // [3, 256], for float32
    std::int32_t crop;
};

// Resize, crop, colour and type in one kernel; returns before it has run.
cudaError_t launch_preprocess(const KernelParams& params, PixelFormat format, InputType type, cudaStream_t stream);

}  // namespace vtn::detail
