pseg_add_test(NAME text_tree SOURCES ${CMAKE_CURRENT_LIST_DIR}/text_tree_test.c LIBS pseg_model
  LABELS unit)
