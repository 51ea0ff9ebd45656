pseg_add_program(pseg-data
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/data.c
  DEPS pseg_base pseg_program pseg_data pseg_image PkgConfig::JANSSON
  DESTINATION libexec/pseg)
