pseg_add_test(NAME data SOURCES ${CMAKE_CURRENT_LIST_DIR}/data_test.c LIBS pseg_data pseg_scenes pseg_mask LABELS unit)
pseg_add_test(NAME data_arrays SOURCES ${CMAKE_CURRENT_LIST_DIR}/data_arrays_test.c LIBS pseg_data pseg_image pseg_mask LABELS unit)
pseg_add_test(NAME data_features SOURCES ${CMAKE_CURRENT_LIST_DIR}/data_features_test.c LIBS pseg_data LABELS unit)
