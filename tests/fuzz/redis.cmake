pseg_add_fuzz(NAME redis SOURCES ${CMAKE_CURRENT_LIST_DIR}/redis_fuzz.c LIBS pseg_queue pseg_base PkgConfig::HIREDIS
  CORPUS ${CMAKE_CURRENT_LIST_DIR}/redis_corpus MAX_BYTES 65536)
pseg_add_fuzz(NAME keyfile IN_MEMORY SOURCES ${CMAKE_CURRENT_LIST_DIR}/keyfile_fuzz.c LIBS pseg_base
  CORPUS ${CMAKE_CURRENT_LIST_DIR}/keyfile_corpus MAX_BYTES 4096)
pseg_add_fuzz(NAME redis_url SOURCES ${CMAKE_CURRENT_LIST_DIR}/redis_url_fuzz.c LIBS pseg_queue pseg_base
  PkgConfig::HIREDIS CORPUS ${CMAKE_CURRENT_LIST_DIR}/redis_url_corpus MAX_BYTES 512)
