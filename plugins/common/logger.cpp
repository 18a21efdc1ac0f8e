#include "logger.h"

#include <atomic>

namespace vtn::plugins {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept {
    logger_finder.store(finder);
}

void log(nvinfer1::ILogger::Severity severity, const std::string& message) noexcept {
    nvinfer1::ILoggerFinder* finder = logger_finder.load();
    if (finder == nullptr) {
        return;
    }
    try {
        if (nvinfer1::ILogger* logger = finder->findLogger(); logger != nullptr) {
            logger->log(severity, message.c_str());
        }
    } catch (...) {  // a logger of the application's; nothing can be said about it
    }
}

}  // namespace vtn::plugins
