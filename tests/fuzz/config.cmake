set(here ${CMAKE_CURRENT_LIST_DIR})
pseg_add_fuzz(NAME proto SOURCES ${here}/proto_fuzz.c LIBS pseg_service pseg_rpc pseg_proto pseg_base
  CORPUS ${here}/proto_corpus MAX_BYTES 65536)
pseg_add_fuzz(NAME job SOURCES ${here}/job_fuzz.c LIBS pseg_service pseg_proto pseg_base
  CORPUS ${here}/job_corpus MAX_BYTES 65536)
pseg_add_fuzz(NAME open_inference SOURCES ${here}/open_inference_fuzz.c LIBS pseg_service pseg_proto pseg_base
  CORPUS ${here}/open_inference_corpus MAX_BYTES 65536)
pseg_add_fuzz(NAME rle SOURCES ${here}/rle_fuzz.c LIBS pseg_mask pseg_base CORPUS ${here}/rle_corpus MAX_BYTES 4096)
pseg_add_fuzz(NAME safetensors IN_MEMORY SOURCES ${here}/safetensors_fuzz.c LIBS pseg_model pseg_base
  CORPUS ${here}/safetensors_corpus MAX_BYTES 65536)
set(models tests/golden/data/models)
pseg_add_fuzz(NAME config IN_MEMORY SOURCES ${here}/config_fuzz.c LIBS pseg_model pseg_base MAX_BYTES 65536 CORPUS
  ${models}/dinov2_reg_tiny/config.json ${models}/dinov2_swiglu_tiny/config.json ${models}/vit_tiny_hf/config.json
  ${models}/clip_text_tiny/config.json ${models}/clip_legacy_tiny/config.json ${models}/sam_tiny/config.json
  ${models}/pseg_tokens/pseg.json ${models}/pseg_crop/vision/preprocessor_config.json ${here}/config_corpus)
pseg_add_fuzz(NAME config_file IN_MEMORY SOURCES ${here}/config_file_fuzz.c LIBS pseg_base CORPUS ${here}/config_file_corpus
  MAX_BYTES 65536)
pseg_add_fuzz(NAME tokenizer IN_MEMORY SOURCES ${here}/tokenizer_fuzz.c LIBS pseg_text pseg_base
  CORPUS ${here}/tokenizer_corpus MAX_BYTES 65536)
pseg_add_fuzz(NAME utf8 SOURCES ${here}/config_utf8_fuzz.c LIBS pseg_base CORPUS ${here}/config_utf8_corpus
  MAX_BYTES 4096)
pseg_add_fuzz(NAME packed IN_MEMORY SOURCES ${here}/packed_fuzz.c LIBS pseg_model pseg_base CORPUS ${here}/packed_corpus
  MAX_BYTES 65536)
