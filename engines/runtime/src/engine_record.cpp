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

constexpr int kContract = 1;  // of the op, which plugin libraries state
#if defined(__aarch64__)
constexpr const char* kMachine = "aarch64";
#else
constexpr const char* kMachine = "x86_64";
#endif

// "10.3.0" of "10.3.0.30" or "10.3.0.post1": what the library tells of itself.
std::string leading(const std::string& version) {
    std::size_t end = 0;
    for (int dots = 0; end < version.size() && (dots += version[end] == '.') < 3; ++end) {
    }
    return version.substr(0, end);
}

// Why the engine is not this bundle's, or its file not the recorded one; the file's bytes are what was hashed.
std::vector<std::string> problems(const EngineRecord& record, const Bundle& bundle, std::string& bytes) {
    std::vector<std::string> found;
    const auto have = bundle.manifest.files.find(record.source_file);
    if (have == bundle.manifest.files.end() || have->second != record.source_sha256) {
        const std::string got = have == bundle.manifest.files.end() ? "no such graph" : first12(have->second);
        found.push_back("the bundle's " + record.source_file + ": got " + got + ", expected " +
                        first12(record.source_sha256));
    }
    const std::string engine = bundle.path + "/engines/" + record.name + ".engine";
    try {
        bytes = read_file(engine);
        const std::string got = sha256_hex(bytes);
        if (got != record.engine_sha256) {
            found.push_back(record.name + ".engine: got SHA-256 " + first12(got) + ", expected " +
                            first12(record.engine_sha256) + " (changed or damaged)");
        }
    } catch (const std::system_error& error) {
        found.push_back(engine + ": " + error.code().message());
    }
    return found;
}

// Why it does not run on this machine.
void machine_problems(const EngineRecord& record, const Machine& machine, const std::string& plugin_path,
                      const std::string& plugin_sha256, std::vector<std::string>& found) {
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
}

// A word of a command line, quoted where a shell would take it apart.
std::string shell_word(const std::string& text) {
    const char* plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./-_";
    if (!text.empty() && text.find_first_not_of(plain) == std::string::npos) return text;
    std::string quoted = "'";
    for (const char letter : text) quoted += letter == '\'' ? std::string("'\"'\"'") : std::string(1, letter);
    return quoted + "'";
}

[[noreturn]] void refuse(const EngineRecord& record, const std::vector<std::string>& found) {
    std::string told;
    for (const std::string& one : found) told += (told.empty() ? "" : "; ") + one;
    throw Error(VTN_ERROR_ENGINE, "engine " + record.name + ": " + told + "; rebuild it: " + record.command);
}

}  // namespace

EngineRecord read_engine_record(const std::string& text, const std::string& where, const std::string& stem) {
    const Json data = parse(text, where, VTN_ERROR_ENGINE, "; build the engine again");
    const Json version = data.is_object() && data.contains("schema_version") ? data["schema_version"] : Json();
    if (version != 1) {
        throw Error(VTN_ERROR_ENGINE,
                    where + ": got schema version " + (version.is_null() ? "None" : version.dump()) + ", expected 1; " +
                        (version.is_number_integer() && version > 1 ? "update vtn-export" : "build it again"));
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
            Found found{read_engine_record(read_json(path.string()), path.string(), path.stem().string()), ""};
            if (found.record.part != name(part)) continue;
            std::vector<std::string> wrong = problems(found.record, bundle, found.bytes);
            machine_problems(found.record, machine, plugin_path, plugin_sha256, wrong);
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
                                      " part; build one: vtn-export trt " + shell_word(bundle.path) + " --part " +
                                      name(part));
}

PluginFile find_plugin(const Bundle& bundle, const std::string& given, const std::string& compute_capability) {
    const char* variable = std::getenv("VTN_PLUGIN_LIB");
    const auto is_file = [](const std::string& at) {
        std::error_code none;  // a folder that may not be entered holds no file either
        return fs::is_regular_file(at, none);
    };
    const std::string beside = bundle.path + "/libvtn_plugins.so";
    std::string path = given, named = given;
    if (path.empty() && is_file(beside)) path = named = beside;
    if (path.empty() && variable != nullptr && *variable != '\0') {
        path = variable;
        named = std::string("VTN_PLUGIN_LIB=") + variable;
    }
    if (path.empty()) return {};
    if (!is_file(path)) {
        throw Error(VTN_ERROR_PLUGIN, named + ": no such file; expected libvtn_plugins.so");
    }
    const std::string again = "; build the library again", record_path = path + ".json";
    const std::string record_name = fs::path(record_path).filename().string();
    std::string text;
    try {
        text = read_json(record_path);
    } catch (const std::system_error& error) {
        if (error.code() != std::errc::no_such_file_or_directory) {
            throw Error(VTN_ERROR_PLUGIN, record_path + ": not readable (" + error.code().message() + ")" + again);
        }
        throw Error(VTN_ERROR_PLUGIN,
                    path + ": no " + record_name + " beside it; build it with `vtn-export plugins build`");
    }
    const Json data = parse(text, record_path, VTN_ERROR_PLUGIN, again, "not readable");
    const Json schema = data.is_object() && data.contains("schema") ? data["schema"] : Json();
    if (schema != 1) {
        throw Error(VTN_ERROR_PLUGIN, record_path + ": got schema " + (schema.is_null() ? "None" : schema.dump()) +
                                          ", expected 1" + again);
    }
    try {
        for (const char* field : {"version", "cuda", "tensorrt_headers"}) string(at(data, field), field);
        array(at(data, "creators"), "creators");
        const int contract = integer(at(data, "contract_version"), "contract_version", INT32_MIN, INT32_MAX);
        const std::string machine = string(at(data, "machine"), "machine");
        const std::string expected = string(at(data, "sha256"), "sha256");
        std::string all;
        bool fits = false;
        for (const Json& one : array(at(data, "compute_capabilities"), "compute_capabilities")) {
            const std::string capability = string(one, "compute_capabilities");
            all += (all.empty() ? "" : ", ") + capability;
            fits = fits || capability == compute_capability;
        }
        std::string got;
        try {
            got = sha256_hex(read_file(path));
        } catch (const std::system_error& error) {
            throw Error(VTN_ERROR_PLUGIN, path + ": cannot be read (" + error.code().message() + "); build it again");
        }
        if (got != expected) {
            throw Error(VTN_ERROR_PLUGIN, path + ": got SHA-256 " + first12(got) + ", expected " + first12(expected) +
                                              " of " + record_name + "; the file was changed, build it again");
        }
        if (contract != kContract) {
            throw Error(VTN_ERROR_PLUGIN, named + ": got version " + std::to_string(contract) +
                                              " of the op's contract, expected " + std::to_string(kContract) +
                                              "; run vtn-export plugins build");
        }
        if (machine != kMachine) {
            throw Error(VTN_ERROR_PLUGIN, named + ": got a library for " + machine + ", expected " + kMachine +
                                              "; run vtn-export plugins build on this machine");
        }
        if (!fits) {
            throw Error(VTN_ERROR_PLUGIN, named + ": got kernels for " + all + ", expected " + compute_capability +
                                              "; run vtn-export plugins build --compute-capability " +
                                              compute_capability);
        }
        return {path, got};
    } catch (const Malformed& error) {
        throw Error(VTN_ERROR_PLUGIN, record_path + ": " + error.what() + " is missing or malformed" + again);
    }
}

}  // namespace vtn::detail
