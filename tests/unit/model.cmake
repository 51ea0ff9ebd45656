pseg_add_test(NAME model SOURCES ${CMAKE_CURRENT_LIST_DIR}/model_test.c LIBS pseg_model LABELS unit)
pseg_add_test(NAME packed SOURCES ${CMAKE_CURRENT_LIST_DIR}/packed_test.c LIBS pseg_model LABELS unit)
