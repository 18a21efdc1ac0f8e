#include "logger.h"

#include <cxxabi.h>

#include <atomic>
#include <cstddef>
#include <typeinfo>

namespace vtn::plugins {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

// The interfaces have one method each, but TensorRT 10 has it first in the table of virtual functions, TensorRT 11
// (and RTX 1.7) behind the four entries of IVersionedInterface. One library serves both, whatever headers it was
// compiled with, so it calls by number.
constexpr size_t kFirst = 0;
constexpr size_t kBehindVersion = 4;

using FindLogger = void* (*)(void* finder);
using Log = void (*)(void* logger, int32_t severity, const char* message);

template <typename Function>
Function virtual_function(const void* object, size_t number) {
    return reinterpret_cast<Function>((*static_cast<void* const* const*>(object))[number]);
}

// Whether an object is an IVersionedInterface. Its type says so, which stands before the table; where it was
// compiled without one, it is taken for what the headers say.
bool is_versioned(const void* object) {
    void* const* table = *static_cast<void* const* const*>(object);
    const auto* type = static_cast<const std::type_info*>(table[-1]);
    if (type == nullptr) {
        return NV_TENSORRT_MAJOR >= 11;
    }
    void* whole = const_cast<char*>(static_cast<const char*>(object)) + reinterpret_cast<ptrdiff_t>(table[-2]);
    const auto* versioned = static_cast<const abi::__class_type_info*>(&typeid(nvinfer1::IVersionedInterface));
    return type->__do_upcast(versioned, &whole) && whole == object;
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept {
    logger_finder.store(finder);
}

void log(nvinfer1::ILogger::Severity severity, const char* message) noexcept {
    void* const finder = logger_finder.load();
    if (finder == nullptr) {
        return;
    }
    try {
        const size_t number = is_versioned(finder) ? kBehindVersion : kFirst;
        if (void* const logger = virtual_function<FindLogger>(finder, number)(finder); logger != nullptr) {
            virtual_function<Log>(logger, number)(logger, static_cast<int32_t>(severity), message);
        }
    } catch (...) {  // a logger of the application's; nothing can be said about it
    }
}

void log(nvinfer1::ILogger::Severity severity, const std::string& message) noexcept {
    log(severity, message.c_str());
}

}  // namespace vtn::plugins
