# The demo service of the rpc tests, generated and described as proto/ does it for the real ones.
set(rpc_gen "${CMAKE_CURRENT_BINARY_DIR}/rpc_gen")
file(MAKE_DIRECTORY "${rpc_gen}")
set(rpc_proto "${CMAKE_CURRENT_LIST_DIR}/rpc_demo.proto")
set(rpc_includes "-I${CMAKE_CURRENT_LIST_DIR}" "-I${PROJECT_SOURCE_DIR}/proto" "-I${PSEG_PROTOBUF_INCLUDE}")
add_custom_command(
  OUTPUT "${rpc_gen}/rpc_demo.pb-c.c" "${rpc_gen}/rpc_demo.pb-c.h" "${rpc_gen}/demo.desc"
  COMMAND "${PSEG_PROTOC_C}" ${rpc_includes} "--c_out=${rpc_gen}" rpc_demo.proto
  COMMAND "${PSEG_PROTOC}" ${rpc_includes} --include_imports "--descriptor_set_out=${rpc_gen}/demo.desc"
          rpc_demo.proto google/rpc/status.proto google/rpc/error_details.proto grpc/health/v1/health.proto grpc/reflection/v1/reflection.proto
          grpc/reflection/v1alpha/reflection.proto
  DEPENDS "${rpc_proto}"
  VERBATIM)
file(CONFIGURE OUTPUT "${rpc_gen}/demo_descriptors.c" CONTENT [[
__asm__(".pushsection .rodata\n"
        ".globl demo_descriptors_begin\n"
        ".globl demo_descriptors_end\n"
        "demo_descriptors_begin:\n"
        ".incbin \"@rpc_gen@/demo.desc\"\n"
        "demo_descriptors_end:\n"
        ".popsection\n");
extern const unsigned char demo_descriptors_begin[];
]] @ONLY)
set_source_files_properties("${rpc_gen}/demo_descriptors.c" PROPERTIES OBJECT_DEPENDS "${rpc_gen}/demo.desc")

add_library(pseg_rpc_demo_proto STATIC "${rpc_gen}/rpc_demo.pb-c.c" "${rpc_gen}/demo_descriptors.c")
target_compile_options(pseg_rpc_demo_proto PRIVATE -w)
target_include_directories(pseg_rpc_demo_proto SYSTEM PUBLIC "${rpc_gen}")
target_link_libraries(pseg_rpc_demo_proto PUBLIC pseg_proto)
pseg_add_library(pseg_rpc_demo SOURCES "${CMAKE_CURRENT_LIST_DIR}/rpc_demo.c"
                 DEPS pseg_rpc pseg_rpc_demo_proto)

pseg_add_test(NAME rpc SOURCES ${CMAKE_CURRENT_LIST_DIR}/rpc_test.c LIBS pseg_rpc_demo LABELS unit)
pseg_add_test(NAME rpc_bidi SOURCES ${CMAKE_CURRENT_LIST_DIR}/rpc_bidi_test.c LIBS pseg_rpc_demo LABELS unit)
pseg_add_test(NAME rpc_net SOURCES ${CMAKE_CURRENT_LIST_DIR}/rpc_net_test.c
              ${PROJECT_SOURCE_DIR}/scheduler/keys.c LIBS pseg_rpc_demo LABELS unit)
