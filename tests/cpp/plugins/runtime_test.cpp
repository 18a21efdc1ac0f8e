// Drives the plugin as TensorRT's runtime does: clone, attach, run, serialise; and its C functions.
#include <c_api.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <thread>

#include "host.hpp"

namespace host {
namespace {

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
}  // namespace host
