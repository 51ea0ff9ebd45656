pseg_add_test(NAME scale SOURCES ${CMAKE_CURRENT_LIST_DIR}/scale_test.c LIBS pseg_service LABELS unit)
# The metric through a simulated day; its plot is in the docs.
pseg_add_test(NAME autoscale LABELS unit LIBS pseg_service ARGS ${PROJECT_BINARY_DIR}/autoscale.svg
  SOURCES ${PROJECT_SOURCE_DIR}/tests/bench/autoscale_sim.c
          ${PROJECT_SOURCE_DIR}/tests/bench/autoscale_plot.c)
add_test(NAME autoscale_plot COMMAND ${CMAKE_COMMAND} -E compare_files ${PROJECT_BINARY_DIR}/autoscale.svg
  ${PROJECT_SOURCE_DIR}/docs/autoscale.svg)
set_tests_properties(autoscale PROPERTIES FIXTURES_SETUP autoscale_drawn)
set_tests_properties(autoscale_plot PROPERTIES LABELS unit FIXTURES_REQUIRED autoscale_drawn)
