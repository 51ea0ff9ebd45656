# The examples in other languages, each built without a network and run against real processes.
if(PSEG_SYSTEM_PYTHON)
  foreach(language go node java rust)
    add_test(NAME client_${language}
             COMMAND "${PSEG_SYSTEM_PYTHON}" -B "${CMAKE_CURRENT_LIST_DIR}/clients_test.py"
                     "${CMAKE_RUNTIME_OUTPUT_DIRECTORY}" "${PROJECT_BINARY_DIR}/gen/pseg.desc" ${language}
                     "${PROJECT_BINARY_DIR}/clients"
             WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
    set_tests_properties(client_${language} PROPERTIES LABELS "integration;slow" SKIP_RETURN_CODE 77 TIMEOUT 900)
  endforeach()
endif()
