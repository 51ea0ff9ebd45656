pseg_add_test(NAME validate SOURCES ${CMAKE_CURRENT_LIST_DIR}/validate_test.c LIBS pseg_service LABELS unit)
