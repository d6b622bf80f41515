# What `cmake --install` puts into a prefix: headers, both libraries, and how CMake and pkg-config find them. Everything is
# found relative to where it lies, so that a prefix can be moved.
include(CMakePackageConfigHelpers)

set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/openmsa)
install(DIRECTORY include/openmsa DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
foreach(kind static shared)
  set_target_properties(openmsa_${kind} PROPERTIES EXPORT_NAME ${kind})
  install(TARGETS openmsa_${kind} EXPORT openmsa-${kind} DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(EXPORT openmsa-${kind} NAMESPACE openmsa:: DESTINATION ${package_folder})
endforeach()
if(OPENMSA_NCCL)
  install(TARGETS openmsa_nccl EXPORT openmsa-nccl DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(EXPORT openmsa-nccl NAMESPACE openmsa:: DESTINATION ${package_folder})
endif()
configure_package_config_file(cmake/openmsa-config.cmake.in ${PROJECT_BINARY_DIR}/openmsa-config.cmake
  INSTALL_DESTINATION ${package_folder})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/openmsa-config-version.cmake
  COMPATIBILITY SameMinorVersion)  # before 1.0 a minor version may change the API
install(FILES ${PROJECT_BINARY_DIR}/openmsa-config.cmake ${PROJECT_BINARY_DIR}/openmsa-config-version.cmake
  DESTINATION ${package_folder})

# The static library's own needs, for those who link it without CMake.
set(pc_libs_private "-lhwy -ltbb -lstdc++ -lm")
if(OPENMSA_CUDA)
  list(GET CUDAToolkit_LIBRARY_DIR 0 cuda_libraries)
  string(APPEND pc_libs_private " -L${cuda_libraries} -lcudart_static -ldl -lrt -lpthread")
endif()
file(RELATIVE_PATH pc_to_prefix ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
configure_file(cmake/openmsa.pc.in ${PROJECT_BINARY_DIR}/openmsa.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/openmsa.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
