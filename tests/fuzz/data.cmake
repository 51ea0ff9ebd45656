set(here ${CMAKE_CURRENT_LIST_DIR})
set(sets tests/unit/data/sets)
pseg_add_fuzz(NAME parquet SOURCES ${here}/parquet_fuzz.c LIBS pseg_data pseg_base CORPUS ${sets}/parquet ${here}/parquet_corpus
  MUTATIONS 200 MAX_BYTES 65536)
pseg_add_fuzz(NAME pickle SOURCES ${here}/pickle_fuzz.c LIBS pseg_data pseg_base CORPUS ${sets}/refcoco
  MAX_BYTES 65536)
pseg_add_fuzz(NAME dataset IN_MEMORY SOURCES ${here}/dataset_fuzz.c LIBS pseg_data pseg_base
  CORPUS ${here}/dataset_corpus ${sets}/coco MUTATIONS 200 MAX_BYTES 65536)
foreach(target fuzz_dataset fuzz_dataset_libfuzzer)
  if(TARGET ${target})
    target_link_options(${target} PRIVATE -Wl,--wrap=spool_open,--wrap=spool_close)
  endif()
endforeach()
