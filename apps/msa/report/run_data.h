// The files that a demo run leaves in its directory, as one JSON value: what the report shows.
//
//   msa/log.jsonl, dense/log.jsonl   training: a "start" line, "step" lines, an "end" line
//   eval-msa.json, eval-dense.json   held-out files
//   selection.json                   blocks chosen for a sample of queries
//   bench-decode.json                attention time per token by context
//   generate.json                    prompt and continuation
//   info.json, commands.txt          machine, and the commands that made all this
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace openmsa::cli {

/// Members: headline, runs, eval, selection, bench, generation, machine, commands.
/// io::InputError: a file that is missing or does not hold what it should.
nlohmann::ordered_json read_run(const std::filesystem::path& directory);

/// The headline as a short table of text.
std::string summary(const nlohmann::ordered_json& run);

}  // namespace openmsa::cli
