// OpenVINO on the CPU. Its ONNX reader does not expand model-local functions, so the portable graph with the op's body
// inlined stands in BUNDLE/openvino/PART.onnx, with a record that names the graph it was made from.
#include <sys/stat.h>

#include <openvino/openvino.hpp>
#include <system_error>

#include "error.hpp"
#include "executor.hpp"
#include "json.hpp"
#include "sha256.hpp"

namespace vtn::detail {
namespace {

std::string reason(const std::exception& error) {
    // The last line that says something: places in OpenVINO's sources come first.
    std::string told, line;
    for (const char* c = error.what();; ++c) {
        if (*c != '\n' && *c != '\0') {
            line += *c;
            continue;
        }
        if (!line.empty() && line.rfind("Exception from", 0) != 0 && line.rfind("Check '", 0) != 0) told = line;
        line.clear();
        if (*c == '\0') break;
    }
    return told.substr(0, 300);
}

std::string inlined_graph(const Bundle& bundle, Part part) {
    const GraphEntry& graph = bundle.graph(part);
    const std::string stem = bundle.path + "/openvino/" + name(part);
    const std::string remedy = "; make it with `vtn-export sdk " + bundle.path + " --inline`";
    std::string text;
    try {
        text = read_json(stem + ".json");
    } catch (const std::system_error&) {
        throw Error(VTN_ERROR_BACKEND, "bundle " + bundle.path + ": no " + name(part) + " graph for OpenVINO" + remedy);
    }
    const Json record = parse(text, stem + ".json", VTN_ERROR_BACKEND, remedy);
    try {
        if (at(record, "schema_version") != 1) {
            throw Error(VTN_ERROR_BACKEND, stem + ".json: got schema version " + record["schema_version"].dump() +
                                               ", expected 1" + remedy);
        }
        const std::string source = string(at(record, "source_sha256"), "source_sha256");
        const std::string& have = bundle.manifest.files.at(graph.file);
        if (source != have) {
            throw Error(VTN_ERROR_BACKEND, stem + ".onnx: made from a " + graph.file + " of " + first12(source) +
                                               ", expected " + first12(have) + remedy);
        }
        std::string bytes;
        try {
            bytes = read_file(stem + ".onnx");
        } catch (const std::system_error& error) {
            throw Error(VTN_ERROR_BACKEND, stem + ".onnx: " + error.code().message() + remedy);
        }
        const std::string got = sha256_hex(bytes), expected = string(at(record, "sha256"), "sha256");
        if (got != expected) {
            throw Error(VTN_ERROR_BACKEND, stem + ".onnx: got SHA-256 " + first12(got) + ", expected " +
                                               first12(expected) + " (changed or damaged)" + remedy);
        }
        return bytes;
    } catch (const Malformed& error) {
        throw Error(VTN_ERROR_BACKEND, stem + ".json: malformed (" + error.what() + ")" + remedy);
    }
}

class OpenVino final : public Executor {
public:
    OpenVino(ov::CompiledModel model, const Manifest& manifest, Part part)
        : model_(std::move(model)), request_(model_.create_infer_request()), part_(part) {
        crop_ = std::size_t(manifest.preprocessing.crop_size);
        uint8_ = manifest.input_type == InputType::uint8;
        features_ = std::size_t(manifest.feature_dim);
        classes_ = std::size_t(manifest.num_classes);
    }

    void run(const Inputs& inputs, float* output, std::size_t output_size) override {
        const std::size_t count = std::size_t(inputs.count);
        try {
            if (part_ == Part::temporal) {
                set("features", ov::element::f32, {1, count, features_}, inputs.features);
            } else {
                ov::Shape shape = uint8_ ? ov::Shape{count, crop_, crop_, 3} : ov::Shape{count, 3, crop_, crop_};
                if (part_ == Part::full) shape.insert(shape.begin(), 1);
                set("frames", uint8_ ? ov::element::u8 : ov::element::f32, shape, inputs.frames);
            }
            const std::int32_t length = static_cast<std::int32_t>(inputs.count);
            if (part_ != Part::backbone) {
                set("frame_index", ov::element::i32, {1, count}, inputs.frame_index);
                set("lengths", ov::element::i32, {1}, &length);
            }
            const bool backbone = part_ == Part::backbone;
            const ov::Shape result{backbone ? count : 1, backbone ? features_ : classes_};
            if (output_size != ov::shape_size(result)) throw Error(VTN_ERROR_INTERNAL, "openvino: output size");
            request_.infer();
            const ov::Tensor found = request_.get_output_tensor(0);
            if (found.get_shape() != result) throw Error(VTN_ERROR_BACKEND, "openvino: an output of another shape");
            std::copy_n(found.data<const float>(), output_size, output);
        } catch (const ov::Exception& error) {
            throw Error(VTN_ERROR_BACKEND, "openvino: " + reason(error));
        }
    }

    std::unique_ptr<Executor> clone() const override { return std::unique_ptr<Executor>(new OpenVino(*this, 0)); }

private:
    OpenVino(const OpenVino& other, int)
        : model_(other.model_),
          request_(model_.create_infer_request()),
          part_(other.part_),
          crop_(other.crop_),
          features_(other.features_),
          classes_(other.classes_),
          uint8_(other.uint8_) {}

    void set(const char* name, ov::element::Type type, const ov::Shape& shape, const void* data) {
        request_.set_tensor(name, ov::Tensor(type, shape, const_cast<void*>(data)));
    }

    ov::CompiledModel model_;  // shared by the clones
    ov::InferRequest request_;
    Part part_;
    std::size_t crop_ = 0, features_ = 0, classes_ = 0;
    bool uint8_ = true;
};

}  // namespace

bool has_openvino() {
    return true;
}

std::unique_ptr<Executor> make_openvino(const Bundle& bundle, Part part, const Options& options) {
    if (bundle.manifest.precision == "int8") {  // vtn_export/backends.py has the figures
        throw Error(VTN_ERROR_BACKEND, "openvino: bundle " + bundle.path +
                                           " is int8, whose Q/DQ it places anew: its numbers are not the engine's; "
                                           "use TensorRT, or the fp32 bundle");
    }
    const std::string graph = inlined_graph(bundle, part);
    try {
        static ov::Core core;
        ov::AnyMap settings{
            // float32 sums on every CPU: with AMX or on ARM it would choose 16 bits by itself
            {ov::hint::inference_precision.name(), ov::element::f32},
            {ov::hint::execution_mode.name(), ov::hint::ExecutionMode::ACCURACY},
            {ov::hint::performance_mode.name(), ov::hint::PerformanceMode::LATENCY},
        };
        if (options.threads > 0) settings[ov::inference_num_threads.name()] = options.threads;
        const auto model = core.read_model(graph, ov::Tensor());
        return std::make_unique<OpenVino>(core.compile_model(model, "CPU", settings), bundle.manifest, part);
    } catch (const ov::Exception& error) {
        throw Error(VTN_ERROR_BACKEND,
                    std::string("openvino: cannot load the ") + name(part) + " graph: " + reason(error));
    }
}

}  // namespace vtn::detail
