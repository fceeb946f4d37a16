# Every foreign library, once. The packages that bring them are listed in tools/packages.txt.
find_package(PkgConfig REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS C)
find_package(Threads REQUIRED)
foreach(library ucx liburing rocksdb liblz4 libprotobuf-c libcrypto libxxhash libuv libmicrohttpd jansson libcyaml
        libpcre2-8 libcurl libzstd cmocka)
  string(MAKE_C_IDENTIFIER ${library} name)
  pkg_check_modules(${name} REQUIRED IMPORTED_TARGET ${library})
endforeach()
find_library(KVIST_DNNL_LIBRARY dnnl REQUIRED)
find_program(KVIST_PROTOC_C protoc-c REQUIRED)
