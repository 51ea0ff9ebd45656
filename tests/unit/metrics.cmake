pseg_add_test(NAME metrics SOURCES ${CMAKE_CURRENT_LIST_DIR}/metrics_test.c LIBS pseg_metrics Threads::Threads LABELS unit)
