foreach(test image image_loaders image_prepare image_resize image_memory)
  pseg_add_test(NAME ${test} SOURCES ${CMAKE_CURRENT_LIST_DIR}/${test}_test.c LIBS pseg_image
    Threads::Threads m LABELS unit TIMEOUT 240)
endforeach()
# 600 MB for a few seconds: alone, and not under the sanitizers.
add_test(NAME image_large COMMAND test_image_memory large WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
set_tests_properties(image_large PROPERTIES LABELS "unit;slow" TIMEOUT 240 RUN_SERIAL ON)
pseg_add_test(NAME image_bench SOURCES ${CMAKE_CURRENT_LIST_DIR}/../bench/image_bench.c LIBS pseg_image LABELS bench)
