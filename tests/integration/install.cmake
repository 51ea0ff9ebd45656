add_test(NAME install COMMAND sh "${CMAKE_CURRENT_LIST_DIR}/install_test.sh" "${CMAKE_COMMAND}"
         "${PROJECT_BINARY_DIR}" "${PROJECT_SOURCE_DIR}")
set_tests_properties(install PROPERTIES LABELS integration TIMEOUT 180)
