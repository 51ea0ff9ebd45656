pseg_add_test(NAME serve SOURCES ${CMAKE_CURRENT_LIST_DIR}/serve_test.c LIBS pseg_serve Threads::Threads m LABELS unit TIMEOUT 600)
