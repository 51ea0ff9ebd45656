pseg_add_test(NAME job SOURCES ${CMAKE_CURRENT_LIST_DIR}/job_test.c LIBS pseg_job LABELS unit)
