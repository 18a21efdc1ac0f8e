// Any bytes as manifest.json: a manifest or an Error, nothing else.
#include <cstddef>
#include <cstdint>
#include <string>

#include "bundle.hpp"
#include "error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        vtn::detail::read_manifest(std::string(reinterpret_cast<const char*>(data), size), "m");
    } catch (const vtn::detail::Error&) {
    }
    return 0;
}
