// The creators of the library, one function a plugin.
#pragma once

#include <NvInferRuntime.h>

namespace vtn::plugins {

constexpr const char* kNamespace = "vtn";

// Defined beside each plugin; the object lives as long as the library.
nvinfer1::IPluginCreatorInterface* sliding_window_attention_creator();

}  // namespace vtn::plugins
