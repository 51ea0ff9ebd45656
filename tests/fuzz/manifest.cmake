pseg_add_fuzz(NAME manifest SOURCES ${CMAKE_CURRENT_LIST_DIR}/manifest_fuzz.c LIBS pseg_batch
              CORPUS ${CMAKE_CURRENT_LIST_DIR}/manifest_corpus)
