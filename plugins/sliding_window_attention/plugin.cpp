#include "plugin.h"

#include <cstring>
#include <limits>

#include "../common/error.h"
#include "../common/guard.h"
#include "../common/registry.h"

namespace vtn::plugins {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorFormat;

constexpr const char* kName = "SlidingWindowAttention";
constexpr const char* kVersion = "1";
constexpr int32_t kInputs = 2;
constexpr int32_t kOutputs = 1;
constexpr int32_t kQkv = 0;
constexpr int32_t kLengths = 1;

void expect_counts(int32_t in_count, int32_t out_count) {
    if (in_count != kInputs || out_count != kOutputs) {
        throw PluginError("got " + std::to_string(in_count) + " inputs and " + std::to_string(out_count) +
                          " outputs, expected qkv, lengths and one output");
    }
}

std::string text(const nvinfer1::Dims& dims) {
    std::string result = "(";
    for (int32_t i = 0; i < dims.nbDims; ++i) {
        result += (i > 0 ? ", " : "") + std::to_string(dims.d[i]);
    }
    return result + ")";
}

bool is_element_type(DataType type) {
    return type == DataType::kHALF || type == DataType::kBF16 || type == DataType::kFLOAT;
}

swa::DataType element_type(DataType type) {
    switch (type) {
        case DataType::kHALF: return swa::DataType::kFloat16;
        case DataType::kBF16: return swa::DataType::kBFloat16;
        case DataType::kFLOAT: return swa::DataType::kFloat32;
        default:
            throw PluginError("qkv: got data type " + std::to_string(static_cast<int32_t>(type)) +
                              ", expected float16, bfloat16 or float32");
    }
}

// The status of a CUDA call, logged where it is not success.
int32_t report(const char* what, cudaError_t status) {
    if (status != cudaSuccess) {
        log(nvinfer1::ILogger::Severity::kERROR, std::string(kName) + ": " + what + ": " + cudaGetErrorName(status) +
                                                     " (" + cudaGetErrorString(status) + ")");
    }
    return static_cast<int32_t>(status);
}

int32_t narrow(const char* name, int64_t value) {
    if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max()) {
        throw PluginError(std::string(name) + ": got " + std::to_string(value) + ", expected 32 bits");
    }
    return static_cast<int32_t>(value);
}

}  // namespace

SlidingWindowAttentionPlugin::SlidingWindowAttentionPlugin(const SlidingWindowAttributes& attributes)
    : attributes_(attributes) {
    const std::string reason =
        swa::check_attributes(attributes.num_heads, attributes.one_sided_window, attributes.dilation,
                              attributes.num_global_tokens, attributes.causal, attributes.scale);
    if (!reason.empty()) {
        throw PluginError(reason);
    }
    serialized_.add("num_heads", attributes.num_heads);
    serialized_.add("one_sided_window", attributes.one_sided_window);
    serialized_.add("dilation", attributes.dilation);
    serialized_.add("num_global_tokens", attributes.num_global_tokens);
    serialized_.add("causal", attributes.causal);
    serialized_.add("scale", attributes.scale);
    // One kernel for all tactics, so its time depends on nothing but the attributes and the shape.
    timing_id_ = std::to_string(attributes.num_heads) + "_" + std::to_string(attributes.one_sided_window) + "_" +
                 std::to_string(attributes.dilation) + "_" + std::to_string(attributes.num_global_tokens) + "_" +
                 std::to_string(attributes.causal);
}

nvinfer1::IPluginCapability* SlidingWindowAttentionPlugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* SlidingWindowAttentionPlugin::clone() noexcept {
    return guarded<nvinfer1::IPluginV3*>("SlidingWindowAttention clone", nullptr, [&] {
        auto* copy = new SlidingWindowAttentionPlugin(attributes_);
        copy->device_ = device_;
        copy->has_device_ = has_device_;
        return copy;
    });
}

const char* SlidingWindowAttentionPlugin::getPluginName() const noexcept {
    return kName;
}
const char* SlidingWindowAttentionPlugin::getPluginVersion() const noexcept {
    return kVersion;
}
const char* SlidingWindowAttentionPlugin::getPluginNamespace() const noexcept {
    return kNamespace;
}
int32_t SlidingWindowAttentionPlugin::getNbOutputs() const noexcept {
    return kOutputs;
}

// Dimensions of -1 are not known yet and pass.
swa::Problem SlidingWindowAttentionPlugin::problem(const nvinfer1::Dims& qkv, DataType type,
                                                   const nvinfer1::Dims& lengths) const {
    const int64_t heads = attributes_.num_heads;
    if (qkv.nbDims != 3 || (qkv.d[2] >= 0 && (qkv.d[2] == 0 || qkv.d[2] % (3 * heads) != 0))) {
        throw PluginError("qkv: got shape " + text(qkv) + ", expected (batch, sequence, 3 * " + std::to_string(heads) +
                          " heads * head dimension)");
    }
    if (lengths.nbDims != 1 || (lengths.d[0] >= 0 && qkv.d[0] >= 0 && lengths.d[0] != qkv.d[0])) {
        throw PluginError("lengths: got shape " + text(lengths) + ", expected (batch,) of qkv " + text(qkv));
    }
    swa::Problem result;
    result.type = element_type(type);
    result.batch = qkv.d[0] < 0 ? 1 : qkv.d[0];
    result.sequence = qkv.d[1] < 0 ? 1 : qkv.d[1];
    result.heads = heads;
    result.head_dim = qkv.d[2] < 0 ? 64 : qkv.d[2] / 3 / heads;
    result.window = attributes_.one_sided_window;
    result.dilation = attributes_.dilation;
    result.globals = attributes_.num_global_tokens;
    result.causal = attributes_.causal == 1;
    result.scale = attributes_.scale;
    const std::string reason = swa::check_sizes(result);
    if (!reason.empty()) {
        throw PluginError(reason);
    }
    return result;
}

int32_t SlidingWindowAttentionPlugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t in_count,
                                                      const nvinfer1::DynamicPluginTensorDesc*,
                                                      int32_t out_count) noexcept {
    return guarded<int32_t>("SlidingWindowAttention configurePlugin", -1, [&] {
        expect_counts(in_count, out_count);
        problem(in[kQkv].desc.dims, in[kQkv].desc.type, in[kLengths].desc.dims);
        problem(in[kQkv].max, in[kQkv].desc.type, in[kLengths].max);
        return 0;
    });
}

int32_t SlidingWindowAttentionPlugin::getOutputDataTypes(DataType* out, int32_t out_count, const DataType* in,
                                                         int32_t in_count) const noexcept {
    return guarded<int32_t>("SlidingWindowAttention getOutputDataTypes", -1, [&] {
        expect_counts(in_count, out_count);
        element_type(in[kQkv]);
        if (in[kLengths] != DataType::kINT32) {
            throw PluginError("lengths: got data type " + std::to_string(static_cast<int32_t>(in[kLengths])) +
                              ", expected int32");
        }
        out[0] = in[kQkv];
        return 0;
    });
}

int32_t SlidingWindowAttentionPlugin::getOutputShapes(const nvinfer1::DimsExprs* in, int32_t in_count,
                                                      const nvinfer1::DimsExprs*, int32_t, nvinfer1::DimsExprs* out,
                                                      int32_t out_count, nvinfer1::IExprBuilder& builder) noexcept {
    return guarded<int32_t>("SlidingWindowAttention getOutputShapes", -1, [&] {
        expect_counts(in_count, out_count);
        if (in[kQkv].nbDims != 3 || in[kLengths].nbDims != 1) {
            throw PluginError("got " + std::to_string(in[kQkv].nbDims) + " and " + std::to_string(in[kLengths].nbDims) +
                              " dimensions, expected qkv (batch, sequence, 3 * model) and lengths (batch,)");
        }
        const nvinfer1::IDimensionExpr* three = builder.constant(3);
        out[0].nbDims = 3;
        out[0].d[0] = in[kQkv].d[0];
        out[0].d[1] = in[kQkv].d[1];
        out[0].d[2] = builder.operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *in[kQkv].d[2], *three);
        return 0;
    });
}

bool SlidingWindowAttentionPlugin::supportsFormatCombination(int32_t position,
                                                             const nvinfer1::DynamicPluginTensorDesc* in_out,
                                                             int32_t in_count, int32_t out_count) noexcept {
    if (in_count != kInputs || out_count != kOutputs || position < 0 || position >= in_count + out_count) {
        return false;
    }
    const nvinfer1::PluginTensorDesc& tensor = in_out[position].desc;
    if (tensor.format != TensorFormat::kLINEAR) {
        return false;
    }
    switch (position) {
        case kQkv: return is_element_type(tensor.type);
        case kLengths: return tensor.type == DataType::kINT32;
        default: return tensor.type == in_out[kQkv].desc.type;
    }
}

size_t SlidingWindowAttentionPlugin::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc*, int32_t,
                                                      const nvinfer1::DynamicPluginTensorDesc*,
                                                      int32_t) const noexcept {
    return 0;
}

const char* SlidingWindowAttentionPlugin::getTimingCacheID() noexcept {
    return timing_id_.c_str();
}

int32_t SlidingWindowAttentionPlugin::onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t in_count,
                                                    const nvinfer1::PluginTensorDesc*, int32_t out_count) noexcept {
    return guarded<int32_t>("SlidingWindowAttention onShapeChange", -1, [&] {
        expect_counts(in_count, out_count);
        const swa::Problem sizes = problem(in[kQkv].dims, in[kQkv].type, in[kLengths].dims);
        // Here and not in enqueue, so that a captured graph sees a launch and nothing else. Without a
        // driver or a device there is nothing to prepare; enqueue then says so.
        const cudaError_t status = swa::current_device(&device_);
        has_device_ = status == cudaSuccess;
        if (status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice) {
            return 0;
        }
        if (!has_device_) {
            return report("no CUDA device", status);
        }
        if (sizes.type == swa::DataType::kBFloat16 && device_.compute_capability < 80) {
            throw PluginError("bfloat16: got compute capability " + std::to_string(device_.compute_capability / 10) +
                              "." + std::to_string(device_.compute_capability % 10) + ", expected 8.0 or later");
        }
        return report("cannot prepare its kernels", swa::prepare(sizes.type, sizes.head_dim, device_));
    });
}

int32_t SlidingWindowAttentionPlugin::enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc*,
                                              const void* const* inputs, void* const* outputs, void*,
                                              cudaStream_t stream) noexcept {
    return guarded<int32_t>("SlidingWindowAttention enqueue", -1, [&] {
        swa::Problem work = problem(in[kQkv].dims, in[kQkv].type, in[kLengths].dims);
        work.qkv = inputs[kQkv];
        work.lengths = static_cast<const int32_t*>(inputs[kLengths]);
        work.output = outputs[0];
        if (work.batch > 0 && work.sequence > 0) {
            const std::string reason = swa::check_pointers(work);
            if (!reason.empty()) {
                throw PluginError(reason);
            }
        }
        if (!has_device_) {
            const cudaError_t status = swa::current_device(&device_);
            if (status != cudaSuccess) {
                return report("no CUDA device", status);
            }
            has_device_ = true;
        }
        return report("launch", swa::launch(work, device_, stream));
    });
}

nvinfer1::IPluginV3* SlidingWindowAttentionPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
    return clone();
}

const nvinfer1::PluginFieldCollection* SlidingWindowAttentionPlugin::getFieldsToSerialize() noexcept {
    return serialized_.collection();
}

namespace {

class SlidingWindowAttentionCreator final : public nvinfer1::IPluginCreatorV3One {
public:
    SlidingWindowAttentionCreator() {
        names_.declare("num_heads", PluginFieldType::kINT32);
        names_.declare("one_sided_window", PluginFieldType::kINT32);
        names_.declare("dilation", PluginFieldType::kINT32);
        names_.declare("num_global_tokens", PluginFieldType::kINT32);
        names_.declare("causal", PluginFieldType::kINT32);
        names_.declare("scale", PluginFieldType::kFLOAT32);
    }

    nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                      nvinfer1::TensorRTPhase) noexcept override {
        return guarded<nvinfer1::IPluginV3*>("SlidingWindowAttention createPlugin", nullptr, [&] {
            FieldReader reader(fields);
            SlidingWindowAttributes attributes;
            attributes.num_heads = narrow("num_heads", reader.integer("num_heads"));
            attributes.one_sided_window = narrow("one_sided_window", reader.integer("one_sided_window"));
            attributes.dilation = narrow("dilation", reader.integer("dilation"));
            attributes.num_global_tokens = narrow("num_global_tokens", reader.integer("num_global_tokens"));
            attributes.causal = narrow("causal", reader.integer("causal"));
            attributes.scale = reader.real("scale");
            for (const std::string& unread : reader.unread()) {
                log(nvinfer1::ILogger::Severity::kWARNING, std::string(kName) + " " + (name != nullptr ? name : "") +
                                                               ": field " + unread + " is not one of version " +
                                                               kVersion + "'s and is ignored");
            }
            return new SlidingWindowAttentionPlugin(attributes);
        });
    }

    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return names_.collection(); }
    const char* getPluginName() const noexcept override { return kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

private:
    FieldWriter names_;
};

}  // namespace

nvinfer1::IPluginCreatorInterface* sliding_window_attention_creator() {
    static SlidingWindowAttentionCreator creator;
    return &creator;
}

}  // namespace vtn::plugins
