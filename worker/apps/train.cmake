pseg_add_program(pseg-train SOURCES train.c DESTINATION libexec/pseg
  DEPS pseg_base pseg_apps pseg_program pseg_train PkgConfig::JANSSON)
