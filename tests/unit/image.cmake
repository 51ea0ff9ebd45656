foreach(test image image_resize)
  pseg_add_test(NAME ${test} SOURCES ${CMAKE_CURRENT_LIST_DIR}/${test}_test.c LIBS pseg_image
    Threads::Threads m LABELS unit TIMEOUT 240)
  target_compile_definitions(test_${test} PRIVATE PSEG_TEST_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
endforeach()
