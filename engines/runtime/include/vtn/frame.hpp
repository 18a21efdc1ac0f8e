// Makers of vtn_frame. Pixels stay the caller's.
#pragma once

#include <cstdint>

#include "vtn/vtn.h"

namespace vtn {

using Frame = vtn_frame;

// format: VTN_RGB, VTN_BGR or VTN_RGBA; stride: bytes from row to row, 0 for rows without gaps.
inline Frame packed(int format, const std::uint8_t* data, int width, int height, std::int64_t stride = 0) {
    Frame frame{};
    frame.struct_size = sizeof(frame);
    frame.format = format, frame.data = data, frame.width = width, frame.height = height, frame.stride = stride;
    return frame;
}

inline Frame rgb(const std::uint8_t* data, int width, int height, std::int64_t stride = 0) {
    return packed(VTN_RGB, data, width, height, stride);
}

// matrix: VTN_BT601 or VTN_BT709; range: VTN_LIMITED_RANGE or VTN_FULL_RANGE, as the camera states.
inline Frame nv12(const std::uint8_t* luma, const std::uint8_t* chroma, int width, int height, int matrix, int range,
                  std::int64_t stride = 0, std::int64_t chroma_stride = 0) {
    Frame frame = packed(VTN_NV12, luma, width, height, stride);
    frame.chroma = chroma, frame.chroma_stride = chroma_stride, frame.matrix = matrix, frame.range = range;
    return frame;
}

}  // namespace vtn
