# `pseg train` as a user runs it, on scenes.
find_program(PSEG_SYSTEM_PYTHON python3 PATHS /usr/bin NO_DEFAULT_PATH)
if(PSEG_SYSTEM_PYTHON)
  foreach(part learn batch towers pixels resume stop refuse blow_up full_disk)
    add_test(NAME train_${part}
             COMMAND "${PSEG_SYSTEM_PYTHON}" -B "${CMAKE_CURRENT_LIST_DIR}/train_run_test.py"
                     "${CMAKE_RUNTIME_OUTPUT_DIRECTORY}" "${PROJECT_SOURCE_DIR}" ${part})
    set_tests_properties(train_${part} PROPERTIES LABELS integration SKIP_RETURN_CODE 77 TIMEOUT 600)
  endforeach()
endif()
