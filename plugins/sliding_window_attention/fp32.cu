#include "launch.h"
#include "scalar_kernel.cuh"

namespace vtn::swa {

#define VTN_SWA_SCALAR(D)                                                                              \
    extern "C" __global__ void __launch_bounds__(ScalarShape<D>::kThreads, ScalarShape<D>::kMinBlocks) \
        vtn_swa_scalar_fp32_d##D(const __grid_constant__ KernelParams params) {                        \
        scalar<D>(params);                                                                             \
    }
#define VTN_SWA_SCALAR_ROW(D)                                                                                 \
    Kernel {                                                                                                  \
        "vtn_swa_scalar_fp32_d" #D, reinterpret_cast<const void*>(vtn_swa_scalar_fp32_d##D), Family::kScalar, \
            DataType::kFloat32, D, 0, true, ScalarShape<D>::kThreads, ScalarShape<D>::kQueries,               \
            ScalarShape<D>::kSharedBytes                                                                      \
    }

VTN_SWA_SCALAR(32)
VTN_SWA_SCALAR(64)
VTN_SWA_SCALAR(80)
VTN_SWA_SCALAR(96)
VTN_SWA_SCALAR(128)

const std::vector<Kernel>& kernels_fp32() {
    static const std::vector<Kernel> kernels{VTN_SWA_SCALAR_ROW(32), VTN_SWA_SCALAR_ROW(64), VTN_SWA_SCALAR_ROW(80),
                                             VTN_SWA_SCALAR_ROW(96), VTN_SWA_SCALAR_ROW(128)};
    return kernels;
}

}  // namespace vtn::swa
