// Plugin fields by name and type, both ways; no raw structs.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <deque>
#include <set>
#include <string>
#include <vector>

namespace vtn::plugins {

// Reads what createPlugin is given. Throws PluginError that names the field, what was got and expected.
class FieldReader {
public:
    explicit FieldReader(const nvinfer1::PluginFieldCollection* fields);

    int64_t integer(const char* name);  // int32 or int64
    float real(const char* name);       // float32 or float64

    // Names that were given and never asked for.
    std::vector<std::string> unread() const;

private:
    const nvinfer1::PluginField& find(const char* name);

    const nvinfer1::PluginFieldCollection* fields_;
    std::set<std::string> read_;
};

// Owns what getFieldsToSerialize and getFieldNames return pointers into.
class FieldWriter {
public:
    FieldWriter() = default;
    FieldWriter(const FieldWriter&) = delete;
    FieldWriter& operator=(const FieldWriter&) = delete;

    void add(const char* name, int32_t value);
    void add(const char* name, float value);
    void declare(const char* name, nvinfer1::PluginFieldType type);  // a name without a value

    const nvinfer1::PluginFieldCollection* collection() const noexcept { return &collection_; }

private:
    void append(const char* name, const void* data, nvinfer1::PluginFieldType type);

    std::deque<int32_t> integers_;  // deques: addresses stay
    std::deque<float> reals_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace vtn::plugins
