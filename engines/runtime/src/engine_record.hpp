// engines/NAME.json beside a bundle: what an engine is, and why it may not be loaded here (vtn_export/trt/sidecar.py).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "bundle.hpp"

namespace vtn::detail {

struct Range {
    std::int64_t min, best, max;
};

struct EngineRecord {
    std::string name, part, engine_sha256, flavor, version, source_file, source_sha256, command;
    std::string gpu_name, gpu_capability;  // empty: any of compute_capabilities
    std::vector<std::string> compute_capabilities;
    std::vector<std::map<std::string, Range>> profiles;
    std::string plugin_file, plugin_sha256;  // empty: no plugin
};

struct Machine {
    std::string gpu_name, compute_capability, tensorrt_version;
};

EngineRecord read_engine_record(const std::string& text, const std::string& where, const std::string& stem);

// The newest engine of a part without mismatch, and its bytes: what is returned is what was hashed. plugin: SHA-256 and
// path of the library found, empty for none. Throws Error: none there, or why the newest is none.
struct Found {
    EngineRecord record;
    std::string bytes;
};
Found find_engine(const Bundle& bundle, Part part, const Machine& machine, const std::string& plugin_path,
                  const std::string& plugin_sha256);

// The plugin library and its hash, checked against its record: given, beside the bundle, or VTN_PLUGIN_LIB; empty:
// none.
struct PluginFile {
    std::string path, sha256;
};
PluginFile find_plugin(const Bundle& bundle, const std::string& given, const std::string& compute_capability);

}  // namespace vtn::detail
