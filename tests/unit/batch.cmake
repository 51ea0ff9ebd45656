pseg_add_test(NAME batch_plan SOURCES ${CMAKE_CURRENT_LIST_DIR}/batch_plan_test.c LIBS pseg_batch LABELS unit
  TIMEOUT 600)
pseg_add_test(NAME batch_output SOURCES ${CMAKE_CURRENT_LIST_DIR}/batch_output_test.c LIBS pseg_batch LABELS unit)
