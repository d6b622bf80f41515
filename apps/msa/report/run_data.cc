#include "msa/report/run_data.h"

#include <cstdarg>
#include <cstdio>
#include <sstream>
#include <utility>

#include "io/error.h"
#include "io/json_file.h"

namespace openmsa::cli {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;
namespace fs = std::filesystem;

/// A line of a log: one JSON object.
json read_event(const std::string& line) {
  json event = io::parse_json(line);
  if (!event.is_object()) throw io::InputError("expected one JSON object per line");
  return event;
}

/// {"start": {...}, "steps": [...], "end": {...}}
json parse_log(const std::string& text) {
  json log = {{"start", nullptr}, {"steps", json::array()}, {"end", nullptr}};
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    json row = read_event(line);
    const std::string event = row.value("event", "");
    if (event == "step") {
      log["steps"].push_back(std::move(row));
    } else if (event == "start" || event == "end") {
      log[event] = std::move(row);
    }
  }
  if (log["start"].is_null() || log["end"].is_null() || log["steps"].empty()) {
    throw io::InputError("the training run is not complete");
  }
  return log;
}

json read_log(const fs::path& path) {
  const std::string text = io::read_text(path);
  try {
    return parse_log(text);
  } catch (const io::InputError& error) {
    throw io::InputError(path.string() + ": " + error.what());
  }
}

/// First and last step at which `field` was measured.
std::pair<double, double> ends_of(const json& steps, const std::string& field) {
  const json* first = nullptr;
  const json* last = nullptr;
  for (const json& step : steps) {
    if (!step.contains(field)) continue;
    if (!first) first = &step[field];
    last = &step[field];
  }
  if (!first) throw io::InputError("the training log has no '" + field + "'");
  return {first->get<double>(), last->get<double>()};
}

ordered_json bench_point(const json& row) {
  return {{"context", row.at("context")},
          {"sparse_ms", row.at("sparse").at("median_ms")},
          {"index_ms", row.at("index").at("median_ms")},
          {"attend_ms", row.at("attend").at("median_ms")},
          {"dense_ms", row.at("dense").at("median_ms")}};
}

ordered_json headline(const ordered_json& run) {
  const json msa = run["runs"]["msa"];
  const json dense = run["runs"]["dense"];
  const double bits_msa = run["eval"]["msa"].at("bits_per_byte");
  const double bits_dense = run["eval"]["dense"].at("bits_per_byte");
  const auto [block_first, block_last] = ends_of(msa["steps"], "block_recall");
  const auto [score_first, score_last] = ends_of(msa["steps"], "score_recall");
  const auto [kl_first, kl_last] = ends_of(msa["steps"], "kl_loss");
  const json results = run["bench"].at("results");
  if (results.empty()) throw io::InputError("the decode measurement has no results");
  return {{"parameters_msa", msa["start"].at("parameters")},
          {"parameters_dense", dense["start"].at("parameters")},
          {"tokens", msa["steps"].back().at("tokens")},
          {"seconds_msa", msa["end"].at("seconds")},
          {"seconds_dense", dense["end"].at("seconds")},
          {"bits_per_byte_msa", bits_msa},
          {"bits_per_byte_dense", bits_dense},
          {"difference", bits_msa / bits_dense - 1},
          {"kl_loss_first", kl_first},
          {"kl_loss_last", kl_last},
          {"block_recall_first", block_first},
          {"block_recall_last", block_last},
          {"score_recall_first", score_first},
          {"score_recall_last", score_last},
          {"bench_first", bench_point(results.front())},
          {"bench_last", bench_point(results.back())}};
}

[[gnu::format(printf, 1, 2)]] std::string format(const char* text, ...) {
  char line[160];
  std::va_list arguments;
  va_start(arguments, text);
  std::vsnprintf(line, sizeof line, text, arguments);
  va_end(arguments);
  return line;
}

}  // namespace

ordered_json read_run(const fs::path& directory) try {
  ordered_json run;
  run["runs"] = {{"msa", read_log(directory / "msa" / "log.jsonl")},
                 {"dense", read_log(directory / "dense" / "log.jsonl")}};
  run["eval"] = {{"msa", io::read_json(directory / "eval-msa.json")},
                 {"dense", io::read_json(directory / "eval-dense.json")}};
  run["selection"] = io::read_json(directory / "selection.json");
  run["bench"] = io::read_json(directory / "bench-decode.json");
  run["generation"] = io::read_json(directory / "generate.json");
  run["machine"] = io::read_json(directory / "info.json");
  run["commands"] = io::read_text(directory / "commands.txt");
  run["headline"] = headline(run);
  return run;
} catch (const json::exception& error) {
  throw io::InputError(directory.string() + ": not the files of a demo run: " + error.what());
}

std::string summary(const ordered_json& run) {
  const ordered_json& h = run["headline"];
  const auto number = [](const ordered_json& value) { return value.get<double>(); };
  std::string text = format("%-34s %10s %10s\n", "", "MSA", "dense");
  text += format("%-34s %9.2fM %9.2fM\n", "parameters", number(h["parameters_msa"]) / 1e6,
                 number(h["parameters_dense"]) / 1e6);
  text += format("%-34s %9.0fs %9.0fs\n", "training time", number(h["seconds_msa"]), number(h["seconds_dense"]));
  text += format("%-34s %10.4f %10.4f  (%+.2f %%)\n", "bits per byte, held-out files", number(h["bits_per_byte_msa"]),
                 number(h["bits_per_byte_dense"]), 100 * number(h["difference"]));
  for (const char* end : {"bench_first", "bench_last"}) {
    const ordered_json& at = h[end];
    const std::string label = format("attention ms/token, %lldK keys", at["context"].get<long long>() / 1024);
    text += format("%-34s %10.3f %10.3f  (index %.3f + attend %.3f)\n", label.c_str(), number(at["sparse_ms"]),
                   number(at["dense_ms"]), number(at["index_ms"]), number(at["attend_ms"]));
  }
  text += format("%-34s %5.1f %% -> %.1f %%\n", "score recall, first to last", 100 * number(h["score_recall_first"]),
                 100 * number(h["score_recall_last"]));
  text += format("%-34s %5.1f %% -> %.1f %%\n", "block recall, first to last", 100 * number(h["block_recall_first"]),
                 100 * number(h["block_recall_last"]));
  text += format("%-34s %7.3f -> %.3f nats\n", "L_KL, first to last", number(h["kl_loss_first"]),
                 number(h["kl_loss_last"]));
  return text;
}

}  // namespace openmsa::cli
