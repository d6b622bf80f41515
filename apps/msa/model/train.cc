// msa train: a small language model from text, with sparse or dense attention.
#include "lm/training/train.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "io/error.h"
#include "lm/checkpoint/checkpoint.h"
#include "lm/training/corpus.h"
#include "msa/command.h"
#include "msa/interrupt.h"
#include "msa/number.h"
#include "msa/progress.h"

namespace openmsa::cli {
namespace {

constexpr const char* kFooter =
    "Text is bytes; about one file in twenty is held out for msa eval and msa generate.\n"
    "The first Ctrl-C ends the step, saves it and stops.\n"
    "Examples:\n"
    "  msa train --output sparse                            from random weights: indexer warmup, then sparse\n"
    "  msa train --output dense --attention dense           its dense twin: same start, same batches\n"
    "  msa train --output converted --from dense            a dense model turned sparse\n"
    "  msa train --output sparse --resume                   continues from the last checkpoint";

struct TrainCommand {
  std::string output;
  std::string from;
  std::string attention = "msa";
  bool resume = false;
  bool force = false;
  int threads = 0;
  int num_layers = 4;
  int dense_layers = 1;
  lm::ModelConfig geometry;
  lm::TrainingOptions training;

  const CLI::Option* index_dim = nullptr;
  const CLI::Option* block_size = nullptr;
  const CLI::Option* topk = nullptr;
  std::vector<const CLI::Option*> sparse_only;

  void run() {
    refuse_idle_options();
    refuse_earlier_run();
    lm::TrainingState state = initial_state();
    const std::int64_t steps = state.options.steps;
    Progress progress("training", steps);
    double loss = 0.0;
    const auto show = [&](const lm::StepFigures& figures) {
      char note[64];
      loss = figures.loss;
      std::snprintf(note, sizeof note, "%s  loss %.3f", lm::phase_name(figures.phase), loss);
      progress.update(figures.step, note);
    };
    catch_interrupts();
    const std::int64_t done = lm::train(std::move(state), output, threads, show, interrupted);
    progress.finish();
    if (done < steps) {
      throw std::runtime_error(output + ": stopped after step " + std::to_string(done) + " of " +
                               std::to_string(steps) + ", which is saved; --resume goes on");
    }
    std::printf("%s: %lld steps, last loss %.4f nats per byte\n", output.c_str(), static_cast<long long>(steps), loss);
  }

 private:
  /// An option that would have no effect is a mistake.
  void refuse_idle_options() const {
    if (attention == "msa") return;
    for (const CLI::Option* option : sparse_only) {
      if (option->count() > 0) throw io::InputError(option->get_name() + ": only with --attention msa");
    }
  }

  void refuse_earlier_run() const {
    const auto earlier = lm::earlier_run(output);
    if (!resume && !force && earlier) {
      throw io::InputError(*earlier + " is there from an earlier run: --resume continues it, --force replaces it");
    }
    if (resume && !std::filesystem::exists(std::filesystem::path(output) / lm::kStateFile)) {
      throw io::InputError(output + ": nothing to resume: no checkpoint has been written there");
    }
  }

  lm::TrainingState initial_state() {
    if (resume) return lm::load_state(std::filesystem::path(output) / lm::kStateFile);
    if (training.text.empty()) {
      for (const auto& path : lm::default_text_paths()) training.text.push_back(path.string());
    }
    // A run may be resumed from another folder.
    for (std::string& path : training.text) path = std::filesystem::absolute(path).string();
    if (!from.empty()) return lm::converted_state(from, converted_config(), training);
    lm::ModelConfig config = geometry;
    config.rotary_dim = config.head_dim / 4 * 2;
    config.initializer_range = 1.0 / std::sqrt(config.hidden_size);
    config.layers.resize(static_cast<std::size_t>(num_layers));
    choose_sparse_layers(config);
    return lm::fresh_state(config, training);
  }

  /// The checkpoint's geometry, with the index branch that was asked for.
  lm::ModelConfig converted_config() const {
    lm::ModelConfig config = lm::load_config(from);
    const bool selects = config.has_sparse_layers();
    if (!selects || index_dim->count() > 0) config.index_dim = geometry.index_dim;
    if (!selects || block_size->count() > 0) config.block_size = geometry.block_size;
    if (!selects || topk->count() > 0) config.topk = geometry.topk;
    choose_sparse_layers(config);
    return config;
  }

  void choose_sparse_layers(lm::ModelConfig& config) const {
    if (attention == "msa" && static_cast<std::size_t>(dense_layers) >= config.layers.size()) {
      throw io::InputError("--dense-layers: expected fewer than the " + std::to_string(config.layers.size()) +
                           " layers, got " + std::to_string(dense_layers));
    }
    for (std::size_t layer = 0; layer < config.layers.size(); ++layer) {
      const bool sparse = attention == "msa" && layer >= static_cast<std::size_t>(dense_layers);
      config.layers[layer].attention = sparse ? lm::AttentionKind::kSparse : lm::AttentionKind::kFull;
    }
  }
};

/// Adds options that --resume takes from the checkpoint instead.
class OptionAdder {
 public:
  OptionAdder(CLI::App& command, CLI::Option* resume) : command_(command), resume_(resume) {}

  template <class T>
  CLI::Option* number(const std::string& name, T& value, const std::string& text, double least, double most) {
    return option(name, value, text)
        ->check(between(static_cast<T>(least), static_cast<T>(most)))
        ->capture_default_str();
  }
  /// "--lr-warmup": of lm::TrainingOptions, in the range of lr_warmup.
  template <class T>
  CLI::Option* training(const std::string& name, T& value, const std::string& text) {
    std::string key = name.substr(2);
    std::ranges::replace(key, '-', '_');
    const lm::NumberRange& range = lm::range_of(key);
    return number(name, value, text, range.least, range.most);
  }
  template <class T>
  CLI::Option* option(const std::string& name, T& value, const std::string& text) {
    return command_.add_option(name, value, text)->excludes(resume_);
  }
  CLI::Option* flag(const std::string& name, bool& value, const std::string& text) {
    return command_.add_flag(name, value, text)->excludes(resume_);
  }

 private:
  CLI::App& command_;
  CLI::Option* resume_;
};

void add_run_options(OptionAdder& add, TrainCommand& command) {
  lm::TrainingOptions& training = command.training;
  add.option("--text", training.text, "Files and folders [/usr/include and Python's library]")->type_name("PATH");
  add.training("--steps", training.steps, "Optimisation steps");
  add.training("--batch", training.batch, "Sequences per step");
  add.training("--seqlen", training.seqlen, "Bytes per sequence");
  add.training("--short-batch", training.short_batch, "Short sequences per step beside them, for variety");
  add.training("--short-seqlen", training.short_seqlen, "Bytes per short sequence");
  add.option("--seed", training.seed, "Of the weights and the batches")->capture_default_str();
  add.training("--lr", training.lr, "Peak learning rate");
  add.training("--min-lr", training.min_lr, "Learning rate at the end");
  add.training("--lr-warmup", training.lr_warmup, "Steps up to the peak");
  add.training("--weight-decay", training.weight_decay, "Of matrices");
  add.training("--clip", training.clip, "Largest norm of the gradient");
  add.training("--log-every", training.log_every, "Steps between lines of log.jsonl");
  add.training("--checkpoint-every", training.checkpoint_every, "Steps between checkpoints; 0: only at the end");
}

void add_sparse_options(OptionAdder& add, TrainCommand& command) {
  lm::TrainingOptions& training = command.training;
  lm::ModelConfig& geometry = command.geometry;
  command.index_dim = add.number("--index-dim", geometry.index_dim, "Channels of the index branch", 8, 256);
  command.block_size = add.number("--block-size", geometry.block_size, "Keys per kv_block", 8, 256);
  command.topk = add.number("--topk", geometry.topk, "kv_blocks kept per query and KV head", 1, 64);
  command.sparse_only = {
      command.index_dim,
      command.block_size,
      command.topk,
      add.number("--dense-layers", command.dense_layers, "Leading layers that stay dense", 0, 4096),
      add.training("--warmup-steps", training.warmup_steps, "Steps of dense attention while the indexer learns"),
      add.training("--kl-weight", training.kl.weight, "Weight of the index branch's loss"),
      add.flag("--index-grad-to-hidden", training.kl.index_to_hidden,
               "Ablation: that loss also moves the hidden state below the index branch"),
      add.flag("--kl-grad-to-teacher", training.kl.to_teacher, "Ablation: that loss also moves the main branch's q, k"),
      add.training("--recall-every", training.recall_every, "Steps between recall measurements; 0: never")};
}

void add_geometry_options(OptionAdder& add, TrainCommand& command, CLI::Option* from) {
  lm::ModelConfig& geometry = command.geometry;
  add.number("--layers", command.num_layers, "Decoder layers", 1, 4096)->excludes(from);
  add.number("--hidden", geometry.hidden_size, "Channels of the residual stream", 8, 1 << 16)->excludes(from);
  add.number("--heads-q", geometry.num_heads_q, "Query heads", 1, 4096)->excludes(from);
  add.number("--heads-kv", geometry.num_heads_kv, "KV heads", 1, 4096)->excludes(from);
  add.number("--head-dim", geometry.head_dim, "Channels per head, half of them rotated", 8, 256)->excludes(from);
  add.number("--intermediate", geometry.dense_intermediate_size, "Channels inside the MLP", 1, 1 << 20)->excludes(from);
}

}  // namespace

void add_train(CLI::App& app) {
  auto options = std::make_shared<TrainCommand>();
  CLI::App* command = app.add_subcommand("train", "Train a small language model on text");
  command->footer(kFooter);
  command->add_option("--output", options->output, "Folder for the model, its log and its checkpoints")
      ->required()
      ->type_name("DIR");
  auto* resume = command->add_flag("--resume", options->resume, "Continue the run in --output as it was asked for");
  command->add_flag("--force", options->force, "Replace an earlier run in --output")->excludes(resume);
  command->add_option("--threads", options->threads, "0: one per core")->check(between(0, 4096))->capture_default_str();
  OptionAdder add(*command, resume);
  add.option("--attention", options->attention, "msa or dense")
      ->check(CLI::IsMember({"msa", "dense"}))
      ->capture_default_str();
  auto* from = add.option("--from", options->from, "Start from this model's weights and geometry")->type_name("DIR");
  add_run_options(add, *options);
  add_geometry_options(add, *options, from);
  add_sparse_options(add, *options);
  command->callback([options] { options->run(); });
}

}  // namespace openmsa::cli
