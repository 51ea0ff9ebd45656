# `pseg batch` and batch() of the Python package: against a server that breaks on demand, and with real processes.
if(PSEG_SYSTEM_PYTHON)
  foreach(name batch python_batch batch_service)
    add_test(NAME ${name}
             COMMAND "${PSEG_SYSTEM_PYTHON}" -B "${CMAKE_CURRENT_LIST_DIR}/${name}_test.py"
                     "${CMAKE_RUNTIME_OUTPUT_DIRECTORY}" "${PROJECT_BINARY_DIR}/gen/pseg.desc"
             WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
    set_tests_properties(${name} PROPERTIES LABELS integration SKIP_RETURN_CODE 77 TIMEOUT 1200)
  endforeach()
endif()
