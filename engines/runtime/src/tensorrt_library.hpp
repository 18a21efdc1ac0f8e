// TensorRT by dlopen: libvtn builds with headers alone, and says in words which library is missing or another.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>

namespace vtn::detail {

class TensorRtLibrary {
public:
    // path: empty for libnvinfer.so.MAJOR of the headers. Stays loaded. Throws Error (backend).
    static TensorRtLibrary open(const std::string& path);
    nvinfer1::IRuntime* runtime(nvinfer1::ILogger& logger) const;
    std::string version;  // "10.14.1"

private:
    std::int32_t number_ = 0;  // as NV_TENSORRT_VERSION
    void* (*create_)(void*, std::int32_t) = nullptr;
};

}  // namespace vtn::detail
