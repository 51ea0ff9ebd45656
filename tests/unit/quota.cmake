pseg_add_test(NAME quota SOURCES ${CMAKE_CURRENT_LIST_DIR}/quota_test.c LIBS pseg_cl LABELS unit)
