pseg_add_test(NAME cl SOURCES ${CMAKE_CURRENT_LIST_DIR}/cl_test.c
  LIBS pseg_cl LABELS unit)
