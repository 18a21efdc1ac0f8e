// The op as a TensorRT plugin: IPluginV3 with its three capabilities in one object. docs/plugins.md has the
// lifecycle. TensorRT calls an object's methods from one thread at a time; clones, and the creator, from any.
#pragma once

#include <NvInferRuntime.h>

#include <string>

#include "../common/fields.h"
#include "launch.h"

#if NV_TENSORRT_MAJOR * 100 + NV_TENSORRT_MINOR < 1003
#error "vtn plugins need the headers of TensorRT 10.3 or later (IPluginV3)"
#endif

namespace vtn::plugins {

// The attributes of docs/op.md, all of them always given.
struct SlidingWindowAttributes {
    int32_t num_heads{0};
    int32_t one_sided_window{0};
    int32_t dilation{0};
    int32_t num_global_tokens{0};
    int32_t causal{0};
    float scale{0.0f};
};

class SlidingWindowAttentionPlugin final : public nvinfer1::IPluginV3,
                                           public nvinfer1::IPluginV3OneCore,
                                           public nvinfer1::IPluginV3OneBuild,
                                           public nvinfer1::IPluginV3OneRuntime {
public:
    explicit SlidingWindowAttentionPlugin(const SlidingWindowAttributes& attributes);

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // Core
    const char* getPluginName() const noexcept override;
    const char* getPluginVersion() const noexcept override;
    const char* getPluginNamespace() const noexcept override;

    // Build
    int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t in_count,
                            const nvinfer1::DynamicPluginTensorDesc* out, int32_t out_count) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* out, int32_t out_count, const nvinfer1::DataType* in,
                               int32_t in_count) const noexcept override;
    int32_t getOutputShapes(const nvinfer1::DimsExprs* in, int32_t in_count, const nvinfer1::DimsExprs* shape_in,
                            int32_t shape_in_count, nvinfer1::DimsExprs* out, int32_t out_count,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* in_out, int32_t in_count,
                                   int32_t out_count) noexcept override;
    int32_t getNbOutputs() const noexcept override;
    size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, int32_t in_count,
                            const nvinfer1::DynamicPluginTensorDesc* out, int32_t out_count) const noexcept override;
    const char* getTimingCacheID() noexcept override;

    // Runtime
    int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t in_count, const nvinfer1::PluginTensorDesc* out,
                          int32_t out_count) noexcept override;
    int32_t enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out,
                    const void* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

private:
    swa::Problem problem(const nvinfer1::Dims& qkv, nvinfer1::DataType type, const nvinfer1::Dims& lengths) const;

    SlidingWindowAttributes attributes_;
    std::string timing_id_;
    FieldWriter serialized_;
    swa::Device device_;  // of the last onShapeChange
    bool has_device_{false};
};

}  // namespace vtn::plugins
