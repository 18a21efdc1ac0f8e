// A bundle on disk: manifest.json read field by field, every file's SHA-256 compared before it is used. Untrusted
// input.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "preprocess/preprocess.hpp"

namespace vtn::detail {

enum class Part { full, backbone, temporal };
const char* name(Part part);

struct TensorSpec {
    std::string name, dtype;
    std::vector<std::int64_t> shape;  // -1: a free axis
    std::vector<std::string> axes;    // its name, empty for a fixed one
};

struct GraphEntry {
    std::string file;
    std::vector<TensorSpec> inputs, outputs;
};

struct Manifest {
    std::string name, precision;
    InputType input_type = InputType::uint8;
    Preprocessing preprocessing;
    std::int64_t frame_positions = 0;  // rows of the position table for frames; 0: not stated
    int feature_dim = 0, num_classes = 0;
    std::map<Part, GraphEntry> graphs;
    std::map<std::string, std::string> files;  // name -> SHA-256
};

// text: the manifest's content; where: its path, for messages. Throws Error.
Manifest read_manifest(const std::string& text, const std::string& where);

class Bundle {
public:
    static Bundle open(const std::string& path);  // throws Error
    const GraphEntry& graph(Part part) const;
    // The content of a file, its hash compared: what is returned is what was hashed. Throws Error.
    std::string content(const std::string& name) const;
    std::vector<std::string> labels() const;

    std::string path;
    Manifest manifest;
};

// The whole file. Throws std::system_error.
std::string read_file(const std::string& path, std::size_t most = SIZE_MAX);
// The same of a file that parse() gets, which refuses what is too large; so no more than that is read.
std::string read_json(const std::string& path);
// A digest as messages show it.
std::string first12(const std::string& digest);

}  // namespace vtn::detail
