pseg_add_test(NAME scenes SOURCES ${CMAKE_CURRENT_LIST_DIR}/scenes_test.c LIBS pseg_scenes LABELS unit)
