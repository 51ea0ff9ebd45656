# Every third-party library, found once. deploy/packages.txt names the Debian package of each.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
pkg_check_modules(PROTOBUFC REQUIRED IMPORTED_TARGET libprotobuf-c>=1.4)
pkg_check_modules(HIREDIS REQUIRED IMPORTED_TARGET hiredis>=0.14)
pkg_check_modules(OPENCL REQUIRED IMPORTED_TARGET OpenCL)
pkg_check_modules(VIPS REQUIRED IMPORTED_TARGET vips>=8.14)
pkg_check_modules(PNG REQUIRED IMPORTED_TARGET libpng>=1.6)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson>=2.13)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(MICROHTTPD REQUIRED IMPORTED_TARGET libmicrohttpd>=0.9.71)
pkg_check_modules(CRYPTO REQUIRED IMPORTED_TARGET libcrypto>=3)
if(PSEG_TESTS)
  pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka>=1.1)
endif()

# pkg-config's list for grpc names some ninety absl libraries that only a C++ program needs.
find_library(PSEG_GRPC_LIBRARY grpc REQUIRED)
find_library(PSEG_GPR_LIBRARY gpr REQUIRED)
add_library(pseg_grpc_core INTERFACE)
target_link_libraries(pseg_grpc_core INTERFACE "${PSEG_GRPC_LIBRARY}" "${PSEG_GPR_LIBRARY}" Threads::Threads)

find_program(PSEG_PROTOC protoc REQUIRED)
find_program(PSEG_PROTOC_C protoc-c REQUIRED)
