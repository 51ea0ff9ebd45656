set(here ${CMAKE_CURRENT_LIST_DIR})
pseg_add_fuzz(NAME scaler SOURCES ${here}/scaler_fuzz.c LIBS pseg_service pseg_rpc pseg_proto pseg_base
  CORPUS ${here}/scaler_corpus MAX_BYTES 4096)
pseg_add_fuzz(NAME trace_context SOURCES ${here}/trace_context_fuzz.c LIBS pseg_base
  CORPUS ${here}/trace_context_corpus MAX_BYTES 256)
pseg_add_fuzz(NAME features SOURCES ${here}/features_fuzz.c LIBS pseg_serve pseg_base CORPUS ${here}/features_corpus
  MAX_BYTES 256)
