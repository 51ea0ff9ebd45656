# What the tests of a queue on Redis share, the cases of every queue among it.
file(GLOB queue_cases CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/support/queue_cases*.c
     ${PROJECT_SOURCE_DIR}/tests/support/queue_own.c ${PROJECT_SOURCE_DIR}/tests/support/redis.c)
foreach(test queue_redis queue_mend queue_mend_pack queue_links queue_parts queue_random)
  pseg_add_test(NAME ${test} LABELS integration LIBS pseg_queue TIMEOUT 240
    SOURCES ${CMAKE_CURRENT_LIST_DIR}/${test}_test.c ${queue_cases})
endforeach()
pseg_add_test(NAME queue_sentinel LABELS integration LIBS pseg_queue TIMEOUT 300
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/queue_sentinel_test.c ${queue_cases})
pseg_add_test(NAME queue_clock LABELS integration LIBS pseg_queue TIMEOUT 120
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/queue_clock_test.c ${queue_cases})
# A library in front of Redis' libc, by LD_PRELOAD: sanitizers would have to be first themselves.
if(NOT PSEG_SANITIZE)
  add_library(pseg_test_clock_jump MODULE ${PROJECT_SOURCE_DIR}/tests/support/clock_jump.c)
  target_compile_definitions(test_queue_clock PRIVATE
    PSEG_TEST_CLOCK_JUMP="$<TARGET_FILE:pseg_test_clock_jump>")
  add_dependencies(test_queue_clock pseg_test_clock_jump)
endif()
pseg_add_test(NAME queue_bench LABELS bench LIBS pseg_queue TIMEOUT 120
  SOURCES ${PROJECT_SOURCE_DIR}/tests/bench/queue_bench.c ${PROJECT_SOURCE_DIR}/tests/support/redis.c)
