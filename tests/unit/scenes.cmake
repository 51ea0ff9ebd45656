pseg_add_test(NAME scenes SOURCES ${CMAKE_CURRENT_LIST_DIR}/scenes_test.c LIBS pseg_scenes pseg_mask LABELS unit)
add_test(NAME scenes_program
  COMMAND sh ${CMAKE_CURRENT_LIST_DIR}/scenes_program.sh $<TARGET_FILE:pseg-scenes>)
set_tests_properties(scenes_program PROPERTIES LABELS unit TIMEOUT 60)
