#include "lm/training/train.h"

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "io/error.h"
#include "lm/checkpoint/checkpoint.h"
#include "lm/ops/parallel.h"
#include "lm/training/corpus.h"

namespace openmsa::lm {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::ordered_json;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// The lines of an earlier run up to step `steps_done`.
std::string kept_lines(const std::filesystem::path& path, std::int64_t steps_done) {
  std::string kept;
  std::ifstream stream(path);
  for (std::string line; std::getline(stream, line);) {
    const auto event = nlohmann::json::parse(line, nullptr, false);
    if (event.is_discarded() || event.value("event", "") == "end" || event.value("step", 0) > steps_done) break;
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
    const std::string kept = steps_done > 0 ? kept_lines(path, steps_done) : "";
    stream_.open(path, std::ios::trunc);
    stream_ << kept << std::flush;
    check();
  }

  void write(const ordered_json& event) {
    stream_ << event.dump() << std::endl;
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

void save(const TrainingState& state, const std::filesystem::path& directory) {
  save_model(directory, state.config, state.weights);
  save_state(directory / kStateFile, state);
}

/// Whether something that happens every `period` steps (0: never) happens at `step`; the first step counts.
bool due(std::int64_t step, std::int64_t period) { return period > 0 && (step == 1 || step % period == 0); }

}  // namespace

void train(TrainingState initial, const std::filesystem::path& directory, int num_threads,
           const std::function<void(const StepFigures&)>& on_step) {
  const ThreadLimit limit(num_threads);
  const TrainingOptions options = initial.options;
  if (initial.step >= options.steps) {
    throw io::InputError(directory.string() + ": all " + std::to_string(options.steps) + " steps are done");
  }
  const Text text = training_text(options);
  const std::int64_t steps_done = initial.step;
  Trainer trainer(std::move(initial), text.bytes, num_threads);  // first, for it refuses what cannot be trained
  std::filesystem::create_directories(directory);
  TrainingLog log(directory / "log.jsonl", steps_done);
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
  }
  save(trainer.state(), directory);
  log.write({{"event", "end"}, {"seconds", seconds_since(start)}});
}

}  // namespace openmsa::lm
