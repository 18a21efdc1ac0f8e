#include "launch.cuh"

namespace vtn::swa {

#define VTN_ENTRY(D, TILES, WARPS, TAG, DILATED) VTN_SWA_RESIDENT(fp16, __half, D, TILES, WARPS, TAG, DILATED)
VTN_SWA_RESIDENT_KERNELS(VTN_ENTRY)
#undef VTN_ENTRY
#define VTN_ENTRY(D) VTN_SWA_STREAMING(fp16, __half, D)
VTN_SWA_STREAMING_KERNELS(VTN_ENTRY)
#undef VTN_ENTRY

const std::vector<Kernel>& kernels_fp16() {
#define VTN_ENTRY(D, TILES, WARPS, TAG, DILATED) \
    VTN_SWA_RESIDENT_ROW(fp16, DataType::kFloat16, D, TILES, WARPS, TAG, DILATED),
#define VTN_STREAM(D) VTN_SWA_STREAMING_ROW(fp16, DataType::kFloat16, D),
    static const std::vector<Kernel> kernels{VTN_SWA_RESIDENT_KERNELS(VTN_ENTRY) VTN_SWA_STREAMING_KERNELS(VTN_STREAM)};
#undef VTN_STREAM
#undef VTN_ENTRY
    return kernels;
}

}  // namespace vtn::swa
