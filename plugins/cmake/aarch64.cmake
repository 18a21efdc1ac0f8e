# Cross-build for Jetson. CUDAToolkit_ROOT must be a toolkit whose nvcc is the host's and whose lib folder is the
# target's; `vtn-export sdk` and `vtn-export plugins build --cross` make such a one in their cache.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CUDA_HOST_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static -L /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
# This file is read once more for every trial compilation, which knows the caller's settings by this list alone
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES CUDAToolkit_ROOT)
if(CUDAToolkit_ROOT)
  set(CMAKE_CUDA_COMPILER ${CUDAToolkit_ROOT}/bin/nvcc)
  set(CMAKE_CUDA_FLAGS_INIT "-L\"${CUDAToolkit_ROOT}/lib\"")
endif()
