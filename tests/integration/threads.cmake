# How many threads the CPU device has, and where they may run.
find_program(PSEG_SYSTEM_PYTHON python3 PATHS /usr/bin NO_DEFAULT_PATH)
if(PSEG_SYSTEM_PYTHON)
  add_test(NAME threads COMMAND "${PSEG_SYSTEM_PYTHON}" "${CMAKE_CURRENT_LIST_DIR}/threads_test.py"
           "${CMAKE_RUNTIME_OUTPUT_DIRECTORY}")
  set_tests_properties(threads PROPERTIES LABELS integration SKIP_RETURN_CODE 77 TIMEOUT 180)
endif()
