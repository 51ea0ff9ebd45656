pseg_add_test(NAME scale SOURCES ${CMAKE_CURRENT_LIST_DIR}/scale_test.c LIBS pseg_service LABELS unit)
