#include "launch.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>

#include "traits.h"

namespace vtn::swa {
namespace {

constexpr int64_t kMaxElements = (int64_t{1} << 31) - 1;
constexpr int64_t kMaxStride = int64_t{1}
                               << 30;  // elements from a row's key to the next: 31 bits of bytes in 16-bit types
constexpr int64_t kMaxGridAxis = 65535;
constexpr int64_t kSmallestBlock = 64;  // queries; bounds the blocks of a sequence
constexpr float kLog2E = 1.4426950408889634f;

std::string wrong(const char* what, int64_t got, const std::string& expected) {
    return std::string(what) + ": got " + std::to_string(got) + ", expected " + expected;
}

const std::vector<Kernel>& kernels_of(DataType type) {
    switch (type) {
        case DataType::kFloat16: return kernels_fp16();
        case DataType::kBFloat16: return kernels_bf16();
        default: return kernels_fp32();
    }
}

int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

// Whether the band and the globals of 16 queries fit the slots of a resident kernel.
bool fits(const Kernel& kernel, const KernelParams& params) {
    const bool shared_last = kernel.tiles <= 5;
    const int slots = kernel.tiles * kKeysPerTile;
    const int band = kRowsPerWarp + params.span;
    const int reach = shared_last ? slots - kRowsPerWarp : 64;
    if (params.window + params.globals > reach) {
        return false;
    }
    const int last = slots - kKeysPerTile;
    return params.globals <= kKeysPerTile &&
           (shared_last ? std::max(band, last) + params.globals <= slots : band <= last);
}

const Kernel* choose(const Problem& problem, const KernelParams& params, int64_t rows, const Device& device) {
    for (const Kernel& kernel : kernels_of(problem.type)) {
        if (kernel.head_dim != problem.head_dim || kernel.shared_bytes > device.shared_bytes ||
            (params.dilation.value > 1 && !kernel.dilated)) {
            continue;
        }
        if (kernel.family == Family::kResident) {
            // Blocks of 192 read fewer keys twice, but would leave half of their warps idle in a sequence
            // of 252 tokens: 288 warps instead of 192.
            const bool wide = kernel.queries > 128;
            if (!fits(kernel, params) || (wide && rows <= 256)) {
                continue;
            }
        }
        return &kernel;
    }
    return nullptr;
}

// Bit k of an entry: kernel k of the type's table may use its shared memory on that device.
constexpr int kMaxDevices = 64;
std::atomic<uint64_t> prepared[3][kMaxDevices];

}  // namespace

std::string check_attributes(int64_t heads, int64_t window, int64_t dilation, int64_t globals, int64_t causal,
                             float scale) {
    constexpr int64_t kMaxInt = (int64_t{1} << 31) - 1;
    if (heads < 1 || heads > kMaxGridAxis) {
        return wrong("num_heads", heads, "1 to 65535");
    }
    if (window < 1 || window > kMaxInt) {
        return wrong("one_sided_window", window, "1 or more");
    }
    if (dilation < 1 || dilation > kMaxInt) {
        return wrong("dilation", dilation, "1 or more");
    }
    if (globals < 0 || globals > kMaxInt) {
        return wrong("num_global_tokens", globals, "0 or more");
    }
    if (causal != 0 && causal != 1) {
        return wrong("causal", causal, "0 or 1");
    }
    if (!std::isfinite(scale)) {
        return "scale: got " + std::to_string(scale) + ", expected a finite number";
    }
    return {};
}

std::string check_sizes(const Problem& problem) {
    std::string reason = check_attributes(problem.heads, problem.window, problem.dilation, problem.globals,
                                          problem.causal ? 1 : 0, problem.scale);
    if (!reason.empty()) {
        return reason;
    }
    const auto& kernels = kernels_of(problem.type);
    const bool known = std::any_of(kernels.begin(), kernels.end(),
                                   [&](const Kernel& kernel) { return kernel.head_dim == problem.head_dim; });
    if (!known) {
        return wrong("head dimension", problem.head_dim, "32, 64, 80, 96 or 128");
    }
    if (problem.batch < 0 || problem.sequence < 0) {
        return wrong("qkv", std::min(problem.batch, problem.sequence), "no negative dimension");
    }
    const int64_t limit = (kMaxGridAxis * kSmallestBlock);
    if (problem.sequence > limit) {
        return wrong("sequence length", problem.sequence, "at most " + std::to_string(limit));
    }
    const int64_t token = 3 * problem.heads * problem.head_dim;  // below 2^26: heads and head_dim are checked
    if (problem.batch > 0 && problem.sequence > 0 && problem.sequence > kMaxElements / token / problem.batch) {
        return "qkv: got " + std::to_string(problem.batch) + " x " + std::to_string(problem.sequence) + " x " +
               std::to_string(token) + " elements, expected fewer than 2^31";
    }
    if (problem.dilation < problem.sequence && problem.dilation * token >= kMaxStride) {
        return "dilation: got " + std::to_string(problem.dilation) + " tokens of " + std::to_string(token) +
               " elements, expected fewer than 2^30 elements from a key to the next";
    }
    return {};
}

std::string check_pointers(const Problem& problem) {
    if (problem.qkv == nullptr || problem.lengths == nullptr || problem.output == nullptr) {
        return "qkv, lengths, output: got a null pointer, expected device memory";
    }
    const auto address = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
    if ((address(problem.qkv) | address(problem.output)) % 16 != 0 || address(problem.lengths) % 4 != 0) {
        return "qkv, output: expected addresses that are multiples of 16 (lengths: of 4)";
    }
    return {};
}

cudaError_t plan(const Problem& problem, const Device& device, Launch* launch) {
    *launch = Launch{};
    if (!check_sizes(problem).empty()) {
        return cudaErrorInvalidValue;
    }
    if (problem.type == DataType::kBFloat16 && device.compute_capability < 80) {
        return cudaErrorNotSupported;
    }
    if (problem.batch == 0 || problem.sequence == 0) {
        return cudaSuccess;
    }

    // A window, a dilation or globals beyond the sequence mean the same as the sequence's own size.
    const auto sequence = static_cast<int32_t>(problem.sequence);
    const auto dilation = static_cast<uint32_t>(std::min(problem.dilation, sequence));
    const int64_t rows = ceil_div(sequence, dilation);
    const int64_t element = problem.type == DataType::kFloat32 ? 4 : 2;
    const int64_t model_dim = problem.heads * problem.head_dim;

    KernelParams& params = launch->params;
    params.qkv = problem.qkv;
    params.output = problem.output;
    params.lengths = problem.lengths;
    params.third_bytes = static_cast<uint64_t>(model_dim * element);
    params.token_bytes = static_cast<uint32_t>(3 * model_dim * element);
    params.output_bytes = static_cast<uint32_t>(model_dim * element);
    params.sequence = sequence;
    params.window = std::min(problem.window, sequence);
    params.reach = problem.causal ? 1 : params.window + 1;
    params.span = params.window + params.reach - 1;
    params.globals = std::min(problem.globals, sequence);
    const float magnitude = std::fabs(problem.scale);
    params.score_factor = magnitude == 0.0f ? 1.0f : magnitude;
    if (problem.type != DataType::kFloat32) {
        params.score_factor = magnitude == 0.0f ? 1.0f : std::min(magnitude * kLog2E, FLT_MAX);
    }
    params.minus_factor = -params.score_factor;
    params.score_floor = -FLT_MAX / std::max(1.0f, params.score_factor);
    params.query_and = magnitude == 0.0f ? 0 : 0xffffffffu;
    params.query_xor = problem.scale < 0.0f ? (element == 4 ? 0x80000000u : 0x80008000u) : 0;
    params.dilation = make_divisor(dilation);
    params.classes = make_divisor(dilation);

    const Kernel* kernel = choose(problem, params, rows, device);
    if (kernel == nullptr) {
        return cudaErrorNotSupported;  // not even the smallest kernel's shared memory
    }
    if (kernel->family == Family::kResident) {
        params.global_slot = std::max(kRowsPerWarp + params.span - (kernel->tiles - 1) * kKeysPerTile, 0);
    }
    launch->kernel = kernel;
    launch->grid[0] = static_cast<uint32_t>(problem.batch * dilation);
    launch->grid[1] = static_cast<uint32_t>(ceil_div(rows, kernel->queries));
    launch->grid[2] = static_cast<uint32_t>(problem.heads);
    return cudaSuccess;
}

cudaError_t current_device(Device* device) {
    cudaError_t status = cudaGetDevice(&device->ordinal);
    int major = 0;
    int minor = 0;
    if (status == cudaSuccess) {
        status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device->ordinal);
    }
    if (status == cudaSuccess) {
        status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device->ordinal);
    }
    if (status == cudaSuccess) {
        status =
            cudaDeviceGetAttribute(&device->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device->ordinal);
    }
    device->compute_capability = major * 10 + minor;
    return status;
}

namespace {

cudaError_t prepare_kernel(const Kernel& kernel, const Device& device) {
    const size_t index = static_cast<size_t>(&kernel - kernels_of(kernel.type).data());
    const uint64_t bit = uint64_t{1} << index;
    const bool remembered = device.ordinal >= 0 && device.ordinal < kMaxDevices;
    auto* done = remembered ? &prepared[static_cast<int>(kernel.type)][device.ordinal] : nullptr;
    if (done != nullptr && (done->load(std::memory_order_acquire) & bit) != 0) {
        return cudaSuccess;
    }
    const cudaError_t status =
        cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared_bytes);
    if (status == cudaSuccess && done != nullptr) {
        done->fetch_or(bit, std::memory_order_release);
    }
    return status;
}

}  // namespace

cudaError_t prepare(DataType type, int64_t head_dim, const Device& device) {
    if (type == DataType::kBFloat16 && device.compute_capability < 80) {
        return cudaErrorNotSupported;
    }
    for (const Kernel& kernel : kernels_of(type)) {
        if (kernel.head_dim == head_dim && kernel.shared_bytes <= device.shared_bytes) {
            const cudaError_t status = prepare_kernel(kernel, device);
            if (status != cudaSuccess) {
                return status;
            }
        }
    }
    return cudaSuccess;
}

cudaError_t launch(const Problem& problem, const Device& device, cudaStream_t stream) {
    Launch chosen;
    cudaError_t status = plan(problem, device, &chosen);
    if (status != cudaSuccess || chosen.kernel == nullptr) {
        return status;
    }
    if (!check_pointers(problem).empty()) {
        return cudaErrorInvalidValue;
    }
    status = prepare_kernel(*chosen.kernel, device);
    if (status != cudaSuccess) {
        return status;
    }
    void* arguments[] = {&chosen.params};
    return cudaLaunchKernel(chosen.kernel->function, dim3(chosen.grid[0], chosen.grid[1], chosen.grid[2]),
                            dim3(static_cast<uint32_t>(chosen.kernel->threads)), arguments,
                            static_cast<size_t>(chosen.kernel->shared_bytes), stream);
}

}  // namespace vtn::swa
