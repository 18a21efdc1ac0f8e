#include "c_api.h"

#include <cstring>

#include "launch.h"

namespace {

bool read(const vtn_sliding_window_attention_params* params, vtn::swa::Problem* problem) {
    if (params == nullptr || params->struct_size != sizeof(vtn_sliding_window_attention_params) ||
        params->data_type < VTN_FLOAT16 || params->data_type > VTN_FLOAT32 ||
        (params->causal != 0 && params->causal != 1)) {
        return false;
    }
    problem->qkv = params->qkv;
    problem->lengths = params->lengths;
    problem->output = params->output;
    problem->type = static_cast<vtn::swa::DataType>(params->data_type);
    problem->batch = params->batch;
    problem->sequence = params->sequence;
    problem->heads = params->num_heads;
    problem->head_dim = params->head_dim;
    problem->window = params->one_sided_window;
    problem->dilation = params->dilation;
    problem->globals = params->num_global_tokens;
    problem->causal = params->causal == 1;
    problem->scale = params->scale;
    return true;
}

}  // namespace

extern "C" {

int vtn_sliding_window_attention(const vtn_sliding_window_attention_params* params, CUstream_st* stream) {
    vtn::swa::Problem problem;
    if (!read(params, &problem)) {
        return cudaErrorInvalidValue;
    }
    vtn::swa::Device device;
    const cudaError_t status = vtn::swa::current_device(&device);
    return status == cudaSuccess ? vtn::swa::launch(problem, device, stream) : status;
}

int vtn_sliding_window_attention_plan(const vtn_sliding_window_attention_params* params, int32_t compute_capability,
                                      int32_t shared_bytes, vtn_sliding_window_attention_launch* launch) {
    static_assert(sizeof(vtn::swa::KernelParams) <= sizeof(launch->params));
    vtn::swa::Problem problem;
    if (launch == nullptr || launch->struct_size != sizeof(vtn_sliding_window_attention_launch) ||
        !read(params, &problem)) {
        return cudaErrorInvalidValue;
    }
    vtn::swa::Launch chosen;
    const cudaError_t status = vtn::swa::plan(problem, {0, compute_capability, shared_bytes}, &chosen);
    if (status != cudaSuccess) {
        return status;
    }
    *launch = {};
    launch->struct_size = sizeof(*launch);
    if (chosen.kernel != nullptr) {
        launch->kernel = chosen.kernel->name;
        launch->threads = static_cast<uint32_t>(chosen.kernel->threads);
        launch->shared_bytes = static_cast<uint32_t>(chosen.kernel->shared_bytes);
        launch->queries = static_cast<uint32_t>(chosen.kernel->queries);
        launch->params_bytes = sizeof(chosen.params);
        std::memcpy(launch->grid, chosen.grid, sizeof(chosen.grid));
        std::memcpy(launch->params, &chosen.params, sizeof(chosen.params));
    }
    return cudaSuccess;
}

const char* vtn_plugins_version(void) {
    return VTN_PLUGINS_VERSION " op=1";
}

}  // extern "C"
