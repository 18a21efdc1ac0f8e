// TensorRT's own logger, as the registry hands it over; silent until then.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace vtn::plugins {

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

void log(nvinfer1::ILogger::Severity severity, const char* message) noexcept;
void log(nvinfer1::ILogger::Severity severity, const std::string& message) noexcept;

}  // namespace vtn::plugins
