#include "error.hpp"
#include "executor.hpp"

namespace vtn::detail {

bool has_tensorrt() {
    return false;
}

std::unique_ptr<Executor> make_tensorrt(const Bundle&, Part, const Options&) {
    throw Error(VTN_ERROR_BACKEND, "tensorrt: this libvtn was built without it; build with -DVTN_WITH_TENSORRT=ON");
}

std::unique_ptr<Preprocessor> make_gpu_preprocessor(const Preprocessing&, InputType) {
    throw Error(VTN_ERROR_BACKEND, "tensorrt: this libvtn was built without it; build with -DVTN_WITH_TENSORRT=ON");
}

}  // namespace vtn::detail
