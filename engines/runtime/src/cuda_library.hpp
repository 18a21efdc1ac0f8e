// TensorRT by dlopen: libvtn builds with headers alone, and says in words which library is missing or another.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>

namespace vtn::detail {

class TensorRtLibrary {
public:
    // path: empty for libnvinfer.so.MAJOR of the headers. Throws Error (backend).
    static std::shared_ptr<TensorRtLibrary> open(const std::string& path);
    ~TensorRtLibrary();
    nvinfer1::IRuntime* runtime(nvinfer1::ILogger& logger) const;
    std::string version;  // "10.14.1"

private:
    void* handle_ = nullptr;
    void* (*create_)(void*, std::int32_t) = nullptr;
};

}  // namespace vtn::detail
