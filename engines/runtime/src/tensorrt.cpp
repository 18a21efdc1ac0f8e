// TensorRT engines. One engine for all clones; a context, stream, buffers and CUDA graphs for each.
#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "cuda.hpp"
#include "engine_record.hpp"
#include "error.hpp"
#include "executor.hpp"
#include "tensorrt_library.hpp"

namespace vtn::detail {
namespace {

#if defined(TRT_MAJOR_ENTERPRISE)
constexpr int kMajor = TRT_MAJOR_ENTERPRISE;
#else
constexpr int kMajor = NV_TENSORRT_MAJOR;
#endif
constexpr int kWarmUpRuns = 2;  // before the graph of a shape is captured: the first ones allocate and choose kernels

class Logger final : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity > Severity::kERROR || message == nullptr) return;
        try {
            const std::lock_guard<std::mutex> lock(mutex_);
            last_.assign(message, strnlen(message, 300));
        } catch (...) {  // no memory for the message
        }
    }
    std::string last() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return last_.empty() ? "no reason given" : last_;
    }

private:
    std::mutex mutex_;
    std::string last_;
};

// Destroyed from the last to the first: the engine before its runtime, that before the logger.
struct Engine {
    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
    EngineRecord record;
    Device device;
};

class TensorRt final : public Executor {
public:
    TensorRt(std::shared_ptr<Engine> engine, const Manifest& manifest, Part part)
        : engine_(std::move(engine)), part_(part), manifest_(manifest) {}

    // Context and stream, which clones have and the one that they are cloned from has not.
    void prepare() {
        const DeviceScope scope(engine_->device.id);
        context_.reset(engine_->engine->createExecutionContext());
        if (context_ == nullptr) {
            throw Error(VTN_ERROR_BACKEND,
                        "trt: no execution context could be made; most likely the GPU's memory is full");
        }
        check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    }

    ~TensorRt() override {
        forget_graph();
        context_.reset();  // before its engine
        if (stream_ != nullptr) cudaStreamDestroy(stream_);
    }

    void run(const Inputs& inputs, float* output, std::size_t output_size) override {
        if (context_ == nullptr) prepare();
        const DeviceScope scope(engine_->device.id);
        choose_profile(inputs.count);
        if (inputs.count != count_) set_shapes(inputs.count, output_size * sizeof(float));
        const std::int32_t length = static_cast<std::int32_t>(inputs.count);
        for (auto& [name, buffer] : buffers_) {
            const void* from = name == "frames"                                ? inputs.frames
                               : name == "features" && part_ == Part::temporal ? inputs.features
                               : name == "frame_index" ? static_cast<const void*>(inputs.frame_index)
                               : name == "lengths"     ? &length
                                                       : nullptr;
            if (from == nullptr) continue;
            if (name == "frames" && inputs.on_device) {
                // 150 kB a frame on the device itself; an engine bound to the caller's address could not be a graph
                check_cuda(cudaMemcpyAsync(buffer.device, from, sizes_.at(name), cudaMemcpyDefault, stream_),
                           "cudaMemcpyAsync");
            } else {
                std::memcpy(buffer.host, from, sizes_.at(name));
            }
        }
        uploads_frames_ = !inputs.on_device;
        if (cudaGraphExec_t graph = ready_graph()) {
            check_cuda(cudaGraphLaunch(graph, stream_), "cudaGraphLaunch");
        } else {
            enqueue();
        }
        check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
        ++runs_;
        std::memcpy(output, buffers_.at(result_name()).host, output_size * sizeof(float));
    }

    std::unique_ptr<Executor> clone() const override {
        auto copy = std::make_unique<TensorRt>(engine_, manifest_, part_);
        copy->prepare();
        return copy;
    }

private:
    const char* result_name() const { return part_ == Part::backbone ? "features" : "logits"; }
    const char* axis() const { return part_ == Part::backbone ? "chunk" : "frames"; }

    void choose_profile(std::int64_t count) {
        const auto& profiles = engine_->record.profiles;
        const auto fits = [&](std::size_t i) {
            const auto range = profiles[i].find(axis());
            const auto batch = profiles[i].find("batch");
            return range != profiles[i].end() && range->second.min <= count && count <= range->second.max &&
                   (batch == profiles[i].end() || batch->second.min <= 1);
        };
        if (profile_ >= 0 && fits(std::size_t(profile_))) return;
        int best = -1;
        std::string ranges;
        for (std::size_t i = 0; i < profiles.size(); ++i) {
            const auto range = profiles[i].find(axis());
            if (range == profiles[i].end()) continue;
            ranges += (ranges.empty() ? "" : " or ") + std::to_string(range->second.min) + ".." +
                      std::to_string(range->second.max);
            const auto distance = [&](int p) { return std::abs(profiles[std::size_t(p)].at(axis()).best - count); };
            if (fits(i) && (best < 0 || distance(int(i)) < distance(best))) best = int(i);
        }
        if (best < 0) {
            throw Error(VTN_ERROR_SHAPE, std::string(axis()) + ": got " + std::to_string(count) +
                                             ", the engine takes " + ranges + "; rebuild with --" + axis() +
                                             " MIN:OPT:MAX");
        }
        if (!context_->setOptimizationProfileAsync(best, stream_)) {
            throw Error(VTN_ERROR_BACKEND, "trt: profile " + std::to_string(best) + " could not be set");
        }
        check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
        profile_ = best, count_ = -1;
        forget_graph();
    }

    void set_shapes(std::int64_t count, std::size_t output_bytes) {
        count_ = -1;  // stands again when all of it is set
        forget_graph();
        for (const TensorSpec& spec : manifest_.graphs.at(part_).inputs) {
            nvinfer1::Dims dims{};
            dims.nbDims = static_cast<std::int32_t>(spec.shape.size());
            std::size_t bytes = spec.dtype == "uint8" ? 1 : 4;
            for (std::size_t i = 0; i < spec.shape.size(); ++i) {
                dims.d[i] = spec.shape[i] >= 0 ? spec.shape[i] : spec.axes[i] == "batch" ? 1 : count;
                bytes *= std::size_t(dims.d[i]);
            }
            if (!context_->setInputShape(spec.name.c_str(), dims)) {
                throw Error(VTN_ERROR_BACKEND,
                            "trt: " + spec.name + ": the context refused the shape (" + engine_->logger.last() + ")");
            }
            bind(spec.name, bytes);
        }
        const nvinfer1::Dims shape = context_->getTensorShape(result_name());
        std::int64_t total = sizeof(float);
        for (int i = 0; i < shape.nbDims; ++i) total *= shape.d[i];
        if (shape.nbDims != 2 || total != std::int64_t(output_bytes)) {
            throw Error(VTN_ERROR_BACKEND, std::string("trt: ") + result_name() + ": an output of another shape");
        }
        bind(result_name(), output_bytes);
        count_ = count;
    }

    void bind(const std::string& name, std::size_t bytes) {
        Buffer& buffer = buffers_[name];
        buffer.reserve(bytes, engine_->device.integrated);
        sizes_[name] = bytes;
        if (!context_->setTensorAddress(name.c_str(), buffer.device)) {
            throw Error(VTN_ERROR_BACKEND, "trt: " + name + ": the context refused its address");
        }
    }

    void enqueue() {
        for (const TensorSpec& spec : manifest_.graphs.at(part_).inputs) {
            const Buffer& buffer = buffers_.at(spec.name);
            if (buffer.mapped || (spec.name == "frames" && !uploads_frames_)) continue;
            check_cuda(
                cudaMemcpyAsync(buffer.device, buffer.host, sizes_.at(spec.name), cudaMemcpyHostToDevice, stream_),
                "cudaMemcpyAsync");
        }
        if (!context_->enqueueV3(stream_)) {
            throw Error(VTN_ERROR_BACKEND, "trt: the engine could not be enqueued (" + engine_->logger.last() + ")");
        }
        const Buffer& result = buffers_.at(result_name());
        if (!result.mapped) {
            check_cuda(
                cudaMemcpyAsync(result.host, result.device, sizes_.at(result_name()), cudaMemcpyDeviceToHost, stream_),
                "cudaMemcpyAsync");
        }
    }

    // The graph of the present shape, captured once that is warm; null before, or where it cannot be captured. A graph
    // is of one shape and of one way that frames come in: another one makes the context another, and the graph void.
    cudaGraphExec_t ready_graph() {
        if (tried_ && graph_uploads_ != uploads_frames_) forget_graph();
        if (tried_ || runs_ < kWarmUpRuns) return graph_;
        tried_ = true, graph_uploads_ = uploads_frames_;
        cudaGraph_t graph = nullptr;
        if (cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal) == cudaSuccess) {
            bool whole = true;
            try {
                enqueue();
            } catch (const Error&) {
                whole = false;
            }
            if (cudaStreamEndCapture(stream_, &graph) != cudaSuccess || !whole ||
                cudaGraphInstantiate(&graph_, graph, 0) != cudaSuccess) {
                graph_ = nullptr;
            }
        }
        if (graph != nullptr) cudaGraphDestroy(graph);
        cudaGetLastError();  // a failed capture is no failed run
        return graph_;
    }

    void forget_graph() {
        if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
        graph_ = nullptr, tried_ = false, runs_ = 0;
    }

    std::shared_ptr<Engine> engine_;
    Part part_;
    Manifest manifest_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    cudaStream_t stream_ = nullptr;
    std::map<std::string, Buffer> buffers_;
    std::map<std::string, std::size_t> sizes_;
    cudaGraphExec_t graph_ = nullptr;
    bool tried_ = false, graph_uploads_ = true, uploads_frames_ = true;
    int runs_ = 0, profile_ = -1;
    std::int64_t count_ = -1;
};

}  // namespace

TensorRtLibrary TensorRtLibrary::open(const std::string& path) {
    const std::string wanted = "libnvinfer.so." + std::to_string(kMajor), name = path.empty() ? wanted : path;
    // Never closed again once it is the right one: TensorRT's threads and registry outlive the last engine.
    const auto close = [](void* handle) { dlclose(handle); };
    std::unique_ptr<void, decltype(close)> handle(dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL), close);
    if (handle == nullptr) {
        throw Error(VTN_ERROR_BACKEND, "tensorrt: " + name + " cannot be loaded (" + dlerror() +
                                           "); install TensorRT " + std::to_string(kMajor) +
                                           ", or name the library in tensorrt_library");
    }
    const auto version = reinterpret_cast<std::int32_t (*)()>(dlsym(handle.get(), "getInferLibVersion"));
    TensorRtLibrary library;
    library.create_ =
        reinterpret_cast<void* (*)(void*, std::int32_t)>(dlsym(handle.get(), "createInferRuntime_INTERNAL"));
    if (version == nullptr || library.create_ == nullptr) {
        throw Error(VTN_ERROR_BACKEND, "tensorrt: " + name + " is no TensorRT library (it lacks " +
                                           (version == nullptr ? "getInferLibVersion" : "createInferRuntime_INTERNAL") +
                                           "); expected " + wanted);
    }
    library.number_ = version();
    const int unit = library.number_ < 10000 ? 1000 : 10000;  // 8.6.1 is 8601, 10.3.0 is 100300
    const int major = library.number_ / unit;
    library.version = std::to_string(major) + "." + std::to_string(library.number_ / 100 % (unit / 100)) + "." +
                      std::to_string(library.number_ % 100);
    if (major != kMajor) {
        throw Error(VTN_ERROR_BACKEND, "tensorrt: " + name + ": got TensorRT " + library.version + ", expected " +
                                           std::to_string(kMajor) + ".x, whose headers this libvtn was built with");
    }
    handle.release();
    return library;
}

nvinfer1::IRuntime* TensorRtLibrary::runtime(nvinfer1::ILogger& logger) const {
    // The number that the headers would pass is what the caller was built for. Only what 10.3 has is called, so an
    // older library of the same major is told its own.
    return static_cast<nvinfer1::IRuntime*>(create_(&logger, std::min(number_, std::int32_t{NV_TENSORRT_VERSION})));
}

bool has_tensorrt() {
    return true;
}

std::unique_ptr<Executor> make_tensorrt(const Bundle& bundle, Part part, const Options& options) {
    bundle.graph(part);
    auto engine = std::make_shared<Engine>();
    const TensorRtLibrary library = TensorRtLibrary::open(options.tensorrt_library);
    engine->device = Device::current();
    const Machine machine{engine->device.name, engine->device.compute_capability, library.version};
    const PluginFile plugin = find_plugin(bundle, options.plugin_library, machine.compute_capability);
    Found found = find_engine(bundle, part, machine, plugin.path, plugin.sha256);
    engine->record = std::move(found.record);
    engine->runtime.reset(library.runtime(engine->logger));
    if (engine->runtime == nullptr) {
        throw Error(VTN_ERROR_BACKEND, "trt: no runtime could be made (" + engine->logger.last() + ")");
    }
    // The runtime's own registry: two bundles of a process may have two plugin libraries, each its checked one.
    if (!engine->record.plugin_sha256.empty() &&
        engine->runtime->getPluginRegistry().loadLibrary(plugin.path.c_str()) == nullptr) {
        throw Error(VTN_ERROR_PLUGIN, plugin.path + ": TensorRT does not load it (" + engine->logger.last() + ")");
    }
    engine->engine.reset(engine->runtime->deserializeCudaEngine(found.bytes.data(), found.bytes.size()));
    if (engine->engine == nullptr) {
        throw Error(VTN_ERROR_ENGINE, "engine " + engine->record.name + ": not taken by tensorrt: " +
                                          engine->logger.last() + "; rebuild it: " + engine->record.command);
    }
    return std::make_unique<TensorRt>(std::move(engine), bundle.manifest, part);
}

}  // namespace vtn::detail
