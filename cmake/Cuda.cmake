# CUDA sources, compiled two ways: by nvcc where there is one, and as C++ for the stand-in of kernels/simt/.

# One compiler for both languages: sanitizers of two do not go together.
if(NOT CMAKE_CXX_COMPILER AND CMAKE_C_COMPILER_ID MATCHES "Clang")
  string(REGEX REPLACE "clang([-0-9]*)$" "clang++\\1" CMAKE_CXX_COMPILER ${CMAKE_C_COMPILER})
endif()
enable_language(CXX)
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS ON)
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g")

option(KVIST_CUDA "Build the CUDA device where nvcc is installed" ON)
set(KVIST_CUDA_ARCHITECTURES 80 90 100 120 CACHE STRING "Compute capabilities that kernels are compiled for")
find_program(KVIST_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)

# cuBLASLt's headers name what the sources use (scales for rows) from 12.9 on: an older toolkit makes no device.
if(KVIST_CUDA AND KVIST_NVCC)
  execute_process(COMMAND ${KVIST_NVCC} --version OUTPUT_VARIABLE release ERROR_QUIET)
  if(release MATCHES "release ([0-9]+[.][0-9]+)" AND CMAKE_MATCH_1 VERSION_LESS 12.9)
    message(STATUS "nvcc is of CUDA ${CMAKE_MATCH_1}, 12.9 is the least")
    set(KVIST_CUDA OFF)
  endif()
endif()

# What every CUDA source compiled as C++ is compiled with. Sums are rounded as they are written: the device's compiler is
# told the same where it matters (__fmul_rn), and fused multiplications are asked for by name.
set(KVIST_SIMT_FLAGS "SHELL:-x c++" -Wall -Wextra -Wno-unused-function -Wno-unknown-pragmas -ffp-contract=off
  -fno-exceptions -fno-rtti -fno-strict-aliasing -fno-omit-frame-pointer)
if(KVIST_WARNINGS_AS_ERRORS)
  list(APPEND KVIST_SIMT_FLAGS -Werror)
endif()

# The plug-in's kernels: eight lanes' worth of one thread's numbers at once. kernels/plugin.c looks whether the processor has it.
set(KVIST_SIMT_FAST_FLAGS)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(KVIST_SIMT_FAST_FLAGS -O3 -mavx2 -mfma)
endif()

# kvist_simt_objects(NAME [CHECKED] SOURCES file...): an object library of CUDA sources for the stand-in. CHECKED: each
# access to memory calls a hook; whoever links it links kv_simt_hooks.
function(kvist_simt_objects name)
  cmake_parse_arguments(ARG "CHECKED" "" "SOURCES" ${ARGN})
  add_library(${name} OBJECT ${ARG_SOURCES})
  set_source_files_properties(${ARG_SOURCES} PROPERTIES LANGUAGE CXX)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})
  target_compile_definitions(${name} PRIVATE _GNU_SOURCE KVIST_SIMT KVIST_VERSION="${PROJECT_VERSION}")
  target_compile_options(${name} PRIVATE ${KVIST_SIMT_FLAGS})
  if(ARG_CHECKED)
    # The hooks instead of a sanitizer of memory; what is undefined in arithmetic is still refused where that is on.
    target_compile_options(${name} PRIVATE -O1 -fsanitize=thread)
    if(KVIST_SANITIZE MATCHES undefined)
      target_compile_options(${name} PRIVATE -fsanitize=undefined -fno-sanitize-recover=all)
    endif()
  else()
    target_compile_options(${name} PRIVATE ${KVIST_SIMT_FAST_FLAGS})
  endif()
  if(NOT ARG_CHECKED AND KVIST_SANITIZE AND NOT KVIST_SANITIZE MATCHES thread)
    target_compile_options(${name} PRIVATE -fsanitize=${KVIST_SANITIZE} -fno-sanitize-recover=all)
  endif()
endfunction()

# kvist_cuda_objects(OUT SOURCES file...): in OUT the object files that nvcc makes of them.
function(kvist_cuda_objects out)
  cmake_parse_arguments(ARG "" "" "SOURCES" ${ARGN})
  execute_process(COMMAND ${KVIST_NVCC} --list-gpu-arch OUTPUT_VARIABLE known RESULT_VARIABLE failed ERROR_QUIET)
  if(failed)
    message(FATAL_ERROR "${KVIST_NVCC} does not say what it compiles for: repair it, or build with -DKVIST_CUDA=OFF")
  endif()
  string(REGEX MATCHALL "compute_[0-9]+" known "${known}")
  set(code)
  foreach(architecture ${KVIST_CUDA_ARCHITECTURES})
    if("compute_${architecture}" IN_LIST known)
      list(APPEND code -gencode arch=compute_${architecture},code=sm_${architecture})
      list(APPEND compiled ${architecture})
    else()
      message(STATUS "nvcc knows nothing of sm_${architecture}: left out")
    endif()
  endforeach()
  if(NOT compiled)
    message(FATAL_ERROR "${KVIST_NVCC} compiles for none of ${KVIST_CUDA_ARCHITECTURES}: set KVIST_CUDA_ARCHITECTURES, or "
      "build with -DKVIST_CUDA=OFF")
  endif()
  # Chips between these, or newer than all, compile for themselves.
  list(GET compiled 0 oldest)
  list(GET compiled -1 newest)
  set(own ${oldest} ${newest})
  list(REMOVE_DUPLICATES own)
  foreach(architecture ${own})
    list(APPEND code -gencode arch=compute_${architecture},code=compute_${architecture})
  endforeach()
  set(objects)
  foreach(source ${ARG_SOURCES})
    get_filename_component(path ${source} ABSOLUTE)
    get_filename_component(stem ${source} NAME_WE)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/nvcc/${stem}.o)
    add_custom_command(OUTPUT ${object}
      COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_CURRENT_BINARY_DIR}/nvcc
      COMMAND ${KVIST_NVCC} -std=c++17 -O3 -lineinfo ${code} -Xcompiler=-fPIC,-Wall,-fno-strict-aliasing
        -D_GNU_SOURCE "-DKVIST_VERSION=\"${PROJECT_VERSION}\"" -I${PROJECT_SOURCE_DIR} -I${PROJECT_BINARY_DIR}
        -MD -MF ${object}.d -c ${path} -o ${object}
      DEPENDS ${path}
      DEPFILE ${object}.d
      COMMENT "nvcc ${source}"
      VERBATIM)
    list(APPEND objects ${object})
  endforeach()
  set(${out} ${objects} PARENT_SCOPE)
endfunction()
