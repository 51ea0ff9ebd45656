# Build options and the three functions through which every target of the project is declared.

option(PSEG_TESTS "Build the tests" ON)
set(PSEG_SANITIZE OFF CACHE STRING "ON: AddressSanitizer and UndefinedBehaviorSanitizer; thread: ThreadSanitizer")
option(PSEG_WERROR "Treat warnings as errors" ON)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Debug or Release" FORCE)
endif()
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
# Every program lies in one folder of the build tree, so that `pseg` finds its helper programs there
# as it does in the installed tree.
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")
# -O2 without NDEBUG tricks: PSEG_ASSERT decides by PSEG_DEBUG, never by NDEBUG.
set(CMAKE_C_FLAGS_RELEASE "-O2 -g")
set(CMAKE_C_FLAGS_DEBUG "-O0 -g -DPSEG_DEBUG=1")

set(PSEG_WARNINGS -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes
    -Wpointer-arith -Wwrite-strings -Wvla -Wno-missing-field-initializers -Wno-missing-braces
    -Wno-overlength-strings)
if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
  # Texts that are cut to fit are cut on purpose.
  list(APPEND PSEG_WARNINGS -Wno-format-truncation)
endif()
if(PSEG_WERROR)
  list(APPEND PSEG_WARNINGS -Werror)
endif()
if(PSEG_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer)
  add_link_options(-fsanitize=thread)
elseif(PSEG_SANITIZE)
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=undefined
                      -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
endif()

if(PSEG_FUZZ) # coverage of the libraries too guides libFuzzer
  add_compile_options(-fsanitize=fuzzer-no-link)
  add_link_options(-fsanitize=fuzzer-no-link)
endif()

function(_pseg_common target)
  target_compile_definitions(${target} PRIVATE _GNU_SOURCE=1)
  target_compile_options(${target} PRIVATE ${PSEG_WARNINGS} -fno-strict-aliasing)
  target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}" "${PROJECT_BINARY_DIR}/gen")
endfunction()

# pseg_add_library(NAME SOURCES a.c ... DEPS pseg_base ... [PRIVATE_DEPS PkgConfig::X ...])
# A static library. Includes are written from the project's root: "common/base/err.h".
function(pseg_add_library target)
  cmake_parse_arguments(A "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(${target} STATIC ${A_SOURCES})
  _pseg_common(${target})
  target_link_libraries(${target} PUBLIC ${A_DEPS} PRIVATE ${A_PRIVATE_DEPS})
endfunction()

# pseg_add_program(NAME SOURCES ... DEPS ... [DESTINATION dir])   installs into bin unless told otherwise
function(pseg_add_program target)
  cmake_parse_arguments(A "" "DESTINATION" "SOURCES;DEPS" ${ARGN})
  add_executable(${target} ${A_SOURCES})
  _pseg_common(${target})
  target_link_libraries(${target} PRIVATE ${A_DEPS})
  if(NOT A_DESTINATION)
    set(A_DESTINATION "${CMAKE_INSTALL_BINDIR}")
  endif()
  install(TARGETS ${target} RUNTIME DESTINATION "${A_DESTINATION}")
endfunction()

# pseg_add_test(NAME x SOURCES x_test.c LIBS pseg_base ... LABELS unit [TIMEOUT s] [ARGS ...])
# Exit code 77 means skipped, and CTest counts it as such. Tests run in the project's root.
function(pseg_add_test)
  cmake_parse_arguments(A "" "NAME;TIMEOUT" "SOURCES;LIBS;LABELS;ARGS" ${ARGN})
  add_executable(test_${A_NAME} ${A_SOURCES})
  _pseg_common(test_${A_NAME})
  set_target_properties(test_${A_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
  target_link_libraries(test_${A_NAME} PRIVATE ${A_LIBS} PkgConfig::CMOCKA m)
  target_compile_definitions(test_${A_NAME} PRIVATE
      PSEG_TEST_SOURCE_DIR="${PROJECT_SOURCE_DIR}" PSEG_TEST_BINARY_DIR="${PROJECT_BINARY_DIR}"
      PSEG_TEST_DATA_DIR="${PROJECT_SOURCE_DIR}/../shared/data")
  add_test(NAME ${A_NAME} COMMAND test_${A_NAME} ${A_ARGS} WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 120)
  endif()
  set_tests_properties(${A_NAME} PROPERTIES LABELS "${A_LABELS}" SKIP_RETURN_CODE 77 TIMEOUT ${A_TIMEOUT})
endfunction()
