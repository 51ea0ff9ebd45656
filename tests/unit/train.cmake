pseg_add_test(NAME train SOURCES ${CMAKE_CURRENT_LIST_DIR}/train_test.c LIBS pseg_train LABELS unit)
pseg_add_test(NAME train_data SOURCES ${CMAKE_CURRENT_LIST_DIR}/train_data_test.c LIBS pseg_train pseg_image LABELS unit)
