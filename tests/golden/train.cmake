pseg_add_test(NAME golden_train SOURCES ${CMAKE_CURRENT_LIST_DIR}/train_test.c ${CMAKE_CURRENT_LIST_DIR}/train_support.c
  LIBS pseg_golden pseg_train LABELS golden TIMEOUT 300)
pseg_add_test(NAME golden_train_equal SOURCES ${CMAKE_CURRENT_LIST_DIR}/train_equal_test.c
  LIBS pseg_golden pseg_train LABELS golden TIMEOUT 300)
pseg_add_test(NAME golden_train_whole
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/train_whole_test.c ${CMAKE_CURRENT_LIST_DIR}/train_support.c
  LIBS pseg_golden pseg_train LABELS golden TIMEOUT 300)
