# embed_text(TARGET NAME FILE): compiles the text of FILE into TARGET as `extern const std::string_view NAME` in
# namespace openmsa::cli::text.
function(embed_text target name file)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
  file(READ ${file} text)
  set(source ${CMAKE_CURRENT_BINARY_DIR}/${name}.cc)
  file(CONFIGURE OUTPUT ${source} @ONLY NEWLINE_STYLE UNIX CONTENT
"#include <string_view>
namespace openmsa::cli::text {
extern const std::string_view @name@;
const std::string_view @name@ = R\"openmsa_text(@text@)openmsa_text\";
}
")
  target_sources(${target} PRIVATE ${source})
endfunction()
