#include "bundle.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <system_error>

#include "error.hpp"
#include "json.hpp"
#include "sha256.hpp"

namespace vtn::detail {
namespace {

constexpr int kSchema = 1;

std::string plain_name(const Json& value, const std::string& what) {
    const std::string text = string(value, what);
    if (text.empty() || text == "." || text == ".." ||
        text.find_first_of(std::string("/\\\0", 3)) != std::string::npos) {
        throw Malformed(what + ": file name '" + text + "'");
    }
    return text;
}

std::vector<TensorSpec> tensors(const Json& items, const std::string& what) {
    std::vector<TensorSpec> specs;
    for (const Json& item : array(items, what)) {
        TensorSpec spec{string(at(item, "name", what), what), string(at(item, "dtype", what), what), {}, {}};
        if (spec.dtype != "uint8" && spec.dtype != "int32" && spec.dtype != "float32") {
            throw Malformed(what + ": dtype '" + spec.dtype + "'");
        }
        for (const Json& axis : array(at(item, "shape", what), what)) {
            spec.shape.push_back(axis.is_string() ? -1 : integer(axis, what, 1, 1 << 30));
            spec.axes.push_back(axis.is_string() ? axis.get<std::string>() : "");
        }
        specs.push_back(std::move(spec));
    }
    return specs;
}

Preprocessing preprocessing(const Json& data) {
    Preprocessing pre;
    try {
        pre.short_side = integer(at(data, "short_side"), "short_side", INT32_MIN, INT32_MAX);
        pre.crop_size = integer(at(data, "crop_size"), "crop_size", INT32_MIN, INT32_MAX);
        pre.num_frames = integer(at(data, "num_frames"), "num_frames", INT32_MIN, INT32_MAX);
        for (const auto& [key, values] : {std::pair{"mean", pre.mean}, std::pair{"std", pre.std}}) {
            const Json& list = array(at(data, key), key);
            if (list.size() != 3) throw Error(VTN_ERROR_BUNDLE, "preprocessing: values out of range");
            for (int i = 0; i < 3; ++i) values[i] = number(list[i], key);
        }
    } catch (const Malformed& error) {
        throw Error(VTN_ERROR_BUNDLE, std::string("preprocessing: malformed (") + error.what() + ")");
    }
    // 16384: the largest that keeps crops and their taps in memory that a device has
    const bool sizes = pre.short_side >= 1 && pre.crop_size >= 1 && pre.num_frames >= 1 && pre.short_side <= 16384;
    if (!sizes || !(pre.std[0] > 0 && pre.std[1] > 0 && pre.std[2] > 0)) {
        throw Error(VTN_ERROR_BUNDLE, "preprocessing: values out of range");
    }
    if (pre.crop_size > pre.short_side) {
        throw Error(VTN_ERROR_BUNDLE, "preprocessing: crop_size " + std::to_string(pre.crop_size) +
                                          " is larger than short_side " + std::to_string(pre.short_side));
    }
    return pre;
}

// The graphs' interface is fixed (vtn_export/spec.py); a bundle that states another one is not ours.
void check_interface(Manifest& manifest) {
    const int crop = manifest.preprocessing.crop_size;
    const bool uint8 = manifest.input_type == InputType::uint8;
    const std::vector<std::int64_t> pixels =
        uint8 ? std::vector<std::int64_t>{crop, crop, 3} : std::vector<std::int64_t>{3, crop, crop};
    for (const auto& [part, graph] : manifest.graphs) {
        const std::string what = std::string("graphs.") + name(part);
        if (graph.outputs.size() != 1 || graph.outputs[0].dtype != "float32" || graph.outputs[0].shape.size() != 2) {
            throw Malformed(what + ": outputs");
        }
        const auto width = graph.outputs[0].shape[1];
        int& size = part == Part::backbone ? manifest.feature_dim : manifest.num_classes;
        if (width < 1 || (size != 0 && size != width)) throw Malformed(what + ": outputs");
        size = static_cast<int>(width);
        const std::vector<const char*> names = part == Part::backbone ? std::vector<const char*>{"frames"}
                                               : part == Part::temporal
                                                   ? std::vector<const char*>{"features", "frame_index", "lengths"}
                                                   : std::vector<const char*>{"frames", "frame_index", "lengths"};
        if (graph.inputs.size() != names.size()) throw Malformed(what + ": inputs");
        for (std::size_t i = 0; i < names.size(); ++i) {
            const TensorSpec& input = graph.inputs[i];
            const std::string dtype = i > 0 ? "int32" : part == Part::temporal || !uint8 ? "float32" : "uint8";
            if (input.name != names[i] || input.dtype != dtype) throw Malformed(what + ": input " + input.name);
        }
        std::vector<std::int64_t> shape(part == Part::backbone ? 1 : 2, -1);
        if (part == Part::temporal) {
            const auto& features = graph.inputs[0].shape;
            if (features.size() != 3 || features[2] < 1) throw Malformed(what + ": features");
            if (manifest.feature_dim != 0 && manifest.feature_dim != features[2]) throw Malformed(what + ": features");
            manifest.feature_dim = static_cast<int>(features[2]);
            shape.push_back(features[2]);
        } else {
            shape.insert(shape.end(), pixels.begin(), pixels.end());
        }
        if (graph.inputs[0].shape != shape) throw Malformed(what + ": shape of " + graph.inputs[0].name);
    }
}

}  // namespace

const char* name(Part part) {
    return part == Part::full ? "full" : part == Part::backbone ? "backbone" : "temporal";
}

std::string first12(const std::string& digest) {
    return digest.substr(0, 12) + "…";
}

Manifest read_manifest(const std::string& text, const std::string& where) {
    const Json data = parse(text, where, VTN_ERROR_BUNDLE, "");
    if (!data.is_object() || !data.contains("schema_version") || !data["schema_version"].is_number_integer()) {
        throw Error(VTN_ERROR_BUNDLE, where + ": not a manifest of a bundle (no schema_version)");
    }
    if (data["schema_version"] != kSchema) {
        throw Error(VTN_ERROR_BUNDLE,
                    where + ": got schema version " + data["schema_version"].dump() + ", expected " +
                        std::to_string(kSchema) + "; " +
                        (data["schema_version"] > kSchema ? "update vtn-export" : "export the bundle again"));
    }
    try {
        Manifest manifest;
        for (const auto& [file, digest] : object(at(data, "files"), "files").items()) {
            manifest.files[plain_name(file, "files")] = string(digest, "files");
        }
        for (const auto& [key, entry] : object(at(data, "graphs"), "graphs").items()) {
            if (key != "full" && key != "backbone" && key != "temporal") throw Malformed("unknown part '" + key + "'");
            const Part part = key == "full" ? Part::full : key == "backbone" ? Part::backbone : Part::temporal;
            // what the exporter measured and forecast: not used here, but a manifest without it is not whole
            const Json& accuracy = object(at(entry, "accuracy", key), "accuracy");
            const Json& memory = object(at(entry, "memory", key), "memory");
            for (const char* field : {"tolerance", "measured"}) number(at(accuracy, field, key), field);
            for (const char* field : {"fixed_bytes", "bytes_per_frame"}) number(at(memory, field, key), field);
            GraphEntry graph{plain_name(at(entry, "file", key), key), {}, {}};
            try {
                graph.inputs = tensors(at(entry, "inputs", key), key);
                graph.outputs = tensors(at(entry, "outputs", key), key);
            } catch (const Malformed& error) {
                throw Error(VTN_ERROR_BUNDLE,
                            std::string("manifest: malformed graph interface (") + error.what() + ")");
            }
            if (manifest.files.count(graph.file) == 0) throw Malformed("graphs without files");
            manifest.graphs[part] = std::move(graph);
        }
        if (manifest.graphs.empty()) throw Malformed("graphs without files");
        string(at(object(at(data, "weights"), "weights"), "backbone_fingerprint"), "backbone_fingerprint");
        number(at(object(at(data, "op"), "op"), "version"), "op");
        object(at(data, "tools"), "tools");
        manifest.name = string(at(data, "name"), "name");
        manifest.precision = string(at(data, "precision"), "precision");
        const std::string type = string(at(data, "input_type"), "input_type");
        const bool quantized = manifest.precision == "int8" || manifest.precision == "fp8";
        const bool known =
            quantized || manifest.precision == "fp32" || manifest.precision == "fp16" || manifest.precision == "bf16";
        if (!known || (type != "uint8" && type != "float32")) {
            throw Malformed("precision '" + manifest.precision + "', input type '" + type + "'");
        }
        if (quantized != (data.contains("quantization") && data["quantization"].is_object())) {
            throw Malformed("precision '" + manifest.precision + "' " + (quantized ? "without" : "with") +
                            " a quantization record");
        }
        manifest.input_type = type == "uint8" ? InputType::uint8 : InputType::float32;
        manifest.preprocessing = preprocessing(at(data, "preprocessing"));
        const Json& config = object(at(data, "config"), "config");
        if (config.contains("temporal") && config["temporal"].contains("max_position_embeddings")) {
            manifest.frame_positions =
                integer(config["temporal"]["max_position_embeddings"], "max_position_embeddings", 3, 1 << 30) - 2;
        }
        check_interface(manifest);
        return manifest;
    } catch (const Malformed& error) {
        throw Error(VTN_ERROR_BUNDLE, where + ": malformed manifest (" + error.what() + ")");
    }
}

namespace {

class FileKind : public std::error_category {
public:
    const char* name() const noexcept override { return "file kind"; }
    std::string message(int) const override { return "Not a regular file"; }
};

// Closed at the end of its scope.
class Descriptor {
public:
    explicit Descriptor(int number) : number(number) {}
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() {
        if (number >= 0) close(number);
    }
    const int number;
};

}  // namespace

std::string read_file(const std::string& path, std::size_t most) {
    static const FileKind kind;
    // a pipe would be waited for, a device may have no end; a pipe without a writer is opened at once
    const Descriptor file(open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    struct stat status{};
    if (file.number < 0 || fstat(file.number, &status) != 0) throw std::system_error(errno, std::generic_category());
    if (S_ISDIR(status.st_mode)) throw std::system_error(EISDIR, std::generic_category());
    if (!S_ISREG(status.st_mode)) throw std::system_error(EINVAL, kind);
    std::string bytes;
    bytes.reserve(std::min(std::size_t(status.st_size), most));
    std::string block(1 << 20, '\0');
    while (bytes.size() < most) {
        const ssize_t got = read(file.number, block.data(), std::min(block.size(), most - bytes.size()));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) throw std::system_error(errno, std::generic_category());
        if (got == 0) break;
        bytes.append(block, 0, std::size_t(got));
    }
    return bytes;
}

std::string read_json(const std::string& path) {
    return read_file(path, kMaxJson + 1);
}

Bundle Bundle::open(const std::string& path) {
    struct stat status{};
    if (stat(path.c_str(), &status) != 0) {
        const std::error_code why(errno, std::generic_category());  // before anything else sets it
        if (why != std::errc::no_such_file_or_directory && why != std::errc::not_a_directory) {
            throw Error(VTN_ERROR_BUNDLE, "bundle " + path + ": cannot be read (" + why.message() + ")");
        }
        throw Error(VTN_ERROR_BUNDLE,
                    "bundle " + path + ": no such folder; make one with `vtn-export onnx --out " + path + "`");
    }
    if (!S_ISDIR(status.st_mode)) {
        throw Error(VTN_ERROR_BUNDLE,
                    "bundle " + path + ": got a file, expected the folder that `vtn-export onnx --out` wrote");
    }
    const std::string manifest = path + "/manifest.json";
    if (stat(manifest.c_str(), &status) != 0 && errno == ENOENT) {
        throw Error(VTN_ERROR_BUNDLE,
                    "bundle " + path + ": no manifest.json in it; expected a folder of `vtn-export onnx`");
    }
    try {
        Bundle bundle;
        bundle.path = path;
        bundle.manifest = read_manifest(read_json(manifest), manifest);
        return bundle;
    } catch (const std::system_error& error) {
        throw Error(VTN_ERROR_BUNDLE, manifest + ": cannot be read (" + error.code().message() + ")");
    }
}

const GraphEntry& Bundle::graph(Part part) const {
    const auto found = manifest.graphs.find(part);
    if (found != manifest.graphs.end()) return found->second;
    std::string have;
    for (const auto& entry : manifest.graphs) have += (have.empty() ? "" : ", ") + std::string(name(entry.first));
    throw Error(VTN_ERROR_BUNDLE,
                "bundle " + path + ": no " + name(part) + " graph (it has " + have + "); export with --part all");
}

std::string Bundle::content(const std::string& file) const {
    const auto listed = manifest.files.find(file);
    if (listed == manifest.files.end()) {
        std::string have;
        for (const auto& entry : manifest.files) have += (have.empty() ? "" : ", ") + entry.first;
        throw Error(VTN_ERROR_BUNDLE, "bundle " + path + ": no " + file + " in its manifest; it has " + have);
    }
    const std::string full = path + "/" + file;
    std::string bytes;
    try {
        bytes = read_file(full);
    } catch (const std::system_error& error) {
        throw Error(VTN_ERROR_BUNDLE,
                    full + ": " + error.code().message() + "; the manifest lists it, export the bundle again");
    }
    const std::string got = sha256_hex(bytes);
    if (got != listed->second) {
        throw Error(VTN_ERROR_BUNDLE, full + ": SHA-256 " + first12(got) + " is not the manifest's " +
                                          first12(listed->second) +
                                          "; the file was changed or damaged, export the bundle again");
    }
    return bytes;
}

std::vector<std::string> Bundle::labels() const {
    std::string text = content("labels.txt");
    if (!text.empty() && text.back() == '\n') text.pop_back();
    std::vector<std::string> lines;
    for (std::size_t start = 0;;) {
        const std::size_t end = text.find('\n', start);
        lines.push_back(text.substr(start, end - start));
        if (end == std::string::npos) break;
        start = end + 1;
    }
    if (manifest.num_classes != 0 && lines.size() != std::size_t(manifest.num_classes)) {
        throw Error(VTN_ERROR_BUNDLE, "bundle " + path + ": got " + std::to_string(lines.size()) +
                                          " labels, expected " + std::to_string(manifest.num_classes) +
                                          "; export the bundle again");
    }
    return lines;
}

}  // namespace vtn::detail
