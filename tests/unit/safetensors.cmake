pseg_add_test(NAME safetensors SOURCES ${CMAKE_CURRENT_LIST_DIR}/safetensors_test.c LIBS pseg_model
  LABELS unit)
