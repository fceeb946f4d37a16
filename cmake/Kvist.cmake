# How Kvist's modules, binaries and tests are made; each module's CMakeLists.txt is one or two calls.

add_library(kvist_options INTERFACE)
target_include_directories(kvist_options INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})
target_compile_definitions(kvist_options INTERFACE _GNU_SOURCE KVIST_VERSION="${PROJECT_VERSION}")
target_compile_options(kvist_options INTERFACE -Wall -Wextra -Wshadow -Wpointer-arith -Wvla -Wundef
  $<$<COMPILE_LANGUAGE:C>:-Wstrict-prototypes> $<$<COMPILE_LANGUAGE:C>:-Wmissing-prototypes>
  -fno-strict-aliasing -fno-omit-frame-pointer)
if(KVIST_WARNINGS_AS_ERRORS)
  target_compile_options(kvist_options INTERFACE -Werror)
endif()
if(KVIST_SANITIZE)
  target_compile_options(kvist_options INTERFACE -fsanitize=${KVIST_SANITIZE} -fno-sanitize-recover=all)
  target_link_options(kvist_options INTERFACE -fsanitize=${KVIST_SANITIZE})
endif()

# kvist_module(NAME SOURCES file... USES module-or-library...): the static library kv_NAME.
function(kvist_module name)
  cmake_parse_arguments(ARG "" "" "SOURCES;USES" ${ARGN})
  if(NOT ARG_SOURCES)
    file(GLOB ARG_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.c)
  endif()
  if(NOT ARG_SOURCES)
    add_library(kv_${name} INTERFACE)
    target_link_libraries(kv_${name} INTERFACE kvist_options ${ARG_USES})
    return()
  endif()
  add_library(kv_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(kv_${name} PUBLIC kvist_options ${ARG_USES})
endfunction()

# kvist_binary(NAME SOURCES file... USES module...): an executable in build/bin.
function(kvist_binary name)
  cmake_parse_arguments(ARG "" "" "SOURCES;USES" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE kvist_options ${ARG_USES})
endfunction()

# kvist_tests(MODULE USES module...): each test_*.c of the current folder is one cmocka program, named MODULE.FILE.
function(kvist_tests module)
  cmake_parse_arguments(ARG "" "" "USES" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/test_*.c)
  foreach(source ${sources})
    get_filename_component(stem ${source} NAME_WE)
    set(target ${module}_${stem})
    add_executable(${target} ${source})
    set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
    target_link_libraries(${target} PRIVATE ${ARG_USES} kv_testing PkgConfig::cmocka)
    add_test(NAME ${module}.${stem} COMMAND ${target} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    set_tests_properties(${module}.${stem} PROPERTIES TIMEOUT 900 LABELS unit)
  endforeach()
endfunction()
