pseg_add_program(pseg-scenes
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/scenes.c
  DEPS pseg_scenes pseg_base pseg_program PkgConfig::JANSSON
  DESTINATION libexec/pseg)
