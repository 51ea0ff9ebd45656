pseg_add_test(NAME show SOURCES ${CMAKE_CURRENT_LIST_DIR}/show_test.c LIBS pseg_show LABELS unit)
