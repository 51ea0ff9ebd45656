pseg_add_library(pseg_program SOURCES program.c DEPS pseg_base Threads::Threads PkgConfig::JANSSON)
