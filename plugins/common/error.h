// What went wrong, in words for TensorRT's log. Thrown inside the library only; guard.h catches it.
#pragma once

#include <stdexcept>

namespace vtn::plugins {

class PluginError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

}  // namespace vtn::plugins
