# docs/config.md is what the programs print. Written again by: cmake --build BUILD --target config-docs
set(config_docs sh "${PROJECT_SOURCE_DIR}/deploy/config-docs.sh" "${CMAKE_RUNTIME_OUTPUT_DIRECTORY}")
add_custom_target(config-docs
  COMMAND ${config_docs} >"${PROJECT_BINARY_DIR}/config.md"
  COMMAND "${CMAKE_COMMAND}" -E copy "${PROJECT_BINARY_DIR}/config.md" "${PROJECT_SOURCE_DIR}/docs/config.md"
  DEPENDS pseg pseg-scheduler pseg-worker pseg-run pseg-train pseg-devices pseg-scenes pseg-bench)
add_test(NAME config_docs COMMAND sh "${CMAKE_CURRENT_LIST_DIR}/config_docs_test.sh"
         "${CMAKE_RUNTIME_OUTPUT_DIRECTORY}" "${PROJECT_SOURCE_DIR}")
set_tests_properties(config_docs PROPERTIES LABELS unit TIMEOUT 300)
