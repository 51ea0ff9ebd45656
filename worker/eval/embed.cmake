# Writes the bytes of IN as `static const char NAME[]` into OUT.
file(READ "${IN}" hex HEX)
string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
string(REGEX REPLACE "(................................................................................)" "\\1\n" bytes "${bytes}")
file(WRITE "${OUT}" "static const char ${NAME}[] = {\n${bytes}0x00};\n")
