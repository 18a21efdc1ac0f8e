// Drives the plugin through its life as TensorRT does: load, create, configure, clone, run, serialise.
#include <NvInferRuntime.h>
#include <c_api.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorFormat;

class Logger final : public nvinfer1::ILogger, public nvinfer1::ILoggerFinder {
public:
    void log(Severity severity, const char* message) noexcept override {
        const std::lock_guard<std::mutex> lock(mutex_);
        lines_.emplace_back((severity <= Severity::kERROR ? "E " : "W ") + std::string(message));
    }
    nvinfer1::ILogger* findLogger() override { return this; }
    std::string take() {
        const std::lock_guard<std::mutex> lock(mutex_);
        std::string all;
        for (const std::string& line : lines_) {
            all += line + "\n";
        }
        lines_.clear();
        return all;
    }

private:
    std::mutex mutex_;
    std::vector<std::string> lines_;
};

Logger& logger() {
    static Logger instance;
    return instance;
}

void* library() {
    static void* handle = [] {
        const char* path = std::getenv("VTN_PLUGIN_LIB");
        return dlopen(path != nullptr ? path : VTN_PLUGINS_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    }();
    return handle;
}

template <typename Function>
Function symbol(const char* name) {
    return reinterpret_cast<Function>(dlsym(library(), name));
}

nvinfer1::IPluginCreatorV3One* creator() {
    symbol<void (*)(nvinfer1::ILoggerFinder*)>("setLoggerFinder")(&logger());
    int32_t count = 0;
    auto* const* all = symbol<nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&)>("getCreators")(count);
    return count == 1 ? static_cast<nvinfer1::IPluginCreatorV3One*>(all[0]) : nullptr;
}

// The same logger as TensorRT 11 and RTX 1.7 have it: behind IVersionedInterface, and so is what finds it.
class VersionedLogger final : public nvinfer1::IVersionedInterface {
public:
    nvinfer1::InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILogger", 1, 0}; }
    virtual void log(int32_t severity, const char* message) noexcept {
        logger().log(static_cast<nvinfer1::ILogger::Severity>(severity), message);
    }
};

class VersionedFinder final : public nvinfer1::IVersionedInterface {
public:
    nvinfer1::InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILoggerFinder", 1, 0}; }
    virtual VersionedLogger* findLogger() { return &logger_; }

private:
    VersionedLogger logger_;
};

struct Fields {
    // Shared, because a copy's fields point into the same values.
    std::shared_ptr<std::deque<int32_t>> integers = std::make_shared<std::deque<int32_t>>();
    std::shared_ptr<std::deque<float>> reals = std::make_shared<std::deque<float>>();
    std::vector<PluginField> fields;

    Fields& add(const char* name, int32_t value) {
        integers->push_back(value);
        fields.emplace_back(name, &integers->back(), PluginFieldType::kINT32, 1);
        return *this;
    }
    Fields& add(const char* name, float value) {
        reals->push_back(value);
        fields.emplace_back(name, &reals->back(), PluginFieldType::kFLOAT32, 1);
        return *this;
    }
    Fields& without(const std::string& name) {
        for (size_t i = 0; i < fields.size(); ++i) {
            if (fields[i].name == name) {
                fields.erase(fields.begin() + static_cast<ptrdiff_t>(i));
                break;
            }
        }
        return *this;
    }
    nvinfer1::PluginFieldCollection collection() const { return {static_cast<int32_t>(fields.size()), fields.data()}; }
};

Fields good() {
    Fields fields;
    fields.add("num_heads", 12).add("one_sided_window", 9).add("dilation", 1).add("num_global_tokens", 1);
    fields.add("causal", 0).add("scale", 0.125f);
    return fields;
}

using Plugin = std::unique_ptr<nvinfer1::IPluginV3>;

Plugin create(const Fields& fields, nvinfer1::TensorRTPhase phase = nvinfer1::TensorRTPhase::kBUILD) {
    const nvinfer1::PluginFieldCollection collection = fields.collection();
    return Plugin(creator()->createPlugin("node", &collection, phase));
}

nvinfer1::IPluginV3OneBuild* build_of(nvinfer1::IPluginV3& plugin) {
    return static_cast<nvinfer1::IPluginV3OneBuild*>(
        plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
}

nvinfer1::IPluginV3OneRuntime* runtime_of(nvinfer1::IPluginV3& plugin) {
    return static_cast<nvinfer1::IPluginV3OneRuntime*>(
        plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
}

Dims dims(std::initializer_list<int64_t> values) {
    Dims result{};
    for (const int64_t value : values) {
        result.d[result.nbDims++] = value;
    }
    return result;
}

nvinfer1::PluginTensorDesc tensor(Dims shape, DataType type, TensorFormat format = TensorFormat::kLINEAR) {
    nvinfer1::PluginTensorDesc result{};
    result.dims = shape;
    result.type = type;
    result.format = format;
    result.scale = 1.0f;
    return result;
}

nvinfer1::DynamicPluginTensorDesc dynamic(Dims shape, Dims largest, DataType type,
                                          TensorFormat format = TensorFormat::kLINEAR) {
    return {tensor(shape, type, format), largest, largest, largest};
}

struct Io {
    std::array<nvinfer1::PluginTensorDesc, 2> in;
    std::array<nvinfer1::PluginTensorDesc, 1> out;
};

Io io(int64_t batch, int64_t sequence, DataType type, int64_t width = 2304) {
    return {{tensor(dims({batch, sequence, width}), type), tensor(dims({batch}), DataType::kINT32)},
            {tensor(dims({batch, sequence, width / 3}), type)}};
}

// Dimension expressions with a value, behind TensorRT's own interfaces.
class Expression final : public nvinfer1::IDimensionExpr, private nvinfer1::apiv::VDimensionExpr {
public:
    explicit Expression(int64_t value) : value_(value) { mImpl = this; }
    bool isConstant() const override { return true; }
    int64_t getConstantValue() const override { return value_; }
    bool isSizeTensor() const override { return false; }

private:
    int64_t value_;
};

class Expressions final : public nvinfer1::IExprBuilder, private nvinfer1::apiv::VExprBuilder {
public:
    Expressions() { mImpl = this; }
    const nvinfer1::IDimensionExpr* constant(int64_t value) override {
        all_.push_back(std::make_unique<Expression>(value));
        return all_.back().get();
    }
    const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation operation,
                                              const nvinfer1::IDimensionExpr& first,
                                              const nvinfer1::IDimensionExpr& second) override {
        EXPECT_EQ(operation, nvinfer1::DimensionOperation::kFLOOR_DIV);
        return constant(first.getConstantValue() / second.getConstantValue());
    }
    const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                      const nvinfer1::IDimensionExpr&) override {
        return nullptr;
    }

private:
    std::vector<std::unique_ptr<Expression>> all_;
};

TEST(Library, LoadsAndListsOneCreator) {
    ASSERT_NE(library(), nullptr) << dlerror();
    ASSERT_NE(creator(), nullptr);
    EXPECT_STREQ(creator()->getPluginName(), "SlidingWindowAttention");
    EXPECT_STREQ(creator()->getPluginVersion(), "1");
    EXPECT_STREQ(creator()->getPluginNamespace(), "vtn");
    EXPECT_EQ(creator()->getFieldNames()->nbFields, 6);
}

TEST(Library, LogsThroughTheLoggersOfTensorRT10And11) {
    const auto set = symbol<void (*)(nvinfer1::ILoggerFinder*)>("setLoggerFinder");
    auto* maker = creator();
    const nvinfer1::PluginFieldCollection none{};
    const auto refusal = [&] {
        logger().take();
        EXPECT_EQ(maker->createPlugin("node", &none, nvinfer1::TensorRTPhase::kBUILD), nullptr);
        return logger().take();
    };
    const std::string said = refusal();
    EXPECT_NE(said.find("field num_heads: missing"), std::string::npos);
    VersionedFinder versioned;
    set(reinterpret_cast<nvinfer1::ILoggerFinder*>(&versioned));
    EXPECT_EQ(refusal(), said);
    set(nullptr);
    EXPECT_EQ(refusal(), "");
    set(&logger());
}

TEST(Create, GoodFields) {
    const Plugin plugin = create(good());
    ASSERT_NE(plugin, nullptr);
    auto* core =
        static_cast<nvinfer1::IPluginV3OneCore*>(plugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kCORE));
    EXPECT_STREQ(core->getPluginName(), "SlidingWindowAttention");
    EXPECT_STREQ(core->getPluginVersion(), "1");
    EXPECT_STREQ(core->getPluginNamespace(), "vtn");
    EXPECT_EQ(build_of(*plugin)->getNbOutputs(), 1);
    EXPECT_EQ(plugin->getCapabilityInterface(static_cast<nvinfer1::PluginCapabilityType>(7)), nullptr);
}

TEST(Create, MissingFieldsAreNamed) {
    for (const char* name : {"num_heads", "one_sided_window", "dilation", "num_global_tokens", "causal", "scale"}) {
        logger().take();
        EXPECT_EQ(create(good().without(name)), nullptr);
        EXPECT_NE(logger().take().find(std::string("field ") + name + ": missing"), std::string::npos);
    }
}

TEST(Create, WrongTypesAndValuesAreRefused) {
    const std::vector<std::pair<Fields, std::string>> cases{
        {good().without("dilation").add("dilation", 1.0f), "field dilation"},
        {good().without("scale").add("scale", 1), "field scale"},
        {good().without("num_heads").add("num_heads", 0), "num_heads: got 0"},
        {good().without("one_sided_window").add("one_sided_window", 0), "one_sided_window: got 0"},
        {good().without("dilation").add("dilation", 0), "dilation: got 0"},
        {good().without("num_global_tokens").add("num_global_tokens", -1), "num_global_tokens: got -1"},
        {good().without("causal").add("causal", 2), "causal: got 2"},
        {good().without("scale").add("scale", std::numeric_limits<float>::infinity()), "scale: got inf"},
    };
    for (const auto& [fields, message] : cases) {
        logger().take();
        EXPECT_EQ(create(fields), nullptr) << message;
        const std::string said = logger().take();
        EXPECT_NE(said.find(message), std::string::npos) << said;
    }
    EXPECT_EQ(creator()->createPlugin("node", nullptr, nvinfer1::TensorRTPhase::kBUILD), nullptr);
}

TEST(Create, ExtraFieldsAreIgnoredAloud) {
    logger().take();
    EXPECT_NE(create(good().add("colour", 3)), nullptr);
    EXPECT_NE(logger().take().find("field colour is not one of"), std::string::npos);
}

TEST(Create, Int64AndFloat64FieldsToo) {
    Fields fields = good().without("num_heads").without("scale");
    const int64_t heads = 12;
    const double scale = 0.125;
    fields.fields.emplace_back("num_heads", &heads, PluginFieldType::kINT64, 1);
    fields.fields.emplace_back("scale", &scale, PluginFieldType::kFLOAT64, 1);
    EXPECT_NE(create(fields), nullptr);
}

TEST(Build, OutputTypesFollowQkv) {
    const Plugin plugin = create(good());
    for (const DataType type : {DataType::kHALF, DataType::kBF16, DataType::kFLOAT}) {
        const std::array<DataType, 2> in{type, DataType::kINT32};
        DataType out{DataType::kINT8};
        EXPECT_EQ(build_of(*plugin)->getOutputDataTypes(&out, 1, in.data(), 2), 0);
        EXPECT_EQ(out, type);
    }
    DataType out{};
    const std::array<DataType, 2> integers{DataType::kINT32, DataType::kINT32};
    EXPECT_NE(build_of(*plugin)->getOutputDataTypes(&out, 1, integers.data(), 2), 0);
    const std::array<DataType, 2> lengths{DataType::kHALF, DataType::kINT64};
    EXPECT_NE(build_of(*plugin)->getOutputDataTypes(&out, 1, lengths.data(), 2), 0);
    EXPECT_NE(build_of(*plugin)->getOutputDataTypes(&out, 1, lengths.data(), 1), 0);
}

TEST(Build, OutputShapeIsAThirdWide) {
    const Plugin plugin = create(good());
    Expressions builder;
    std::array<nvinfer1::DimsExprs, 2> in{};
    in[0].nbDims = 3;
    in[0].d[0] = builder.constant(2);
    in[0].d[1] = builder.constant(251);
    in[0].d[2] = builder.constant(2304);
    in[1].nbDims = 1;
    in[1].d[0] = in[0].d[0];
    nvinfer1::DimsExprs out{};
    ASSERT_EQ(build_of(*plugin)->getOutputShapes(in.data(), 2, nullptr, 0, &out, 1, builder), 0);
    ASSERT_EQ(out.nbDims, 3);
    EXPECT_EQ(out.d[0], in[0].d[0]);
    EXPECT_EQ(out.d[1], in[0].d[1]);
    EXPECT_EQ(out.d[2]->getConstantValue(), 768);
    in[0].nbDims = 2;
    EXPECT_NE(build_of(*plugin)->getOutputShapes(in.data(), 2, nullptr, 0, &out, 1, builder), 0);
}

TEST(Build, EveryFormatCombination) {
    const Plugin plugin = create(good());
    const std::array<DataType, 10> types{DataType::kFLOAT, DataType::kHALF,  DataType::kINT8, DataType::kINT32,
                                         DataType::kBOOL,  DataType::kUINT8, DataType::kFP8,  DataType::kBF16,
                                         DataType::kINT64, DataType::kINT4};
    int supported = 0;
    for (const DataType qkv : types) {
        for (const DataType lengths : types) {
            for (const DataType output : types) {
                for (const TensorFormat format : {TensorFormat::kLINEAR, TensorFormat::kCHW4, TensorFormat::kHWC8}) {
                    const std::array<nvinfer1::DynamicPluginTensorDesc, 3> all{
                        dynamic(dims({-1, -1, 2304}), dims({8, 8, 2304}), qkv, format),
                        dynamic(dims({-1}), dims({8}), lengths, format),
                        dynamic(dims({-1, -1, 768}), dims({8, 8, 768}), output, format)};
                    bool every = true;
                    for (int32_t position = 0; position < 3; ++position) {
                        every &= build_of(*plugin)->supportsFormatCombination(position, all.data(), 2, 1);
                    }
                    const bool expected = format == TensorFormat::kLINEAR && lengths == DataType::kINT32 &&
                                          qkv == output &&
                                          (qkv == DataType::kHALF || qkv == DataType::kBF16 || qkv == DataType::kFLOAT);
                    EXPECT_EQ(every, expected);
                    supported += every ? 1 : 0;
                }
            }
        }
    }
    EXPECT_EQ(supported, 3);
}

TEST(Build, ConfigureChecksShapesAndSizes) {
    const Plugin plugin = create(good());
    const auto configure = [&](Dims qkv, Dims largest, Dims lengths = dims({-1})) {
        const std::array<nvinfer1::DynamicPluginTensorDesc, 2> in{
            dynamic(qkv, largest, DataType::kHALF), dynamic(lengths, dims({largest.d[0]}), DataType::kINT32)};
        const std::array<nvinfer1::DynamicPluginTensorDesc, 1> out{
            dynamic(dims({-1, -1, 768}), dims({8, 1024, 768}), DataType::kHALF)};
        return build_of(*plugin)->configurePlugin(in.data(), 2, out.data(), 1);
    };
    EXPECT_EQ(configure(dims({-1, -1, 2304}), dims({8, 1024, 2304})), 0);
    logger().take();
    EXPECT_NE(configure(dims({-1, -1, 2300}), dims({8, 1024, 2300})), 0);  // not 3 * 12 * D
    EXPECT_NE(logger().take().find("qkv: got shape"), std::string::npos);
    EXPECT_NE(configure(dims({-1, -1, 12 * 3 * 48}), dims({8, 1024, 12 * 3 * 48})), 0);
    EXPECT_NE(logger().take().find("head dimension: got 48"), std::string::npos);
    EXPECT_NE(configure(dims({-1, 2304}), dims({8, 2304})), 0);
    EXPECT_NE(configure(dims({-1, -1, 2304}), dims({8, 1 << 18, 2304})), 0);  // 2^32.2 elements
    EXPECT_NE(logger().take().find("fewer than 2^31"), std::string::npos);
    EXPECT_EQ(configure(dims({-1, -1, 2304}), dims({1, 1 << 18, 2304})), 0);
    EXPECT_NE(configure(dims({-1, -1, 2304}), dims({8, 1024, 2304}), dims({4, 1})), 0);
    EXPECT_NE(logger().take().find("lengths: got shape"), std::string::npos);
    const Plugin sparse =
        create(good().without("dilation").add("dilation", 200000).without("num_heads").add("num_heads", 32));
    const std::array<nvinfer1::DynamicPluginTensorDesc, 2> wide{
        dynamic(dims({1, -1, 6144}), dims({1, 1 << 18, 6144}), DataType::kHALF),
        dynamic(dims({1}), dims({1}), DataType::kINT32)};
    EXPECT_NE(build_of(*sparse)->configurePlugin(wide.data(), 2, nullptr, 1), 0);
    EXPECT_NE(logger().take().find("dilation: got 200000 tokens"), std::string::npos);
    EXPECT_EQ(build_of(*plugin)->getWorkspaceSize(nullptr, 2, nullptr, 1), 0U);
    EXPECT_STREQ(build_of(*plugin)->getTimingCacheID(), "12_9_1_1_0");
}

TEST(Runtime, SerialisesExactly) {
    const Plugin plugin = create(good().without("scale").add("scale", 0.1f));
    for (const nvinfer1::TensorRTPhase phase : {nvinfer1::TensorRTPhase::kRUNTIME, nvinfer1::TensorRTPhase::kBUILD}) {
        const nvinfer1::PluginFieldCollection* first = runtime_of(*plugin)->getFieldsToSerialize();
        ASSERT_EQ(first->nbFields, 6);
        const Plugin again(creator()->createPlugin("again", first, phase));
        ASSERT_NE(again, nullptr);
        const nvinfer1::PluginFieldCollection* second = runtime_of(*again)->getFieldsToSerialize();
        ASSERT_EQ(second->nbFields, first->nbFields);
        for (int32_t i = 0; i < first->nbFields; ++i) {
            EXPECT_STREQ(first->fields[i].name, second->fields[i].name);
            EXPECT_EQ(first->fields[i].type, second->fields[i].type);
            EXPECT_EQ(std::memcmp(first->fields[i].data, second->fields[i].data, 4), 0);
        }
    }
}

TEST(Runtime, ClonesOutliveTheirOrigin) {
    Plugin plugin = create(good());
    Plugin copy(plugin->clone());
    Plugin attached(runtime_of(*plugin)->attachToContext(nullptr));
    plugin.reset();
    ASSERT_NE(copy, nullptr);
    ASSERT_NE(attached, nullptr);
    EXPECT_EQ(runtime_of(*copy)->getFieldsToSerialize()->nbFields, 6);
    EXPECT_STREQ(build_of(*attached)->getTimingCacheID(), "12_9_1_1_0");
}

TEST(Runtime, ShapeChangesAreChecked) {
    const Plugin plugin = create(good());
    Io shapes = io(2, 251, DataType::kHALF);
    int devices = 0;
    const bool driver = cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
    if (!driver) {
        EXPECT_EQ(runtime_of(*plugin)->onShapeChange(shapes.in.data(), 2, shapes.out.data(), 1), 0);
    }
    shapes = io(2, 251, DataType::kINT8);
    EXPECT_NE(runtime_of(*plugin)->onShapeChange(shapes.in.data(), 2, shapes.out.data(), 1), 0);
    shapes = io(2, 251, DataType::kHALF, 2305);
    EXPECT_NE(runtime_of(*plugin)->onShapeChange(shapes.in.data(), 2, shapes.out.data(), 1), 0);
}

TEST(Runtime, EnqueueWithoutADriverIsAnError) {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) {
        GTEST_SKIP() << "this machine has a GPU; gpu-check runs the kernels there";
    }
    const Plugin plugin = create(good());
    alignas(16) static std::array<char, 64> memory{};
    for (const DataType type : {DataType::kHALF, DataType::kBF16, DataType::kFLOAT}) {
        const Io shapes = io(1, 5, type);
        const std::array<const void*, 2> in{memory.data(), memory.data()};
        const std::array<void*, 1> out{memory.data()};
        logger().take();
        EXPECT_NE(
            runtime_of(*plugin)->enqueue(shapes.in.data(), shapes.out.data(), in.data(), out.data(), nullptr, nullptr),
            0);
        EXPECT_NE(logger().take().find("no CUDA device"), std::string::npos);
        const std::array<const void*, 2> missing{nullptr, memory.data()};
        EXPECT_NE(runtime_of(*plugin)->enqueue(shapes.in.data(), shapes.out.data(), missing.data(), out.data(), nullptr,
                                               nullptr),
                  0);
        const std::array<const void*, 2> crooked{memory.data() + 2, memory.data()};
        EXPECT_NE(runtime_of(*plugin)->enqueue(shapes.in.data(), shapes.out.data(), crooked.data(), out.data(), nullptr,
                                               nullptr),
                  0);
    }
}

TEST(Threads, EightAtOnce) {
    const Plugin plugin = create(good());
    std::vector<std::thread> threads;
    std::array<int, 8> wrong{};
    for (size_t t = 0; t < wrong.size(); ++t) {
        threads.emplace_back([&plugin, &wrong, t] {
            for (int i = 0; i < 200; ++i) {
                const Plugin mine = create(good());
                const Plugin copy(plugin->clone());
                const Plugin attached(runtime_of(*copy)->attachToContext(nullptr));
                const Io shapes = io(1 + i % 3, 1 + i, DataType::kFLOAT, 2304);
                if (mine == nullptr || attached == nullptr || create(good().without("causal")) != nullptr ||
                    runtime_of(*attached)->getFieldsToSerialize()->nbFields != 6) {
                    ++wrong[t];
                }
                if (creator()->getFieldNames()->nbFields != 6 ||
                    runtime_of(*attached)->onShapeChange(shapes.in.data(), 2, shapes.out.data(), 1) != 0) {
                    ++wrong[t];
                }
                // No memory: refused with and without a GPU
                const std::array<const void*, 2> in{nullptr, nullptr};
                const std::array<void*, 1> out{nullptr};
                wrong[t] += runtime_of(*attached)->enqueue(shapes.in.data(), shapes.out.data(), in.data(), out.data(),
                                                           nullptr, nullptr) == 0;
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    for (const int count : wrong) {
        EXPECT_EQ(count, 0);
    }
    logger().take();
}

TEST(CApi, RefusesWhatItCannotRead) {
    const auto run =
        symbol<int (*)(const vtn_sliding_window_attention_params*, CUstream_st*)>("vtn_sliding_window_attention");
    const auto plan = symbol<int (*)(const vtn_sliding_window_attention_params*, int32_t, int32_t,
                                     vtn_sliding_window_attention_launch*)>("vtn_sliding_window_attention_plan");
    ASSERT_NE(run, nullptr);
    ASSERT_NE(plan, nullptr);
    EXPECT_EQ(run(nullptr, nullptr), cudaErrorInvalidValue);
    vtn_sliding_window_attention_params params{};
    EXPECT_EQ(run(&params, nullptr), cudaErrorInvalidValue);
    params.struct_size = sizeof(params);
    params.num_heads = 12;
    params.head_dim = 64;
    params.one_sided_window = 9;
    params.dilation = 1;
    params.num_global_tokens = 1;
    params.scale = 0.125f;
    params.batch = 1;
    params.sequence = 252;
    vtn_sliding_window_attention_launch launch{};
    EXPECT_EQ(plan(&params, 80, 166912, &launch), cudaErrorInvalidValue);
    launch.struct_size = sizeof(launch);
    ASSERT_EQ(plan(&params, 80, 166912, &launch), cudaSuccess);
    EXPECT_STREQ(launch.kernel, "vtn_swa_resident_fp16_d64_t5_w8");
    EXPECT_EQ(launch.grid[1], 2U);
    params.data_type = VTN_BFLOAT16;
    launch.struct_size = sizeof(launch);
    EXPECT_EQ(plan(&params, 75, 65536, &launch), cudaErrorNotSupported);
    params.sequence = 0;
    ASSERT_EQ(plan(&params, 80, 166912, &launch), cudaSuccess);
    EXPECT_EQ(launch.kernel, nullptr);
}

}  // namespace

int main(int argc, char** argv) {
    ::testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
