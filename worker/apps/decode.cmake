pseg_add_program(pseg-decode SOURCES ${CMAKE_CURRENT_LIST_DIR}/decode.c DESTINATION libexec/pseg DEPS pseg_decode_child)
