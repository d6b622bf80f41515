#include "lm/training/train.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "io/atomic_file.h"
#include "io/error.h"
#include "io/json_file.h"
#include "lm/checkpoint/checkpoint.h"
#include "lm/ops/parallel.h"
#include "lm/training/corpus.h"

namespace openmsa::lm {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kLogFile = "log.jsonl";

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Whether a line of the log tells of the first `steps_done` steps, or of their start.
bool tells_of(const std::string& line, std::int64_t steps_done) try {
  const json event = io::parse_json(line);
  if (!event.is_object()) return false;
  const json name = event.value("event", json()), step = event.value("step", json(0));
  return (name == "start" || name == "step") && step.is_number_integer() && step.get<std::int64_t>() <= steps_done;
} catch (const io::InputError&) {
  return false;
}

/// The lines of an earlier run up to step `steps_done`.
std::string kept_lines(const std::filesystem::path& path, std::int64_t steps_done) {
  std::string kept;
  std::ifstream stream(path);
  for (std::string line; std::getline(stream, line);) {
    if (!tells_of(line, steps_done)) break;
    kept += line + '\n';
  }
  return kept;
}

/// log.jsonl of a training run: one JSON object per line, the first "start", then "step"s, the last "end".
class TrainingLog {
 public:
  /// Starts the file anew, or keeps what a run that is resumed after `steps_done` steps has logged up to there.
  /// std::runtime_error when the file cannot be written.
  TrainingLog(const std::filesystem::path& path, std::int64_t steps_done) : path_(path) {
    io::AtomicFile file(path);
    file.write(steps_done > 0 ? kept_lines(path, steps_done) : "");
    file.commit();
    stream_.open(path, std::ios::app);
    check();
  }

  void write(const ordered_json& event) {
    stream_ << event.dump(-1, ' ', false, ordered_json::error_handler_t::replace) << std::endl;
    check();
  }

 private:
  void check() const {
    if (!stream_) throw std::runtime_error(path_.string() + ": cannot write the log");
  }

  std::filesystem::path path_;
  std::ofstream stream_;
};

Text training_text(const TrainingOptions& options) {
  return load_text({options.text.begin(), options.text.end()}, CorpusPart::kTraining);
}

ordered_json start_event(const TrainingState& state, const Text& text) {
  return {{"event", "start"},
          {"attention", state.config.has_sparse_layers() ? "msa" : "dense"},
          {"parameters", state.weights.layout().num_parameters()},
          {"text_bytes", text.bytes.size()},
          {"text_files", text.files.size()},
          {"config", config_to_json(state.config)},
          {"options", options_to_json(state.options)}};
}

ordered_json step_event(const StepFigures& figures, std::int64_t tokens, double tokens_per_second) {
  ordered_json event = {{"event", "step"},
                        {"step", figures.step},
                        {"tokens", tokens},
                        {"loss", figures.loss},
                        {"lr", figures.lr},
                        {"grad_norm", figures.grad_norm},
                        {"tokens_per_second", tokens_per_second},
                        {"phase", phase_name(figures.phase)}};
  if (figures.kl_loss) event["kl_loss"] = *figures.kl_loss;
  if (figures.recall) {
    event["block_recall"] = figures.recall->block;
    event["score_recall"] = figures.recall->score;
  }
  return event;
}

/// The files of a run that `directory` may hold.
std::vector<std::filesystem::path> run_files(const std::filesystem::path& directory) {
  return {directory / kStateFile, directory / "model.safetensors", directory / kLogFile, directory / "config.json"};
}

/// A step may leave finite gradients and infinite weights behind; those replace no checkpoint.
void save(const TrainingState& state, const std::filesystem::path& directory) {
  const auto is_finite = [](float weight) { return std::isfinite(weight); };
  if (!std::ranges::all_of(state.weights.values(), is_finite)) {
    throw std::runtime_error("training diverged: after step " + std::to_string(state.step) +
                             " weights are NaN or infinite");
  }
  save_model(directory, state.config, state.weights);
  save_state(directory / kStateFile, state);
}

/// Whether something that happens every `period` steps (0: never) happens at `step`; the first step counts.
bool due(std::int64_t step, std::int64_t period) { return period > 0 && (step == 1 || step % period == 0); }

}  // namespace

std::optional<std::string> earlier_run(const std::filesystem::path& directory) {
  for (const auto& file : run_files(directory)) {
    if (std::filesystem::exists(file)) return file.string();
  }
  return std::nullopt;
}

std::int64_t train(TrainingState initial, const std::filesystem::path& directory, int num_threads,
                   const std::function<void(const StepFigures&)>& on_step, const std::function<bool()>& stop) {
  const ThreadLimit limit(num_threads);
  const TrainingOptions options = initial.options;
  if (initial.step >= options.steps) {
    throw io::InputError(directory.string() + ": all " + std::to_string(options.steps) + " steps are done");
  }
  const Text text = training_text(options);
  const std::int64_t steps_done = initial.step;
  Trainer trainer(std::move(initial), text.bytes, num_threads);  // first, for it refuses what cannot be trained
  std::filesystem::create_directories(directory);
  if (steps_done == 0) {
    for (const auto& file : run_files(directory)) std::filesystem::remove(file);
  }
  TrainingLog log(directory / kLogFile, steps_done);
  if (steps_done == 0) log.write(start_event(trainer.state(), text));

  const std::int64_t tokens_per_step = options.batch * options.seqlen + options.short_batch * options.short_seqlen;
  const auto start = Clock::now();
  auto last_logged = start;
  std::int64_t last_step = steps_done;
  for (std::int64_t step = steps_done + 1; step <= options.steps; ++step) {
    const StepFigures figures = trainer.step(due(step, options.recall_every) || step == options.steps);
    if (due(step, options.log_every) || figures.recall || step == options.steps) {
      const double rate = static_cast<double>((step - last_step) * tokens_per_step) / seconds_since(last_logged);
      log.write(step_event(figures, step * tokens_per_step, rate));
      last_logged = Clock::now();
      last_step = step;
    }
    if (options.checkpoint_every > 0 && step % options.checkpoint_every == 0) save(trainer.state(), directory);
    on_step(figures);
    if (step < options.steps && stop()) {
      save(trainer.state(), directory);
      return step;
    }
  }
  save(trainer.state(), directory);
  log.write({{"event", "end"}, {"seconds", seconds_since(start)}});
  return options.steps;
}

}  // namespace openmsa::lm
