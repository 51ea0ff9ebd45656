pseg_add_program(pseg-train SOURCES train.c train_begin.c train_data.c train_options.c train_print.c
  DESTINATION libexec/pseg DEPS pseg_base pseg_apps pseg_program pseg_train PkgConfig::JANSSON)
