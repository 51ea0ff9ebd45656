# Models that come with PSEG: installed beside it, or taken from the source in a build tree.
pseg_add_library(pseg_apps SOURCES engine_options.c DEPS pseg_base pseg_serve)
target_compile_definitions(pseg_apps PRIVATE
  PSEG_MODEL_SOURCE_DIR="${PROJECT_SOURCE_DIR}/deploy/models" PSEG_BUILD_BIN_DIR="${CMAKE_RUNTIME_OUTPUT_DIRECTORY}/")
pseg_add_program(pseg-worker SOURCES worker.c compiler.c respawn.c worker_metrics.c worker_trace.c
  DEPS pseg_base pseg_metrics pseg_trace pseg_queue pseg_serve pseg_apps)
pseg_add_program(pseg-run SOURCES run.c DESTINATION libexec/pseg
  DEPS pseg_base pseg_program pseg_serve pseg_apps pseg_show pseg_mask pseg_image pseg_proto PkgConfig::JANSSON)
pseg_add_program(pseg-devices SOURCES devices.c DESTINATION libexec/pseg DEPS pseg_base pseg_program pseg_ops PkgConfig::JANSSON)
# Sought from the programs as ../share/pseg/models, so that the installed tree can be moved.
install(DIRECTORY "${PROJECT_SOURCE_DIR}/deploy/models/" DESTINATION share/pseg/models)
