// What a command does otherwise than its input may have meant, as a line on stderr.
#pragma once

#include <cstdio>
#include <string>

namespace openmsa::cli {

inline void print_note(const std::string& note) { std::fprintf(stderr, "msa: note: %s\n", note.c_str()); }

}  // namespace openmsa::cli
