// What tests of the plugin share: the library as TensorRT opens it, its logger, fields, plugins and tensors.
#pragma once

#include <NvInferRuntime.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace host {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorFormat;

class Logger final : public nvinfer1::ILogger, public nvinfer1::ILoggerFinder {
public:
    void log(Severity severity, const char* message) noexcept override {
        const std::lock_guard<std::mutex> lock(mutex_);
        lines_.emplace_back((severity <= Severity::kERROR ? "E " : "W ") + std::string(message));
    }
    nvinfer1::ILogger* findLogger() override { return this; }
    std::string take() {
        const std::lock_guard<std::mutex> lock(mutex_);
        std::string all;
        for (const std::string& line : lines_) {
            all += line + "\n";
        }
        lines_.clear();
        return all;
    }

private:
    std::mutex mutex_;
    std::vector<std::string> lines_;
};

inline Logger& logger() {
    static Logger instance;
    return instance;
}

inline void* library() {
    static void* handle = [] {
        const char* path = std::getenv("VTN_PLUGIN_LIB");
        return dlopen(path != nullptr ? path : VTN_PLUGINS_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    }();
    return handle;
}

template <typename Function>
Function symbol(const char* name) {
    return reinterpret_cast<Function>(dlsym(library(), name));
}

inline nvinfer1::IPluginCreatorV3One* creator() {
    symbol<void (*)(nvinfer1::ILoggerFinder*)>("setLoggerFinder")(&logger());
    int32_t count = 0;
    auto* const* all = symbol<nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&)>("getCreators")(count);
    return count == 1 ? static_cast<nvinfer1::IPluginCreatorV3One*>(all[0]) : nullptr;
}

struct Fields {
    // Shared, because a copy's fields point into the same values.
    std::shared_ptr<std::deque<int32_t>> integers = std::make_shared<std::deque<int32_t>>();
    std::shared_ptr<std::deque<float>> reals = std::make_shared<std::deque<float>>();
    std::vector<PluginField> fields;

    Fields& add(const char* name, int32_t value) {
        integers->push_back(value);
        fields.emplace_back(name, &integers->back(), PluginFieldType::kINT32, 1);
        return *this;
    }
    Fields& add(const char* name, float value) {
        reals->push_back(value);
        fields.emplace_back(name, &reals->back(), PluginFieldType::kFLOAT32, 1);
        return *this;
    }
    Fields& without(const std::string& name) {
        for (size_t i = 0; i < fields.size(); ++i) {
            if (fields[i].name == name) {
                fields.erase(fields.begin() + static_cast<ptrdiff_t>(i));
                break;
            }
        }
        return *this;
    }
    nvinfer1::PluginFieldCollection collection() const { return {static_cast<int32_t>(fields.size()), fields.data()}; }
};

inline Fields good() {
    Fields fields;
    fields.add("num_heads", 12).add("one_sided_window", 9).add("dilation", 1).add("num_global_tokens", 1);
    fields.add("causal", 0).add("scale", 0.125f);
    return fields;
}

using Plugin = std::unique_ptr<nvinfer1::IPluginV3>;

inline Plugin create(const Fields& fields, nvinfer1::TensorRTPhase phase = nvinfer1::TensorRTPhase::kBUILD) {
    const nvinfer1::PluginFieldCollection collection = fields.collection();
    return Plugin(creator()->createPlugin("node", &collection, phase));
}

inline nvinfer1::IPluginV3OneBuild* build_of(nvinfer1::IPluginV3& plugin) {
    return static_cast<nvinfer1::IPluginV3OneBuild*>(
        plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
}

inline nvinfer1::IPluginV3OneRuntime* runtime_of(nvinfer1::IPluginV3& plugin) {
    return static_cast<nvinfer1::IPluginV3OneRuntime*>(
        plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
}

inline Dims dims(std::initializer_list<int64_t> values) {
    Dims result{};
    for (const int64_t value : values) {
        result.d[result.nbDims++] = value;
    }
    return result;
}

inline nvinfer1::PluginTensorDesc tensor(Dims shape, DataType type, TensorFormat format = TensorFormat::kLINEAR) {
    nvinfer1::PluginTensorDesc result{};
    result.dims = shape;
    result.type = type;
    result.format = format;
    result.scale = 1.0f;
    return result;
}

inline nvinfer1::DynamicPluginTensorDesc dynamic(Dims shape, Dims largest, DataType type,
                                                 TensorFormat format = TensorFormat::kLINEAR) {
    return {tensor(shape, type, format), largest, largest, largest};
}

struct Io {
    std::array<nvinfer1::PluginTensorDesc, 2> in;
    std::array<nvinfer1::PluginTensorDesc, 1> out;
};

inline Io io(int64_t batch, int64_t sequence, DataType type, int64_t width = 2304) {
    return {{tensor(dims({batch, sequence, width}), type), tensor(dims({batch}), DataType::kINT32)},
            {tensor(dims({batch, sequence, width / 3}), type)}};
}

}  // namespace host
