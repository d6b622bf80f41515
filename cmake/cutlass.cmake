# CUTLASS and CuTe headers, as the interface target cutlass_headers. In this order: CUTLASS_DIR (variable or environment),
# the Python package nvidia-cutlass, whose wheel carries the headers, where it is installed, the same downloaded by pip
# (a build requirement in pyproject.toml: an isolated build has no other), then the git repository.
set(CUTLASS_DIR "$ENV{CUTLASS_DIR}" CACHE PATH "CUTLASS checkout to use instead of a downloaded one")
set(OPENMSA_CUTLASS 4.2.0)

set(cutlass_package nvidia-cutlass==${OPENMSA_CUTLASS}.0)
set(cutlass_package_include cutlass_library/source/include)

# openmsa_installed_cutlass(OUT_FOLDER): the headers of the installed package, or empty.
function(openmsa_installed_cutlass out)
  execute_process(COMMAND ${Python3_EXECUTABLE} -c "from importlib.metadata import distribution
package = distribution('nvidia-cutlass')
if package.version == '${OPENMSA_CUTLASS}.0': print(package.locate_file('${cutlass_package_include}'), end='')"
    OUTPUT_VARIABLE include ERROR_QUIET)
  set(${out} "${include}" PARENT_SCOPE)
endfunction()

# openmsa_downloaded_cutlass(OUT_FOLDER): the headers of the package in the build folder, or empty.
function(openmsa_downloaded_cutlass out)
  set(${out} "" PARENT_SCOPE)
  set(folder ${PROJECT_BINARY_DIR}/_deps/nvidia-cutlass-${OPENMSA_CUTLASS})
  if(NOT EXISTS ${folder}/${cutlass_package_include}/cute/tensor.hpp)
    message(STATUS "Downloading the CUTLASS headers (PyPI: ${cutlass_package})")
    execute_process(COMMAND ${Python3_EXECUTABLE} -m pip download --quiet --no-deps --disable-pip-version-check
                            --dest ${folder} ${cutlass_package}
                    RESULT_VARIABLE failed ERROR_VARIABLE reason)
    file(GLOB wheel ${folder}/nvidia_cutlass-*.whl)
    if(failed OR NOT wheel)
      message(STATUS "${cutlass_package} was not downloaded: ${reason}")
      return()
    endif()
    file(ARCHIVE_EXTRACT INPUT ${wheel} DESTINATION ${folder} PATTERNS ${cutlass_package_include})
  endif()
  set(${out} ${folder}/${cutlass_package_include} PARENT_SCOPE)
endfunction()

set(cutlass_include "")
if(CUTLASS_DIR)
  set(cutlass_include ${CUTLASS_DIR}/include)
else()
  find_package(Python3 QUIET COMPONENTS Interpreter)
  if(Python3_FOUND)
    openmsa_installed_cutlass(cutlass_include)
    if(NOT cutlass_include)
      openmsa_downloaded_cutlass(cutlass_include)
    endif()
  endif()
  if(NOT cutlass_include)
    include(FetchContent)
    FetchContent_Declare(cutlass GIT_REPOSITORY https://github.com/NVIDIA/cutlass.git
                                 GIT_TAG v${OPENMSA_CUTLASS} GIT_SHALLOW TRUE SOURCE_SUBDIR none)
    FetchContent_MakeAvailable(cutlass)
    set(cutlass_include ${cutlass_SOURCE_DIR}/include)
  endif()
endif()
if(NOT EXISTS ${cutlass_include}/cute/tensor.hpp)
  message(FATAL_ERROR "No CUTLASS headers in ${cutlass_include}; set CUTLASS_DIR, or OPENMSA_CUDA=OFF to build without")
endif()
add_library(cutlass_headers INTERFACE)
target_include_directories(cutlass_headers SYSTEM INTERFACE ${cutlass_include})
