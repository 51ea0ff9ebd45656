# How many threads the CPU device has, and where they may run; and what compiles when nothing is compiled.
find_program(PSEG_SYSTEM_PYTHON python3 PATHS /usr/bin NO_DEFAULT_PATH)
if(PSEG_SYSTEM_PYTHON)
  add_test(NAME threads COMMAND "${PSEG_SYSTEM_PYTHON}" "${CMAKE_CURRENT_LIST_DIR}/threads_test.py"
           "${CMAKE_RUNTIME_OUTPUT_DIRECTORY}")
  set_tests_properties(threads PROPERTIES LABELS integration SKIP_RETURN_CODE 77 TIMEOUT 180)
  add_test(NAME cold_start COMMAND "${PSEG_SYSTEM_PYTHON}" "${CMAKE_CURRENT_LIST_DIR}/cold_start_test.py"
           "${CMAKE_RUNTIME_OUTPUT_DIRECTORY}")
  set_tests_properties(cold_start PROPERTIES LABELS "integration;slow" SKIP_RETURN_CODE 77 TIMEOUT 900)
endif()
