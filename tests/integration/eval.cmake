find_program(PSEG_SYSTEM_PYTHON python3 PATHS /usr/bin NO_DEFAULT_PATH)
if(PSEG_SYSTEM_PYTHON)
  foreach(name eval eval_page)
    add_test(NAME ${name}_program COMMAND "${PSEG_SYSTEM_PYTHON}" "${CMAKE_CURRENT_LIST_DIR}/${name}_test.py"
             "${CMAKE_RUNTIME_OUTPUT_DIRECTORY}" WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
    set_tests_properties(${name}_program PROPERTIES LABELS integration SKIP_RETURN_CODE 77 TIMEOUT 300)
  endforeach()
endif()
