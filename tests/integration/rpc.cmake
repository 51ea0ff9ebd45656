# common/rpc against clients of other languages. rpc_gen and the demo service come from tests/unit.
add_executable(rpc_test_server ${CMAKE_CURRENT_LIST_DIR}/rpc_server.c)
_pseg_common(rpc_test_server)
set_target_properties(rpc_test_server PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
target_link_libraries(rpc_test_server PRIVATE pseg_rpc_demo)
# Debian's own python3: python3-grpcio is a package of the distribution.
find_program(PSEG_SYSTEM_PYTHON python3 PATHS /usr/bin NO_DEFAULT_PATH)
if(PSEG_SYSTEM_PYTHON)
  get_target_property(rpc_gen pseg_rpc_demo_proto BINARY_DIR)
  add_test(NAME rpc_clients COMMAND "${PSEG_SYSTEM_PYTHON}" "${CMAKE_CURRENT_LIST_DIR}/rpc_clients_test.py"
           $<TARGET_FILE:rpc_test_server> "${rpc_gen}/rpc_gen/demo.desc")
  set_tests_properties(rpc_clients PROPERTIES LABELS integration SKIP_RETURN_CODE 77 TIMEOUT 120)
endif()
