// CUDA's errors as sentences, its device for a scope, its memory as an object.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "error.hpp"

namespace vtn::detail {

inline void check_cuda(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    const bool none = status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver;
    if (none) {
        throw Error(VTN_ERROR_GPU, std::string("no NVIDIA GPU answers (") + what + ": " + cudaGetErrorName(status) +
                                       "); run this on the machine with the GPU");
    }
    throw Error(VTN_ERROR_BACKEND, std::string("trt: ") + what + ": " + cudaGetErrorName(status));
}

struct Device {
    int id = 0;
    bool integrated = false;
    std::string name, compute_capability;

    // The calling thread's. Throws Error (gpu).
    static Device current() {
        int count = 0;
        check_cuda(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
        if (count < 1) check_cuda(cudaErrorNoDevice, "cudaGetDeviceCount");
        Device device;
        check_cuda(cudaGetDevice(&device.id), "cudaGetDevice");
        cudaDeviceProp properties{};
        check_cuda(cudaGetDeviceProperties(&properties, device.id), "cudaGetDeviceProperties");
        device.integrated = properties.integrated != 0;
        device.name = properties.name;
        device.compute_capability = std::to_string(properties.major) + "." + std::to_string(properties.minor);
        return device;
    }
};

// The device that an object was made on, whatever the calling thread's is; that one comes back at the end.
class DeviceScope {
public:
    explicit DeviceScope(int id) {
        if (cudaGetDevice(&before_) == cudaSuccess && before_ != id) {
            check_cuda(cudaSetDevice(id), "cudaSetDevice");
            changed_ = true;
        }
    }
    ~DeviceScope() {
        if (changed_) cudaSetDevice(before_);
    }
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;

private:
    int before_ = 0;
    bool changed_ = false;
};

// Memory of the device, and where the host writes or reads it: the same bytes on an integrated GPU (mapped), a pinned
// part beside it on a discrete one.
class Buffer {
public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { free(); }

    // Its content is lost. Never shrinks.
    void reserve(std::size_t bytes, bool map, bool pinned = true) {
        if (bytes <= size) return;
        free();
        if (map) {
            check_cuda(cudaHostAlloc(&host, bytes, cudaHostAllocMapped), "cudaHostAlloc");
            check_cuda(cudaHostGetDevicePointer(&device, host, 0), "cudaHostGetDevicePointer");
        } else {
            if (pinned) check_cuda(cudaHostAlloc(&host, bytes, cudaHostAllocDefault), "cudaHostAlloc");
            check_cuda(cudaMalloc(&device, bytes), "cudaMalloc");
        }
        mapped = map;
        size = bytes;
    }

    void* host = nullptr;
    void* device = nullptr;
    std::size_t size = 0;
    bool mapped = false;

private:
    void free() {
        if (device != nullptr && !mapped) cudaFree(device);
        if (host != nullptr) cudaFreeHost(host);
        host = device = nullptr, size = 0, mapped = false;
    }
};

}  // namespace vtn::detail
