pseg_add_test(NAME eval SOURCES ${CMAKE_CURRENT_LIST_DIR}/eval_test.c LIBS pseg_eval LABELS unit)
pseg_add_test(NAME eval_plan SOURCES ${CMAKE_CURRENT_LIST_DIR}/eval_plan_test.c LIBS pseg_eval LABELS unit)
