pseg_add_library(pseg_load SOURCES latency.c load.c DEPS pseg_base pseg_job pseg_rpc pseg_proto Threads::Threads m)
pseg_add_program(pseg-bench SOURCES bench.c bench_engine.c bench_ops.c bench_plot.c bench_service.c bench_service_batch.c
          bench_train.c
  DESTINATION libexec/pseg
  DEPS pseg_base pseg_load pseg_apps pseg_program pseg_job pseg_rpc pseg_proto pseg_train pseg_model pseg_ops pseg_cl Threads::Threads PkgConfig::JANSSON)
