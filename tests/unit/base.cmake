pseg_add_test(NAME base SOURCES ${CMAKE_CURRENT_LIST_DIR}/base_test.c LIBS pseg_base LABELS unit)
pseg_add_test(NAME conf SOURCES ${CMAKE_CURRENT_LIST_DIR}/conf_test.c LIBS pseg_base LABELS unit)
pseg_add_test(NAME compare SOURCES ${CMAKE_CURRENT_LIST_DIR}/compare_test.c LIBS pseg_test_support LABELS unit)
pseg_add_test(NAME trace_context SOURCES ${CMAKE_CURRENT_LIST_DIR}/trace_context_test.c LIBS pseg_base LABELS unit)
