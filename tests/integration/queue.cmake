foreach(test queue_redis queue_random)
  pseg_add_test(NAME ${test} LABELS integration LIBS pseg_queue TIMEOUT 240
    SOURCES ${CMAKE_CURRENT_LIST_DIR}/${test}_test.c ${PROJECT_SOURCE_DIR}/tests/support/redis.c
            ${PROJECT_SOURCE_DIR}/tests/support/queue_cases.c
            ${PROJECT_SOURCE_DIR}/tests/support/queue_cases_client.c
            ${PROJECT_SOURCE_DIR}/tests/support/queue_cases_worker.c
            ${PROJECT_SOURCE_DIR}/tests/support/queue_cases_order.c)
endforeach()
pseg_add_test(NAME queue_bench LABELS bench LIBS pseg_queue TIMEOUT 120
  SOURCES ${PROJECT_SOURCE_DIR}/tests/bench/queue_bench.c ${PROJECT_SOURCE_DIR}/tests/support/redis.c)
