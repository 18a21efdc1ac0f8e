// The TensorRT executor without TensorRT or a GPU: the loader's sentences, engine records, the plugin's checks.
#include <NvInferVersion.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include "engine_record.hpp"
#include "support.hpp"

#if defined(__aarch64__)
#define VTN_MACHINE "aarch64"
#else
#define VTN_MACHINE "x86_64"
#endif

namespace vtn::detail {
namespace {

std::string record_text(const std::string& sha, const std::string& source) {
    return R"({"schema_version": 1, "name": "a", "part": "backbone", "engine_sha256": ")" + sha +
           R"(", "flavor": "tensorrt", "version": "10.3.0.30", "source_file": "backbone.onnx", "source_sha256": ")" +
           source + R"(", "command": "vtn-export trt b", "compute_capabilities": [],
 "gpu": {"name": "Orin", "compute_capability": "8.7"}, "plugin": {"file": "libvtn_plugins.so", "sha256": "aa"},
 "profiles": [{"chunk": [1, 8, 16]}]})";
}

TEST(TensorRt, MissingAndWrongLibrariesAreSentences) {
    const Folder folder;
    write_bundle(folder);
    const Bundle bundle = Bundle::open(folder.path);
    Options options;
    const auto told = [&] { return failure([&] { make_tensorrt(bundle, Part::backbone, options); }); };
    options.tensorrt_library = folder.path + "/libnvinfer.so.10";
    auto [code, text] = told();
    EXPECT_EQ(code, VTN_ERROR_BACKEND);
    EXPECT_NE(text.find("cannot be loaded"), std::string::npos) << text;
    folder.write("libnvinfer.so.10", "no library");
    EXPECT_NE(told().second.find("cannot be loaded"), std::string::npos);
    options.tensorrt_library = "libm.so.6";  // a library, but another
    std::tie(code, text) = told();
    EXPECT_EQ(code, VTN_ERROR_BACKEND);
    EXPECT_NE(text.find("libm.so.6 is no TensorRT library (it lacks getInferLibVersion)"), std::string::npos) << text;
}

// Libraries that say they are TensorRT (wrong_tensorrt.cpp): what is told of their versions is tested, not TensorRT.
TEST(TensorRt, AnotherMajorIsNamedAndTheRightOneNeedsAGpu) {
    const Folder folder;
    write_bundle(folder);
    const Bundle bundle = Bundle::open(folder.path);
    Options options;
    const auto told = [&](const char* library) {
        options.tensorrt_library = library;
        return failure([&] { make_tensorrt(bundle, Part::backbone, options); });
    };
    const std::string major = std::to_string(NV_TENSORRT_MAJOR);
    EXPECT_EQ(told(VTN_TENSORRT_8),
              (std::pair<int, std::string>{VTN_ERROR_BACKEND, std::string("tensorrt: ") + VTN_TENSORRT_8 +
                                                                  ": got TensorRT 8.6.1, expected " + major +
                                                                  ".x, whose headers this libvtn was built with"}));
    EXPECT_NE(told(VTN_TENSORRT_NEXT).second.find("got TensorRT " + std::to_string(NV_TENSORRT_MAJOR + 1) + ".2.3"),
              std::string::npos);
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) GTEST_SKIP() << "a GPU is here";
    const auto [code, text] = told(VTN_TENSORRT_SAME);
    EXPECT_EQ(code, VTN_ERROR_GPU);
    EXPECT_NE(text.find("no NVIDIA GPU answers (cudaGetDeviceCount: cudaError"), std::string::npos) << text;
    EXPECT_NE(text.find("run this on the machine with the GPU"), std::string::npos) << text;
    EXPECT_EQ(failure([] { make_gpu_preprocessor({}, InputType::uint8); }).first, VTN_ERROR_GPU);
}

TEST(TensorRt, EveryMismatchOfAnEngineIsTold) {
    const Folder folder;
    write_bundle(folder);
    const Bundle bundle = Bundle::open(folder.path);
    const Machine orin{"Orin", "8.7", "10.3.0"};
    const auto told = [&](const Machine& machine, const std::string& plugin, const std::string& hash) {
        const auto [code, text] = failure([&] { find_engine(bundle, Part::backbone, machine, plugin, hash); });
        EXPECT_TRUE(code == 0 || code == VTN_ERROR_ENGINE);
        return text;
    };
    EXPECT_NE(told(orin, "", "").find("no engine of the backbone part; build one: vtn-export trt"), std::string::npos);
    folder.write("engines/a.engine", "engine");
    folder.write("engines/a.json", record_text(sha256_hex("engine"), bundle.manifest.files.at("backbone.onnx")));
    EXPECT_EQ(told(orin, "/p/libvtn_plugins.so", "aa"), "");
    EXPECT_EQ(find_engine(bundle, Part::backbone, orin, "/p", "aa").bytes, "engine");
    EXPECT_NE(told(orin, "", "").find("plugin: none found, expected libvtn_plugins.so"), std::string::npos);
    EXPECT_NE(told(orin, "/p/x.so", "bb").find("plugin x.so: got bb…, expected aa…"), std::string::npos);
    EXPECT_NE(told({"Thor", "11.0", "10.3.0"}, "/p", "aa").find("GPU: got Thor (SM 11.0), expected Orin (SM 8.7)"),
              std::string::npos);
    EXPECT_NE(told({"Orin", "8.7", "10.13.3"}, "/p", "aa").find("tensorrt version: got 10.13.3, expected 10.3.0.30"),
              std::string::npos);
    folder.write("engines/a.engine", "engin");
    EXPECT_NE(told(orin, "/p", "aa").find("(changed or damaged); rebuild it: vtn-export trt b"), std::string::npos);
    folder.write("engines/a.json", record_text(sha256_hex("engin"), "00"));
    EXPECT_NE(told(orin, "/p", "aa").find("the bundle's backbone.onnx: got"), std::string::npos);
    folder.write("engines/a.json", "{\"schema_version\": 2}");
    EXPECT_NE(told(orin, "/p", "aa").find("got schema version 2, expected 1"), std::string::npos);
    folder.write("engines/a.json", "{");
    EXPECT_NE(told(orin, "/p", "aa").find("cannot be read"), std::string::npos);
}

TEST(TensorRt, PluginsAreCheckedBeforeTheyAreLoaded) {
    const Folder folder;
    write_bundle(folder);
    const Bundle bundle = Bundle::open(folder.path);
    const auto told = [&](const std::string& given) {
        const auto [code, text] = failure([&] { find_plugin(bundle, given, "8.7"); });
        EXPECT_TRUE(code == 0 || code == VTN_ERROR_PLUGIN);
        return text;
    };
    EXPECT_EQ(find_plugin(bundle, "", "8.7").path, "");
    EXPECT_EQ(told("/none.so"), "/none.so: no such file; expected libvtn_plugins.so");
    folder.write("libvtn_plugins.so", "library");
    EXPECT_NE(told("").find("no libvtn_plugins.so.json beside it"), std::string::npos);
    const auto record = [&](const std::string& sha, const std::string& sm, int contract = 1,
                            const std::string& machine = VTN_MACHINE) {
        folder.write("libvtn_plugins.so.json", R"({"schema": 1, "version": "1", "creators": [], "cuda": "13.0",
 "tensorrt_headers": "10.14.1", "contract_version": )" +
                                                   std::to_string(contract) + R"(, "machine": ")" + machine +
                                                   R"(", "sha256": ")" + sha + R"(", "compute_capabilities": [")" + sm +
                                                   "\"]}");
    };
    record("00", "8.7");
    EXPECT_NE(told("").find("the file was changed, build it again"), std::string::npos);
    const std::string good = sha256_hex("library");
    record(good, "11.0");
    EXPECT_NE(told("").find("got kernels for 11.0, expected 8.7"), std::string::npos);
    record(good, "8.7", 2);
    EXPECT_NE(told("").find("got version 2 of the op's contract, expected 1"), std::string::npos);
    record(good, "8.7", 1, "riscv64");
    EXPECT_NE(told("").find("got a library for riscv64, expected"), std::string::npos);
    folder.write("libvtn_plugins.so.json", R"({"schema": 1})");
    EXPECT_NE(told("").find("is missing or malformed; build the library again"), std::string::npos);
    record(good, "8.7");
    EXPECT_EQ(told(""), "");
}

}  // namespace
}  // namespace vtn::detail
