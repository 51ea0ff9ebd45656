pseg_add_library(pseg_golden SOURCES ${CMAKE_CURRENT_LIST_DIR}/golden.c DEPS pseg_model)
target_compile_definitions(pseg_golden PRIVATE PSEG_TEST_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
pseg_add_test(NAME golden_encoders SOURCES ${CMAKE_CURRENT_LIST_DIR}/encoders_test.c
  LIBS pseg_golden LABELS golden TIMEOUT 300)
pseg_add_test(NAME golden_pseg SOURCES ${CMAKE_CURRENT_LIST_DIR}/pseg_test.c
  LIBS pseg_golden pseg_image LABELS golden TIMEOUT 300)
pseg_add_test(NAME golden_open SOURCES ${CMAKE_CURRENT_LIST_DIR}/open_test.c
  LIBS pseg_golden LABELS golden TIMEOUT 300)
pseg_add_test(NAME golden_precision SOURCES ${CMAKE_CURRENT_LIST_DIR}/precision_test.c
  LIBS pseg_golden pseg_mask pseg_scenes LABELS golden slow TIMEOUT 300)
pseg_add_test(NAME golden_packed SOURCES ${CMAKE_CURRENT_LIST_DIR}/packed_test.c
  LIBS pseg_golden LABELS golden TIMEOUT 300)
pseg_add_test(NAME golden_towers SOURCES ${CMAKE_CURRENT_LIST_DIR}/towers_test.c
  LIBS pseg_golden LABELS golden TIMEOUT 300)
pseg_add_test(NAME golden_tuned_towers SOURCES ${CMAKE_CURRENT_LIST_DIR}/tuned_towers_test.c
  ${CMAKE_CURRENT_LIST_DIR}/tuned_choice.c
  LIBS pseg_model pseg_ops pseg_train LABELS golden TIMEOUT 120)
pseg_add_test(NAME golden_features SOURCES ${CMAKE_CURRENT_LIST_DIR}/features_test.c
  LIBS pseg_golden pseg_data pseg_scenes pseg_mask pseg_image LABELS golden TIMEOUT 300)
pseg_add_test(NAME golden_grads
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/grads_test.c ${CMAKE_CURRENT_LIST_DIR}/grads_file.c
  LIBS pseg_golden pseg_ops pseg_test_support LABELS golden TIMEOUT 300)
target_compile_definitions(test_golden_grads PRIVATE PSEG_TEST_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
pseg_add_test(NAME golden_fidelity
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/fidelity_test.c ${CMAKE_CURRENT_LIST_DIR}/fidelity_data.c
          ${CMAKE_CURRENT_LIST_DIR}/fidelity_reference.c ${PROJECT_SOURCE_DIR}/tests/ops/reference.c
  LIBS pseg_golden pseg_mask pseg_scenes pseg_data pseg_image LABELS golden slow TIMEOUT 600)
target_link_options(test_golden_fidelity PRIVATE "LINKER:--wrap=pseg_op_run")
