pseg_add_test(NAME tokenizer SOURCES ${CMAKE_CURRENT_LIST_DIR}/tokenizer_test.c LIBS pseg_text
  LABELS unit ARGS own)
add_test(NAME tokenizer_clip COMMAND test_tokenizer clip WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
set_tests_properties(tokenizer_clip PROPERTIES LABELS unit SKIP_RETURN_CODE 77 TIMEOUT 120)
