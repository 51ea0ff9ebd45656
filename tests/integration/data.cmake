find_package(Python3 COMPONENTS Interpreter REQUIRED)
add_test(NAME fetch_refcoco_m
  COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/fetch_refcoco_m_test.py ${PROJECT_SOURCE_DIR})
set_tests_properties(fetch_refcoco_m PROPERTIES LABELS integration SKIP_RETURN_CODE 77 TIMEOUT 120)
