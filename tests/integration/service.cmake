# The whole path with real processes: redis-server, scheduler, workers, client.
add_test(NAME service COMMAND sh "${CMAKE_CURRENT_LIST_DIR}/service_test.sh" "${CMAKE_RUNTIME_OUTPUT_DIRECTORY}"
         WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
set_tests_properties(service PROPERTIES LABELS integration SKIP_RETURN_CODE 77 TIMEOUT 240)
