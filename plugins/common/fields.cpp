#include "fields.h"

#include <cstring>

#include "error.h"

namespace vtn::plugins {
namespace {

using nvinfer1::PluginFieldType;

template <typename Value>
Value load(const nvinfer1::PluginField& field) {
    Value value;
    std::memcpy(&value, field.data, sizeof(value));  // fields promise no alignment
    return value;
}

[[noreturn]] void wrong_type(const nvinfer1::PluginField& field, const char* expected) {
    throw PluginError("field " + std::string(field.name) + ": got type " +
                      std::to_string(static_cast<int32_t>(field.type)) + " of length " + std::to_string(field.length) +
                      ", expected " + expected);
}

}  // namespace

FieldReader::FieldReader(const nvinfer1::PluginFieldCollection* fields) : fields_(fields) {
    if (fields == nullptr || (fields->nbFields > 0 && fields->fields == nullptr)) {
        throw PluginError("fields: got none");
    }
}

const nvinfer1::PluginField& FieldReader::find(const char* name) {
    for (int32_t i = 0; i < fields_->nbFields; ++i) {
        const nvinfer1::PluginField& field = fields_->fields[i];
        if (field.name != nullptr && std::strcmp(field.name, name) == 0) {
            if (field.data == nullptr || field.length < 1) {
                throw PluginError("field " + std::string(name) + ": got no value");
            }
            read_.insert(name);
            return field;
        }
    }
    throw PluginError("field " + std::string(name) + ": missing");
}

int64_t FieldReader::integer(const char* name) {
    const nvinfer1::PluginField& field = find(name);
    if (field.length == 1 && field.type == PluginFieldType::kINT32) {
        return load<int32_t>(field);
    }
    if (field.length == 1 && field.type == PluginFieldType::kINT64) {
        return load<int64_t>(field);
    }
    wrong_type(field, "one int32 or int64");
}

float FieldReader::real(const char* name) {
    const nvinfer1::PluginField& field = find(name);
    if (field.length == 1 && field.type == PluginFieldType::kFLOAT32) {
        return load<float>(field);
    }
    if (field.length == 1 && field.type == PluginFieldType::kFLOAT64) {
        return static_cast<float>(load<double>(field));
    }
    wrong_type(field, "one float32 or float64");
}

std::vector<std::string> FieldReader::unread() const {
    std::vector<std::string> names;
    for (int32_t i = 0; i < fields_->nbFields; ++i) {
        const char* name = fields_->fields[i].name;
        if (name != nullptr && read_.count(name) == 0) {
            names.emplace_back(name);
        }
    }
    return names;
}

void FieldWriter::add(const char* name, int32_t value) {
    integers_.push_back(value);
    append(name, &integers_.back(), PluginFieldType::kINT32);
}

void FieldWriter::add(const char* name, float value) {
    reals_.push_back(value);
    append(name, &reals_.back(), PluginFieldType::kFLOAT32);
}

void FieldWriter::declare(const char* name, PluginFieldType type) {
    append(name, nullptr, type);
}

// Up to date after every field, so that collection() changes nothing: many threads ask a creator for its names.
void FieldWriter::append(const char* name, const void* data, PluginFieldType type) {
    fields_.emplace_back(name, data, type, 1);
    collection_.nbFields = static_cast<int32_t>(fields_.size());
    collection_.fields = fields_.data();
}

}  // namespace vtn::plugins
