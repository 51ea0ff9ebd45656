# cpack -G DEB --config build/release/CPackConfig.cmake: one Debian package with programs, models, units.
option(PSEG_SYSTEMD "Install systemd units and /etc/pseg" OFF)
if(PSEG_SYSTEMD)
  install(FILES deploy/systemd/pseg-scheduler.service "deploy/systemd/pseg-worker@.service"
          DESTINATION lib/systemd/system)
  install(FILES deploy/systemd/scheduler.conf deploy/systemd/worker.conf DESTINATION /etc/pseg)
endif()

install(FILES deploy/proxy/haproxy.cfg DESTINATION share/pseg/proxy)
install(FILES deploy/redis/users.acl deploy/redis/start.sh DESTINATION share/pseg/redis)

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME pseg)
set(CPACK_PACKAGE_CONTACT "PSEG maintainers")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_PACKAGE_DESCRIPTION "An image and a phrase go in; a mask with a predicted IoU comes out.
A scheduler accepts jobs over gRPC and keeps them in Redis, workers run them
on any OpenCL device. Programs, a small model and systemd units.")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS "pocl-opencl-icd | opencl-icd, redis-server (>= 5:7)")
if(PSEG_SYSTEMD)
  set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA "${PROJECT_SOURCE_DIR}/deploy/systemd/conffiles;${PROJECT_SOURCE_DIR}/deploy/systemd/postinst;${PROJECT_SOURCE_DIR}/deploy/systemd/prerm")
  set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
endif()
include(CPack)
