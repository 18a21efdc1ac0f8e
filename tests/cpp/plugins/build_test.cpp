// Drives the plugin as TensorRT's builder does: load, create, configure.
#include <limits>

#include "host.hpp"

namespace host {
namespace {

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

}  // namespace
}  // namespace host

int main(int argc, char** argv) {
    ::testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
