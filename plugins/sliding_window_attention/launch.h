// From a problem to one kernel launch. No TensorRT here, and no device memory of our own.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <vector>

#include "params.h"

namespace vtn::swa {

enum class DataType : int32_t { kFloat16 = 0, kBFloat16 = 1, kFloat32 = 2 };

// docs/op.md has the meaning of every field.
struct Problem {
    const void* qkv{nullptr};
    const int32_t* lengths{nullptr};
    void* output{nullptr};
    DataType type{DataType::kFloat16};
    int64_t batch{0};
    int64_t sequence{0};
    int64_t heads{0};
    int64_t head_dim{0};
    int32_t window{0};
    int32_t dilation{1};
    int32_t globals{0};
    bool causal{false};
    float scale{1.0f};
};

enum class Family : int32_t { kResident = 0, kStreaming = 1, kScalar = 2 };

struct Kernel {
    const char* name;
    const void* function;
    Family family;
    DataType type;
    int32_t head_dim;
    int32_t tiles;  // resident: key tiles a warp
    bool dilated;   // takes dilations other than 1
    int32_t threads;
    int32_t queries;  // a block
    int32_t shared_bytes;
};

struct Device {
    int32_t ordinal{0};
    int32_t compute_capability{0};  // 87 for SM 8.7
    int32_t shared_bytes{0};        // that a block may ask for
};

struct Launch {
    const Kernel* kernel{nullptr};  // null: an empty tensor, nothing to launch
    uint32_t grid[3]{0, 0, 0};
    KernelParams params{};
};

// Empty, or what is wrong: `one_sided_window: got 0, expected 1 or more`.
std::string check_attributes(int64_t heads, int64_t window, int64_t dilation, int64_t globals, int64_t causal,
                             float scale);
std::string check_sizes(const Problem& problem);
std::string check_pointers(const Problem& problem);

// The launch for a device, real or only described. cudaErrorInvalidValue where a check fails,
// cudaErrorNotSupported where the device lacks the type.
cudaError_t plan(const Problem& problem, const Device& device, Launch* launch);

cudaError_t current_device(Device* device);

// Lets the kernels of a type and head dimension use the shared memory that they need, and loads them; once
// for each device. launch() does it when it was not done, which CUDA-graph capture should not see.
cudaError_t prepare(DataType type, int64_t head_dim, const Device& device);

// Enqueues one kernel. Allocates nothing, waits for nothing.
cudaError_t launch(const Problem& problem, const Device& device, cudaStream_t stream);

// The tables of the translation units.
const std::vector<Kernel>& kernels_fp16();
const std::vector<Kernel>& kernels_bf16();
const std::vector<Kernel>& kernels_fp32();

}  // namespace vtn::swa
