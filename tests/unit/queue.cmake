foreach(test queue queue_replies)
  pseg_add_test(NAME ${test} LABELS unit LIBS pseg_queue
    SOURCES ${CMAKE_CURRENT_LIST_DIR}/${test}_test.c
            ${PROJECT_SOURCE_DIR}/tests/support/queue_cases.c
            ${PROJECT_SOURCE_DIR}/tests/support/queue_cases_client.c
            ${PROJECT_SOURCE_DIR}/tests/support/queue_cases_worker.c
            ${PROJECT_SOURCE_DIR}/tests/support/queue_cases_order.c
            ${PROJECT_SOURCE_DIR}/tests/support/queue_cases_backlog.c
            ${PROJECT_SOURCE_DIR}/tests/support/queue_cases_events.c
            ${PROJECT_SOURCE_DIR}/tests/support/queue_cases_estimate.c
            ${PROJECT_SOURCE_DIR}/tests/support/queue_cases_batch.c
            ${PROJECT_SOURCE_DIR}/tests/support/queue_cases_features.c
            ${PROJECT_SOURCE_DIR}/tests/support/queue_cases_near.c
            ${PROJECT_SOURCE_DIR}/tests/support/queue_cases_pack.c)
endforeach()
