pseg_add_test(NAME half SOURCES ${CMAKE_CURRENT_LIST_DIR}/half_test.c LIBS pseg_base LABELS unit)
