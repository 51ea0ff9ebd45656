# Sanitizers make the references slow; the big shapes differ from the small ones only in size.
set(small "")
if(PSEG_SANITIZE)
  set(small --small)
endif()
pseg_add_test(NAME ops SOURCES ${CMAKE_CURRENT_LIST_DIR}/ops_test.c ${CMAKE_CURRENT_LIST_DIR}/reference.c
  ${CMAKE_CURRENT_LIST_DIR}/typed.c LIBS pseg_ops pseg_test_support LABELS ops TIMEOUT 300 ARGS ${small})
pseg_add_test(NAME ops_backward SOURCES ${CMAKE_CURRENT_LIST_DIR}/backward_test.c
  ${CMAKE_CURRENT_LIST_DIR}/backward_cases.c ${CMAKE_CURRENT_LIST_DIR}/typed.c
  LIBS pseg_ops pseg_test_support LABELS ops TIMEOUT 300 ARGS ${small})
pseg_add_test(NAME ops_backward_edge SOURCES ${CMAKE_CURRENT_LIST_DIR}/backward_edge_test.c
  LIBS pseg_ops pseg_test_support LABELS ops TIMEOUT 300)
pseg_add_test(NAME ops_tune SOURCES ${CMAKE_CURRENT_LIST_DIR}/tune_test.c
  LIBS pseg_ops pseg_test_support LABELS ops TIMEOUT 300)
set(entries ops_syntax)
add_test(NAME ops_syntax COMMAND ${CMAKE_CURRENT_LIST_DIR}/syntax.sh ${PROJECT_SOURCE_DIR}/kernels)
if(NOT PSEG_SANITIZE) # Oclgrind is preloaded, which AddressSanitizer refuses
  list(APPEND entries ops_oclgrind)
  add_test(NAME ops_oclgrind COMMAND ${CMAKE_CURRENT_LIST_DIR}/oclgrind.sh
    ${PROJECT_BINARY_DIR}/ops_oclgrind.log $<TARGET_FILE:test_ops> --interpreted)
  list(APPEND entries ops_backward_oclgrind)
  add_test(NAME ops_backward_oclgrind COMMAND ${CMAKE_CURRENT_LIST_DIR}/oclgrind.sh
    ${PROJECT_BINARY_DIR}/ops_backward_oclgrind.log $<TARGET_FILE:test_ops_backward> --interpreted)
endif()
set_tests_properties(${entries} PROPERTIES LABELS ops SKIP_RETURN_CODE 77 TIMEOUT 900)
