pseg_add_program(pseg-eval
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/eval.c ${CMAKE_CURRENT_LIST_DIR}/eval_print.c
  DEPS pseg_base pseg_program pseg_apps pseg_eval pseg_data pseg_model pseg_cl pseg_image PkgConfig::JANSSON m
  DESTINATION libexec/pseg)
