pseg_add_test(NAME queue_redis LABELS integration LIBS pseg_queue TIMEOUT 180
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/queue_redis_test.c ${PROJECT_SOURCE_DIR}/tests/support/redis.c
          ${PROJECT_SOURCE_DIR}/tests/support/queue_cases.c
          ${PROJECT_SOURCE_DIR}/tests/support/queue_cases_client.c
          ${PROJECT_SOURCE_DIR}/tests/support/queue_cases_worker.c)
