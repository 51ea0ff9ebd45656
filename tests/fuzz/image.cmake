pseg_add_fuzz(NAME image SOURCES ${CMAKE_CURRENT_LIST_DIR}/image_fuzz.c LIBS pseg_image pseg_base
  CORPUS tests/golden/data/images tests/unit/data/image)
