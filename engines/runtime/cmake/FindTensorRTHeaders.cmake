# TensorRT's C++ headers, no library: plugins are found by TensorRT, they need not find it.
#
#   find_package(TensorRTHeaders 10.3)    # hint: TENSORRT_INCLUDE_DIR
#   target_link_libraries(... TensorRT::headers)
find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h
  PATHS /usr/include /usr/include/x86_64-linux-gnu /usr/include/aarch64-linux-gnu /usr/local/tensorrt/include
  DOC "Folder of NvInferRuntime.h")
if(TENSORRT_INCLUDE_DIR AND EXISTS "${TENSORRT_INCLUDE_DIR}/NvInferVersion.h")
  file(READ "${TENSORRT_INCLUDE_DIR}/NvInferVersion.h" _version)
  # 10.14 on has the numbers in TRT_*_ENTERPRISE.
  foreach(_part MAJOR MINOR PATCH)
    if(_version MATCHES "#define (TRT_${_part}_ENTERPRISE|NV_TENSORRT_${_part}) ([0-9]+)")
      set(_trt_${_part} ${CMAKE_MATCH_2})
    endif()
  endforeach()
  set(TensorRTHeaders_VERSION "${_trt_MAJOR}.${_trt_MINOR}.${_trt_PATCH}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorRTHeaders
  REQUIRED_VARS TENSORRT_INCLUDE_DIR VERSION_VAR TensorRTHeaders_VERSION)
mark_as_advanced(TENSORRT_INCLUDE_DIR)

if(TensorRTHeaders_FOUND AND NOT TARGET TensorRT::headers)
  add_library(TensorRT::headers INTERFACE IMPORTED)
  target_include_directories(TensorRT::headers SYSTEM INTERFACE "${TENSORRT_INCLUDE_DIR}")
endif()
