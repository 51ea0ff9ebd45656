# `pseg batch` against a server that breaks on demand.
if(PSEG_SYSTEM_PYTHON)
  add_test(NAME batch
           COMMAND "${PSEG_SYSTEM_PYTHON}" -B "${CMAKE_CURRENT_LIST_DIR}/batch_test.py"
                   "${CMAKE_RUNTIME_OUTPUT_DIRECTORY}" "${PROJECT_BINARY_DIR}/gen/pseg.desc"
           WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  set_tests_properties(batch PROPERTIES LABELS integration SKIP_RETURN_CODE 77 TIMEOUT 600)
endif()
