// TensorRT calls plugins through noexcept methods. Every body that can throw runs in here.
#pragma once

#include <exception>
#include <string>
#include <utility>

#include "logger.h"

namespace vtn::plugins {

// body()'s result, or `failed` with one line in TensorRT's log.
template <typename Result, typename Body>
Result guarded(const char* where, Result failed, Body&& body) noexcept {
    try {
        return std::forward<Body>(body)();
    } catch (const std::exception& error) {
        try {
            log(nvinfer1::ILogger::Severity::kERROR, std::string(where) + ": " + error.what());
        } catch (...) {  // no memory for the message
        }
    } catch (...) {
        log(nvinfer1::ILogger::Severity::kERROR, where);
    }
    return failed;
}

}  // namespace vtn::plugins
