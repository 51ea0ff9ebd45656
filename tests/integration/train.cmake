# `pseg train` as a user runs it, on scenes and on data sets.
find_program(PSEG_SYSTEM_PYTHON python3 PATHS /usr/bin NO_DEFAULT_PATH)
function(pseg_train_test file)
  foreach(part ${ARGN})
    add_test(NAME train_${part}
             COMMAND "${PSEG_SYSTEM_PYTHON}" -B "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/${file}"
                     "${CMAKE_RUNTIME_OUTPUT_DIRECTORY}" "${PROJECT_SOURCE_DIR}" ${part})
    set_tests_properties(train_${part} PROPERTIES LABELS integration SKIP_RETURN_CODE 77 TIMEOUT 1800)
  endforeach()
endfunction()
if(PSEG_SYSTEM_PYTHON)
  pseg_train_test(train_run_test.py learn batch images resume resume_data stop refuse unknown blow_up full_disk)
  pseg_train_test(train_towers_test.py towers pixels timm forms)
endif()
