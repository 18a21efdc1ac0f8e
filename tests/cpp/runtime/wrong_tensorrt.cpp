// What the loader asks a TensorRT library for its version, and nothing else.
#include <cstdint>

extern "C" {
std::int32_t getInferLibVersion() noexcept {
    return VERSION;
}
void* createInferRuntime_INTERNAL(void*, std::int32_t) noexcept {
    return nullptr;
}
}
