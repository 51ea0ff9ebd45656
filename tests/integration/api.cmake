# The public API from the outside: Debian's python3-grpcio against pseg-scheduler and pseg-worker.
find_program(PSEG_SYSTEM_PYTHON python3 PATHS /usr/bin NO_DEFAULT_PATH)
if(PSEG_SYSTEM_PYTHON)
  file(GLOB api_tests CONFIGURE_DEPENDS "${CMAKE_CURRENT_LIST_DIR}/api_*_test.py")
  foreach(file ${api_tests})
    get_filename_component(name "${file}" NAME_WE)
    string(REPLACE "_test" "" name "${name}")
    add_test(NAME ${name}
             COMMAND "${PSEG_SYSTEM_PYTHON}" -B "${file}" "${CMAKE_RUNTIME_OUTPUT_DIRECTORY}"
                     "${PROJECT_BINARY_DIR}/gen/pseg.desc"
             WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
    set_tests_properties(${name} PROPERTIES LABELS integration SKIP_RETURN_CODE 77 TIMEOUT 240)
  endforeach()
endif()
