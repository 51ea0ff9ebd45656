add_executable(decode_fault ${CMAKE_CURRENT_LIST_DIR}/../support/decode_fault.c)
_pseg_common(decode_fault)
target_link_libraries(decode_fault PRIVATE pseg_decode_child)
set_target_properties(decode_fault PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
pseg_add_test(NAME decoders SOURCES ${CMAKE_CURRENT_LIST_DIR}/decoders_test.c LIBS pseg_decode Threads::Threads
  LABELS unit TIMEOUT 240)
add_dependencies(test_decoders decode_fault pseg-decode)
pseg_add_test(NAME decode_bench SOURCES ${CMAKE_CURRENT_LIST_DIR}/../bench/decode_bench.c LIBS pseg_decode LABELS bench)
add_dependencies(test_decode_bench pseg-decode)
