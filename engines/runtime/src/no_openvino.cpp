#include "error.hpp"
#include "executor.hpp"

namespace vtn::detail {

bool has_openvino() {
    return false;
}

std::unique_ptr<Executor> make_openvino(const Bundle&, Part, const Options&) {
    throw Error(VTN_ERROR_BACKEND, "openvino: this libvtn was built without it; build with -DVTN_WITH_OPENVINO=ON");
}

}  // namespace vtn::detail
