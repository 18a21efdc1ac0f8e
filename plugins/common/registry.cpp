// The two symbols that TensorRT looks for after loadLibrary (10.x and 11.x).
#include "registry.h"

#include "guard.h"
#include "logger.h"

extern "C" {

__attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) noexcept {
    count = 0;
    return vtn::plugins::guarded<nvinfer1::IPluginCreatorInterface* const*>("getCreators", nullptr, [&] {
        static nvinfer1::IPluginCreatorInterface* const creators[] = {
            vtn::plugins::sliding_window_attention_creator(),
        };
        count = static_cast<int32_t>(sizeof(creators) / sizeof(creators[0]));
        return creators;
    });
}

__attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept {
    vtn::plugins::set_logger_finder(finder);
}

}  // extern "C"
