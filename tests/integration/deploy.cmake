# What deploy/ ships for machines and clusters, against the real programs.
if(PSEG_SYSTEM_PYTHON)
  add_test(NAME deploy
           COMMAND "${PSEG_SYSTEM_PYTHON}" -B "${CMAKE_CURRENT_LIST_DIR}/deploy_test.py"
                   "${CMAKE_RUNTIME_OUTPUT_DIRECTORY}" "${PROJECT_BINARY_DIR}/gen/pseg.desc"
           WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  add_test(NAME pod_costs
           COMMAND "${PSEG_SYSTEM_PYTHON}" -B "${CMAKE_CURRENT_LIST_DIR}/pod_costs_test.py"
                   "${CMAKE_RUNTIME_OUTPUT_DIRECTORY}" "${PROJECT_BINARY_DIR}/gen/pseg.desc"
           WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  set_tests_properties(deploy pod_costs PROPERTIES LABELS integration SKIP_RETURN_CODE 77 TIMEOUT 900)
endif()
