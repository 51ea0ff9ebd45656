add_test(NAME install COMMAND sh "${CMAKE_CURRENT_LIST_DIR}/install_test.sh" "${CMAKE_COMMAND}"
         "${PROJECT_BINARY_DIR}" "${PROJECT_SOURCE_DIR}")
set_tests_properties(install PROPERTIES LABELS integration TIMEOUT 180)
# Kernels are compiled anew in it, which sanitizers would make long and nothing else.
if(NOT PSEG_SANITIZE)
  add_test(NAME closure COMMAND sh "${CMAKE_CURRENT_LIST_DIR}/closure_test.sh" "${CMAKE_COMMAND}"
           "${PROJECT_BINARY_DIR}" "${PROJECT_SOURCE_DIR}")
  set_tests_properties(closure PROPERTIES LABELS integration SKIP_RETURN_CODE 77 TIMEOUT 900)
endif()
