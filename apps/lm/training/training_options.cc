#include "lm/training/training_options.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <stdexcept>

#include "io/error.h"
#include "tokenizer/utf8.h"

namespace openmsa::lm {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(KlOptions, weight, index_to_hidden, to_teacher)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(TrainingOptions, text, steps, batch, seqlen, short_batch, short_seqlen, seed, lr,
                                   min_lr, lr_warmup, weight_decay, clip, kl, warmup_steps, log_every, recall_every,
                                   checkpoint_every)

namespace {

using nlohmann::json;

constexpr double kMost = 1e9;
constexpr NumberRange kRanges[] = {
    {"steps", true, 1, kMost},      {"batch", true, 1, 4096},           {"seqlen", true, 2, 1 << 20},
    {"short_batch", true, 0, 4096}, {"short_seqlen", true, 2, 1 << 20}, {"lr", false, 0, kMost},
    {"min_lr", false, 0, kMost},    {"lr_warmup", true, 0, kMost},      {"weight_decay", false, 0, kMost},
    {"clip", false, 1e-9, kMost},   {"kl_weight", false, 0, kMost},     {"warmup_steps", true, 0, kMost},
    {"log_every", true, 1, kMost},  {"recall_every", true, 0, kMost},   {"checkpoint_every", true, 0, kMost}};

/// A path as JSON holds it: a string, or the list of its bytes where those are no UTF-8.
json path_to_json(const std::string& path) {
  if (tokenizer::utf8_prefix(path).size() == path.size()) return path;
  json bytes = json::array();
  for (const char byte : path) bytes.push_back(static_cast<unsigned char>(byte));
  return bytes;
}

json path_from_json(const json& path) {
  if (!path.is_array()) return path;
  std::string bytes;
  for (const json& byte : path) bytes += static_cast<char>(byte.get<unsigned char>());
  return bytes;
}

void check_number(const json& value, const NumberRange& range) {
  const bool has_type = range.is_integer ? value.is_number_integer() : value.is_number();
  if (has_type && value.get<double>() >= range.least && value.get<double>() <= range.most) return;
  throw io::InputError(std::string(range.name) + ": expected " + (range.is_integer ? "an integer" : "a number") +
                       " from " + json(range.least).dump() + " to " + json(range.most).dump() + ", got " +
                       value.dump(-1, ' ', false, json::error_handler_t::replace));
}

}  // namespace

const NumberRange& range_of(std::string_view name) {
  const auto found = std::ranges::find(kRanges, name, &NumberRange::name);
  if (found == std::end(kRanges)) throw std::invalid_argument("no option " + std::string(name));
  return *found;
}

json options_to_json(const TrainingOptions& options) {
  json object = options;
  for (json& path : object["text"]) path = path_to_json(path.get<std::string>());
  return object;
}

TrainingOptions options_from_json(const json& object) {
  for (const NumberRange& range : kRanges) {
    const bool is_kl_weight = std::string_view(range.name) == "kl_weight";
    check_number(is_kl_weight ? object.at("kl").at("weight") : object.at(range.name), range);
  }
  if (!object.at("seed").is_number_unsigned()) throw io::InputError("seed: expected a number from 0 on");
  json readable = object;
  for (json& path : readable.at("text")) path = path_from_json(path);
  return readable.get<TrainingOptions>();
}

std::vector<std::int64_t> sequence_lengths(const TrainingOptions& options) {
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(options.batch), options.seqlen);
  lengths.insert(lengths.end(), static_cast<std::size_t>(options.short_batch), options.short_seqlen);
  return lengths;
}

double learning_rate(const TrainingOptions& options, std::int64_t step) {
  if (step <= options.lr_warmup) return options.lr * static_cast<double>(step) / static_cast<double>(options.lr_warmup);
  const auto done = static_cast<double>(step - options.lr_warmup);
  const auto total = static_cast<double>(std::max<std::int64_t>(options.steps - options.lr_warmup, 1));
  return options.min_lr + (options.lr - options.min_lr) * 0.5 * (1.0 + std::cos(std::numbers::pi * done / total));
}

}  // namespace openmsa::lm
