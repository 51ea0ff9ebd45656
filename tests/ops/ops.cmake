pseg_add_test(NAME ops SOURCES ${CMAKE_CURRENT_LIST_DIR}/ops_test.c
  LIBS pseg_ops pseg_test_support LABELS ops TIMEOUT 300)
