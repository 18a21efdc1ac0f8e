#include "engine_record.hpp"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "error.hpp"
#include "json.hpp"
#include "sha256.hpp"

namespace vtn::detail {
namespace {

namespace fs = std::filesystem;

// "10.3.0" of "10.3.0.30" or "10.3.0.post1": what the library tells of itself.
std::string leading(const std::string& version) {
    std::size_t end = 0;
    for (int dots = 0; end < version.size() && (dots += version[end] == '.') < 3; ++end) {
    }
    return version.substr(0, end);
}

// Why the engine is not this bundle's or does not run on this machine.
std::vector<std::string> problems(const EngineRecord& record, const Bundle& bundle, const Machine& machine,
                                  const std::string& plugin_path, const std::string& plugin_sha256) {
    std::vector<std::string> found;
    const auto have = bundle.manifest.files.find(record.source_file);
    if (have == bundle.manifest.files.end() || have->second != record.source_sha256) {
        const std::string got = have == bundle.manifest.files.end() ? "no such graph" : first12(have->second);
        found.push_back("the bundle's " + record.source_file + ": got " + got + ", expected " +
                        first12(record.source_sha256));
    }
    if (record.flavor != "tensorrt") {
        found.push_back("flavor: got " + record.flavor + ", expected tensorrt (libvtn runs no other)");
    } else if (leading(record.version) != machine.tensorrt_version) {
        found.push_back("tensorrt version: got " + machine.tensorrt_version + ", expected " + record.version);
    }
    const std::string& capability = machine.compute_capability;
    const auto& listed = record.compute_capabilities;
    if (!record.gpu_name.empty()) {
        if (record.gpu_name != machine.gpu_name || record.gpu_capability != capability) {
            found.push_back("GPU: got " + machine.gpu_name + " (SM " + capability + "), expected " + record.gpu_name +
                            " (SM " + record.gpu_capability + ")");
        }
    } else if (!listed.empty() && std::find(listed.begin(), listed.end(), capability) == listed.end()) {
        std::string all;
        for (const std::string& one : listed) all += (all.empty() ? "" : ", ") + one;
        found.push_back("GPU: got SM " + capability + " (" + machine.gpu_name + "), expected one of " + all);
    }
    if (!record.plugin_sha256.empty()) {
        if (plugin_path.empty()) {
            found.push_back("plugin: none found, expected " + record.plugin_file + " (" +
                            first12(record.plugin_sha256) + ")");
        } else if (plugin_sha256 != record.plugin_sha256) {
            found.push_back("plugin " + fs::path(plugin_path).filename().string() + ": got " + first12(plugin_sha256) +
                            ", expected " + first12(record.plugin_sha256));
        }
    }
    return found;
}

[[noreturn]] void refuse(const EngineRecord& record, const std::vector<std::string>& found) {
    std::string told;
    for (const std::string& one : found) told += (told.empty() ? "" : "; ") + one;
    throw Error(VTN_ERROR_ENGINE, "engine " + record.name + ": " + told + "; rebuild it: " + record.command);
}

}  // namespace

EngineRecord read_engine_record(const std::string& text, const std::string& where, const std::string& stem) {
    const Json data = parse(text, where, VTN_ERROR_ENGINE, "; build the engine again");
    if (!data.is_object() || !data.contains("schema_version") || data["schema_version"] != 1) {
        const std::string got =
            data.is_object() && data.contains("schema_version") ? data["schema_version"].dump() : "none";
        throw Error(VTN_ERROR_ENGINE, where + ": got schema version " + got + ", expected 1; build it again");
    }
    try {
        EngineRecord record;
        const auto text_of = [&](const char* key) { return string(at(data, key), key); };
        record.name = text_of("name");
        if (record.name != stem) throw Malformed("name '" + record.name + "'");
        record.part = text_of("part");
        record.engine_sha256 = text_of("engine_sha256");
        record.flavor = text_of("flavor");
        record.version = text_of("version");
        record.source_file = text_of("source_file");
        record.source_sha256 = text_of("source_sha256");
        record.command = text_of("command");
        for (const Json& one : array(at(data, "compute_capabilities"), "compute_capabilities")) {
            record.compute_capabilities.push_back(string(one, "compute_capabilities"));
        }
        if (const Json& gpu = at(data, "gpu"); !gpu.is_null()) {
            record.gpu_name = string(at(gpu, "name", "gpu"), "gpu");
            record.gpu_capability = string(at(gpu, "compute_capability", "gpu"), "gpu");
        }
        if (const Json& plugin = at(data, "plugin"); !plugin.is_null()) {
            record.plugin_file = string(at(plugin, "file", "plugin"), "plugin");
            record.plugin_sha256 = string(at(plugin, "sha256", "plugin"), "plugin");
        }
        for (const Json& item : array(at(data, "profiles"), "profiles")) {
            std::map<std::string, Range> profile;
            for (const auto& [axis, values] : object(item, "profiles").items()) {
                if (array(values, axis).size() != 3) throw Malformed("profile of " + axis);
                const auto value = [&, &axis = axis, &values = values](int i) {
                    return integer(values[std::size_t(i)], axis, 1, INT32_MAX);
                };
                profile[axis] = {value(0), value(1), value(2)};
            }
            record.profiles.push_back(std::move(profile));
        }
        return record;
    } catch (const Malformed& error) {
        throw Error(VTN_ERROR_ENGINE, where + ": malformed engine record (" + error.what() + "); build it again");
    }
}

Found find_engine(const Bundle& bundle, Part part, const Machine& machine, const std::string& plugin_path,
                  const std::string& plugin_sha256) {
    std::vector<std::pair<fs::file_time_type, fs::path>> records;
    std::error_code none;
    for (const auto& entry : fs::directory_iterator(bundle.path + "/engines", none)) {
        const fs::path& path = entry.path();
        if (path.extension() == ".json" && path.filename().string()[0] != '.') {
            records.emplace_back(fs::last_write_time(path, none), path);
        }
    }
    std::sort(records.rbegin(), records.rend());
    std::string broken;
    EngineRecord rejected;
    std::vector<std::string> why;
    for (const auto& entry : records) {
        const fs::path& path = entry.second;
        try {
            Found found{read_engine_record(read_file(path.string()), path.string(), path.stem().string()), ""};
            if (found.record.part != name(part)) continue;
            std::vector<std::string> wrong = problems(found.record, bundle, machine, plugin_path, plugin_sha256);
            fs::path engine = path;
            engine.replace_extension(".engine");
            try {
                found.bytes = read_file(engine.string());
                const std::string got = sha256_hex(found.bytes);
                if (got != found.record.engine_sha256) {
                    wrong.push_back(engine.filename().string() + ": got SHA-256 " + first12(got) + ", expected " +
                                    first12(found.record.engine_sha256) + " (changed or damaged)");
                }
            } catch (const std::system_error& error) {
                wrong.push_back(engine.string() + ": " + error.code().message());
            }
            if (wrong.empty()) return found;
            if (why.empty()) rejected = found.record, why = wrong;
        } catch (const std::system_error& error) {
            if (broken.empty()) {
                broken = path.string() + ": cannot be read (" + error.code().message() + "); build the engine again";
            }
        } catch (const Error& error) {
            if (broken.empty()) broken = error.what();
        }
    }
    if (!why.empty()) refuse(rejected, why);
    if (!broken.empty()) throw Error(VTN_ERROR_ENGINE, broken);
    throw Error(VTN_ERROR_ENGINE, "bundle " + bundle.path + ": no engine of the " + name(part) +
                                      " part; build one: vtn-export trt " + bundle.path + " --part " + name(part));
}

PluginFile find_plugin(const Bundle& bundle, const std::string& given, const std::string& compute_capability) {
    const char* variable = std::getenv("VTN_PLUGIN_LIB");
    const std::string beside = bundle.path + "/libvtn_plugins.so";
    std::string path = given;
    if (path.empty() && fs::is_regular_file(beside)) path = beside;
    if (path.empty() && variable != nullptr) path = variable;
    if (path.empty()) return {};
    std::string text, bytes;
    try {
        bytes = read_file(path);
    } catch (const std::system_error& error) {
        throw Error(VTN_ERROR_PLUGIN, path + ": " + error.code().message() + "; expected the plugin library");
    }
    const std::string record_path = path + ".json";
    try {
        text = read_file(record_path);
    } catch (const std::system_error&) {
        throw Error(VTN_ERROR_PLUGIN, path + ": no " + fs::path(record_path).filename().string() +
                                          " beside it; build it with `vtn-export plugins build`");
    }
    const Json data = parse(text, record_path, VTN_ERROR_PLUGIN, "; build the library again");
    try {
        if (at(data, "schema") != 1) {
            throw Error(VTN_ERROR_PLUGIN, record_path + ": got schema " + data["schema"].dump() +
                                              ", expected 1; build the library again");
        }
        const std::string got = sha256_hex(bytes), expected = string(at(data, "sha256"), "sha256");
        if (got != expected) {
            throw Error(VTN_ERROR_PLUGIN, path + ": got SHA-256 " + first12(got) + ", expected " + first12(expected) +
                                              " of " + fs::path(record_path).filename().string() +
                                              "; the file was changed, build it again");
        }
        std::string all;
        for (const Json& one : array(at(data, "compute_capabilities"), "compute_capabilities")) {
            if (one == compute_capability) return {path, got};
            all += (all.empty() ? "" : ", ") + string(one, "compute_capabilities");
        }
        throw Error(VTN_ERROR_PLUGIN, path + ": got kernels for " + all + ", expected " + compute_capability +
                                          "; run vtn-export plugins build --compute-capability " + compute_capability);
    } catch (const Malformed& error) {
        throw Error(VTN_ERROR_PLUGIN, record_path + ": " + error.what() + "; build the library again");
    }
}

}  // namespace vtn::detail
