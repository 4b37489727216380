# The CUDA kernels: the target _cuda, a separate shared object. This file sets CUDA_BUILD, a line for `sparsegan info`:
# "built by ...", or "not built: " and the reason. A CUDA compiler that cannot build the kernels is an error only where
# SPARSEGAN_CUDA is 1.

# Torch 2.10 and later come with CUDA 12.6 or later. Compilers older than this one were never tried.
set(OLDEST_NVCC 12.0)

# Sets `reason` to the text that says why the CUDA kernels cannot be built here. An empty `reason` means that they can
# be built and that the language CUDA may be enabled.
function(look_for_cuda reason)
  set(${reason} "" PARENT_SCOPE)
  if(SPARSEGAN_SANITIZE)
    set(${reason} "a build with sanitizers has none" PARENT_SCOPE)
    return()
  endif()
  # The search is the same as CMake's. A compiler that was named and is missing is not replaced by another compiler.
  set(asked "${CMAKE_CUDA_COMPILER}")
  if(NOT asked)
    unset(CMAKE_CUDA_COMPILER CACHE)  # an earlier try may have left it
    set(asked "$ENV{CUDACXX}")
  endif()
  if(asked)
    find_program(nvcc "${asked}" NO_CACHE)
  else()
    find_program(nvcc nvcc PATHS "$ENV{CUDA_PATH}/bin" "$ENV{CUDA_HOME}/bin" /usr/local/cuda/bin NO_CACHE)
  endif()
  if(NOT nvcc)
    set(${reason} "no nvcc was found" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE status)
  if(NOT status EQUAL 0 OR NOT output MATCHES "release [0-9.]+, V([0-9.]+)")
    set(${reason} "nvcc does not tell its version" PARENT_SCOPE)
    return()
  endif()
  set(version ${CMAKE_MATCH_1})
  set(NVCC_VERSION ${version} PARENT_SCOPE)
  if(version VERSION_LESS OLDEST_NVCC)
    set(${reason} "nvcc ${version} is too old: ${OLDEST_NVCC} or later is wanted" PARENT_SCOPE)
    return()
  endif()

  # A small program is compiled first, because nvcc may refuse the compiler of the host, or an architecture.
  set(trial ${CMAKE_BINARY_DIR}/cuda_trial)
  file(WRITE ${trial}.cu "#include <cuda_runtime.h>\n__global__ void kernel() {}\n")
  list(GET SPARSEGAN_CUDA_ARCHITECTURES 0 architecture)
  string(REGEX REPLACE "-.*" "" architecture "${architecture}")
  set(host "")
  if(CMAKE_CUDA_HOST_COMPILER)
    set(host -ccbin ${CMAKE_CUDA_HOST_COMPILER})
  endif()
  execute_process(
    COMMAND ${nvcc} -std=c++17 -arch=sm_${architecture} ${host} -c ${trial}.cu -o ${trial}.o
    OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    string(REGEX MATCH "[^\n]*(error|fatal)[^\n]*" line "${output}")
    string(REGEX REPLACE "[\";\\]" "'" line "${line}")
    set(${reason} "nvcc ${version} does not compile a small program: ${line}" PARENT_SCOPE)
    return()
  endif()
  # Without CUDAARCHS, old versions of CMake try an architecture that new versions of nvcc no longer have.
  set(ENV{CUDAARCHS} "${architecture}")
  include(CheckLanguage)
  check_language(CUDA)
  unset(ENV{CUDAARCHS})
  if(NOT CMAKE_CUDA_COMPILER)
    set(${reason} "CMake ${CMAKE_VERSION} cannot work with nvcc ${version}" PARENT_SCOPE)
    return()
  endif()
  find_package(CUDAToolkit QUIET)
  if(NOT CUDAToolkit_FOUND)
    set(${reason} "the CUDA toolkit of nvcc ${version} has no headers or no runtime library" PARENT_SCOPE)
  endif()
endfunction()

set(SPARSEGAN_CUDA_ARCHITECTURES 80-real 90 CACHE STRING "As CMAKE_CUDA_ARCHITECTURES; later GPUs run the PTX of 90")
if("${SPARSEGAN_CUDA}" STREQUAL "0")
  set(why_not "SPARSEGAN_CUDA was 0")
elseif("${SPARSEGAN_CUDA}" STREQUAL "failed")  # from setup.py, after nvcc failed
  set(why_not "nvcc did not compile them, SPARSEGAN_CUDA=1 shows its errors")
elseif("${SPARSEGAN_CUDA}" MATCHES "^1?$")
  look_for_cuda(why_not)
else()
  message(FATAL_ERROR "SPARSEGAN_CUDA is ${SPARSEGAN_CUDA}; it must be 1, 0 or empty.")
endif()
if(why_not)
  if("${SPARSEGAN_CUDA}" STREQUAL "1")
    message(FATAL_ERROR "SPARSEGAN_CUDA is 1, and the CUDA kernels cannot be built: ${why_not}.")
  endif()
  set(CUDA_BUILD "not built: ${why_not}")
  message(STATUS "CUDA kernels ${CUDA_BUILD}")
  file(REMOVE ${CMAKE_BINARY_DIR}/_cuda.so)  # may be left from an earlier build
  return()
endif()

set(CMAKE_CUDA_ARCHITECTURES ${SPARSEGAN_CUDA_ARCHITECTURES})
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
string(REPLACE ";" " " architectures "${CMAKE_CUDA_ARCHITECTURES}")
set(CUDA_BUILD "built by nvcc ${NVCC_VERSION} for ${architectures}")
message(STATUS "CUDA kernels ${CUDA_BUILD}")
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3")

# _cuda.so must list libtorch_cuda among the libraries that it needs. Torch loads that library without making its
# symbols global, so that _cuda.so would not find them otherwise. A torch for CPUs can build these kernels too and has
# no such library. The link therefore uses a stub with the same name.
add_library(torch_cuda_stub SHARED csrc/bindings/torch_cuda_stub.cpp)
set_target_properties(torch_cuda_stub PROPERTIES
  OUTPUT_NAME torch_cuda
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/stub)

# C++17 and not later, because CMake supports C++20 only for versions of nvcc that are older than CMake itself.
add_library(cuda_kernels OBJECT csrc/cuda/sparse_conv.cu csrc/cuda/wgrad.cu)
set_target_properties(cuda_kernels PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF)
# A tap jumps to its FMAs through a table (window.h). Without -jtd, nvcc uses six comparisons instead. Old versions of
# nvcc have no such option.
include(CheckCompilerFlag)
check_compiler_flag(CUDA -jtd=1 HAVE_JUMP_TABLES)
target_compile_options(cuda_kernels PRIVATE -Xcompiler=-Wall,-Wextra $<$<BOOL:${HAVE_JUMP_TABLES}>:-jtd=1>)

add_torch_module(_cuda
  csrc/bindings/ops_cuda.cpp
  csrc/cuda/tiling.cpp
  csrc/core/device_plan.cpp
  csrc/core/geometry.cpp
  $<TARGET_OBJECTS:cuda_kernels>)
target_compile_definitions(_cuda PRIVATE USE_CUDA)
target_link_libraries(_cuda PRIVATE torch_cuda_stub CUDA::cudart_static)
target_link_options(_cuda PRIVATE LINKER:-z,defs)
set_target_properties(_cuda PROPERTIES LINKER_LANGUAGE CXX)
