pseg_add_test(NAME validate SOURCES ${CMAKE_CURRENT_LIST_DIR}/validate_test.c LIBS pseg_service LABELS unit)
pseg_add_test(NAME upload_share SOURCES ${CMAKE_CURRENT_LIST_DIR}/upload_share_test.c LIBS pseg_service LABELS unit)
pseg_add_test(NAME held_images SOURCES ${CMAKE_CURRENT_LIST_DIR}/held_images_test.c LIBS pseg_service LABELS unit)
pseg_add_test(NAME result_place SOURCES ${CMAKE_CURRENT_LIST_DIR}/result_place_test.c LIBS pseg_service LABELS unit)
