pseg_add_test(NAME cl SOURCES ${CMAKE_CURRENT_LIST_DIR}/cl_test.c
  LIBS pseg_cl LABELS unit)
pseg_add_test(NAME cl_rehearsal SOURCES ${CMAKE_CURRENT_LIST_DIR}/cl_rehearsal_test.c
  LIBS pseg_cl LABELS unit)
