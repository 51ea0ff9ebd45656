pseg_add_test(NAME mask SOURCES ${CMAKE_CURRENT_LIST_DIR}/mask_test.c LIBS pseg_mask pseg_image LABELS unit)
pseg_add_test(NAME mask_polygon SOURCES ${CMAKE_CURRENT_LIST_DIR}/mask_polygon_test.c LIBS pseg_mask LABELS unit)
pseg_add_test(NAME mask_bench SOURCES ${CMAKE_CURRENT_LIST_DIR}/../bench/mask_bench.c LIBS pseg_mask LABELS bench)
