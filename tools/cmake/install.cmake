# cmake --install: program, library, headers and golden cases. cpack: the same as a .deb.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# Ops, models and methods register themselves before main(): whoever links the archive must take all
# of it, or they vanish silently. pupil::pupil says so.
add_library(pupil_whole INTERFACE)
target_link_libraries(pupil_whole INTERFACE $<INSTALL_INTERFACE:$<LINK_LIBRARY:WHOLE_ARCHIVE,pupil::archive>>)
# Inline functions of the headers are compiled as in the library, so that both give the same bits.
target_compile_options(pupil INTERFACE ${PUPIL_CODE_FLAGS})
target_compile_features(pupil INTERFACE cxx_std_20)
target_include_directories(pupil INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
set_target_properties(pupil PROPERTIES EXPORT_NAME archive)
set_target_properties(pupil_whole PROPERTIES EXPORT_NAME pupil)

install(TARGETS pupil_program RUNTIME)
install(TARGETS pupil pupil_whole EXPORT pupilTargets ARCHIVE)
install(DIRECTORY tensor autograd nn data models methods tools DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/pupil
        FILES_MATCHING PATTERN "*.h" REGEX "/tools/[^/]*/" EXCLUDE)
install(DIRECTORY tools/recipes tools/reproduce DESTINATION ${CMAKE_INSTALL_DATADIR}/pupil)
install(DIRECTORY tests/golden DESTINATION ${CMAKE_INSTALL_DATADIR}/pupil)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(PUPIL_CMAKE_FOLDER ${CMAKE_INSTALL_LIBDIR}/cmake/pupil)
install(EXPORT pupilTargets NAMESPACE pupil:: DESTINATION ${PUPIL_CMAKE_FOLDER})
configure_package_config_file(tools/cmake/pupilConfig.cmake.in ${PROJECT_BINARY_DIR}/pupilConfig.cmake
                              INSTALL_DESTINATION ${PUPIL_CMAKE_FOLDER})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/pupilConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/pupilConfig.cmake ${PROJECT_BINARY_DIR}/pupilConfigVersion.cmake
        DESTINATION ${PUPIL_CMAKE_FOLDER})

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_CONTACT "The Pupil authors")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "knowledge transfer from trained neural networks to small ones")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
# Any build of OpenBLAS works; this one shares our threads.
set(CPACK_DEBIAN_PACKAGE_DEPENDS libopenblas0-openmp)
# For programs that are built against the library.
set(CPACK_DEBIAN_PACKAGE_SUGGESTS "cmake, g++, libdnnl-dev, libopenblas-openmp-dev, ocl-icd-opencl-dev, libfmt-dev, libtomlplusplus-dev, libjpeg-dev, libutf8proc-dev, pkg-config, zlib1g-dev")
include(CPack)
