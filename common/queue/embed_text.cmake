# Writes the text of IN as the bytes of `static const char NAME[]` into OUT, and NAME_REVISION from its
# line "REVISION = n".
file(READ "${IN}" text)
if(NOT text MATCHES "REVISION = ([0-9]+)")
  message(FATAL_ERROR "${IN}: no line REVISION = n")
endif()
set(revision "${CMAKE_MATCH_1}")
file(READ "${IN}" hex HEX)
string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
string(REGEX REPLACE "(................................................................................)" "\\1\n" bytes "${bytes}")
file(WRITE "${OUT}" "enum { ${NAME}_REVISION = ${revision} };\nstatic const char ${NAME}[] = {\n${bytes}0x00};\n")
