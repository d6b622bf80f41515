// msa bench train: a training step of the demo's model and of its dense twin, and where its time goes.
#include "msa/bench/command.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "io/error.h"
#include "io/json_file.h"
#include "lm/model/attention_ops.h"
#include "lm/ops/parallel.h"
#include "lm/ops/profile.h"
#include "lm/training/trainer.h"
#include "lm/training/training_memory.h"
#include "msa/bench/options.h"
#include "msa/bench/selection.h"
#include "msa/device/timing.h"
#include "msa/machine.h"
#include "msa/number.h"
#include "msa/outputs.h"
#include "msa/progress.h"

namespace openmsa::cli {
namespace {

using lm::Part;
using nlohmann::ordered_json;

struct TrainBench : BenchOptions {
  lm::ModelConfig model;
  lm::TrainingOptions training;
  int layers = 4;
  int dense_layers = 1;
  std::string selection = "index";
};

struct PartName {
  Part part;
  const char* name;
};
constexpr PartName kParts[] = {{Part::kProducts, "products"},
                               {Part::kForward, "attention_forward"},
                               {Part::kBackward, "attention_backward"},
                               {Part::kKlLoss, "kl_loss"}};

/// Milliseconds of steps of one kind, of their parts, and of what is left.
struct StepTimes {
  std::string kind;
  Timing total, parts[lm::kNumParts], rest;

  double share_of_rest() const { return rest.median() / total.median(); }
};

/// "dense": the twin without an index branch; "warmup" and "sparse": MSA before and after top-k is switched on.
lm::ModelConfig model_of(const TrainBench& bench, const std::string& kind) {
  lm::ModelConfig config = bench.model;
  config.rotary_dim = config.head_dim / 4 * 2;
  config.initializer_range = 1.0 / std::sqrt(config.hidden_size);
  config.layers.resize(static_cast<std::size_t>(bench.layers));
  for (int layer = bench.dense_layers; kind != "dense" && layer < bench.layers; ++layer) {
    config.layers[static_cast<std::size_t>(layer)].attention = lm::AttentionKind::kSparse;
  }
  return config;
}

lm::TrainingState state_of(const TrainBench& bench, const std::string& kind, lm::TrainingOptions training) {
  training.warmup_steps = kind == "warmup" ? training.steps : 0;
  return lm::fresh_state(model_of(bench, kind), training);
}

/// A trainer of steps of one kind; sparse ones attend to kv_blocks as --selection says.
lm::Trainer make_trainer(const TrainBench& bench, const std::string& kind, const lm::TrainingOptions& training,
                         const std::string& text, openmsa_backend backend = OPENMSA_BACKEND_CPU) {
  lm::Trainer trainer(state_of(bench, kind, training), text, bench.threads, backend);
  if (kind != "sparse" || bench.selection == "index") return trainer;
  std::vector<PrefillSequence> sequences;
  for (std::int64_t length : lm::sequence_lengths(training)) sequences.push_back({length, length});
  trainer.set_selection(
      made_up_selection(lm::attention_config(bench.model), sequences, bench.selection == "clustered", training.seed));
  return trainer;
}

/// Bytes without order: what they are does not matter to the time.
std::string random_text(const TrainBench& bench) {
  std::mt19937_64 generator(bench.training.seed);
  std::string text(static_cast<std::size_t>(8 * std::max(bench.training.seqlen, bench.training.short_seqlen)), ' ');
  for (char& c : text) c = static_cast<char>(generator() >> 56);
  return text;
}

/// A step of a few hundred tokens on the reference backend and on the CPU backend gives the same loss and gradients.
void check_step(const TrainBench& bench, const std::string& kind, const std::string& text) {
  constexpr std::int64_t kMostTokens = 160;
  lm::TrainingOptions small = bench.training;
  small.batch = small.short_batch = 1;
  small.seqlen = std::min(small.seqlen, kMostTokens);
  small.short_seqlen = std::min(small.short_seqlen, kMostTokens / 2);
  const auto step = [&](openmsa_backend backend) {
    return make_trainer(bench, kind, small, text, backend).step(false);
  };
  const lm::StepFigures got = step(OPENMSA_BACKEND_CPU), expected = step(OPENMSA_BACKEND_REFERENCE_FLOAT32);
  const auto compare = [&](const char* what, double value, double reference) {
    constexpr double kAllowed = 1e-3;
    if (std::abs(value - reference) <= kAllowed * std::abs(reference)) return;  // also refuses NaN
    throw std::runtime_error("the " + kind + " step is wrong: " + what + " " + std::to_string(value) + ", expected " +
                             std::to_string(reference));
  };
  compare("loss", got.loss, expected.loss);
  compare("norm of the gradient", got.grad_norm, expected.grad_norm);
  compare("KL loss", got.kl_loss.value_or(0), expected.kl_loss.value_or(0));
}

StepTimes measure(const TrainBench& bench, const std::string& kind, const std::string& text) {
  lm::TrainingOptions training = bench.training;
  training.steps = bench.repeats + 1;
  lm::Trainer trainer = make_trainer(bench, kind, training, text);
  trainer.step(false);  // touches all memory
  StepTimes times{kind, {}, {}, {}};
  for (int i = 0; i < bench.repeats; ++i) {
    const lm::Profile profile;
    Timing step;
    step.measure([&] { trainer.step(false); });
    double rest = step.median();
    for (const auto& [part, name] : kParts) {
      times.parts[static_cast<int>(part)].keep(profile.milliseconds(part));
      rest -= profile.milliseconds(part);
    }
    times.total.keep(step.median());
    times.rest.keep(rest);
  }
  return times;
}

void print(const TrainBench& bench, const std::vector<StepTimes>& all) {
  const lm::ModelConfig& m = bench.model;
  const lm::TrainingOptions& t = bench.training;
  std::printf(
      "Training step, ms (medians); %d layers, hidden %d, %d query and %d KV heads of %d, %d of %d-token kv_blocks, "
      "%lld x %lld + %lld x %lld tokens, %s, %s selection\n",
      bench.layers, m.hidden_size, m.num_heads_q, m.num_heads_kv, m.head_dim, m.topk, m.block_size,
      static_cast<long long>(t.batch), static_cast<long long>(t.seqlen), static_cast<long long>(t.short_batch),
      static_cast<long long>(t.short_seqlen), bench.dtype.c_str(), bench.selection.c_str());
  std::printf("%s\n", processor_line(bench.dtype).c_str());
  std::printf("%8s %26s %9s %8s %9s %8s %8s %8s\n", "step", "min..max", "products", "forward", "backward", "KL loss",
              "rest", "of step");
  for (const StepTimes& times : all) {
    std::printf("%8s %8.1f %8.1f..%-8.1f", times.kind.c_str(), times.total.median(), times.total.min(),
                times.total.max());
    std::printf(" %8.1f %8.1f %9.1f %8.1f %8.1f %6.1f %%\n", times.parts[0].median(), times.parts[1].median(),
                times.parts[2].median(), times.parts[3].median(), times.rest.median(), 100 * times.share_of_rest());
  }
}

ordered_json to_json(const Timing& timing) {
  return {{"median_ms", timing.median()}, {"min_ms", timing.min()}, {"max_ms", timing.max()}};
}

ordered_json to_json(const TrainBench& bench, const std::vector<StepTimes>& all) {
  ordered_json results = ordered_json::array();
  for (const StepTimes& times : all) {
    ordered_json row = {{"step", times.kind}, {"total", to_json(times.total)}};
    for (const auto& [part, name] : kParts) row[name] = to_json(times.parts[static_cast<int>(part)]);
    row["rest"] = to_json(times.rest);
    row["share_of_rest"] = times.share_of_rest();
    results.push_back(row);
  }
  return {{"model", lm::config_to_json(model_of(bench, "sparse"))},
          {"batch", bench.training.batch},
          {"seqlen", bench.training.seqlen},
          {"short_batch", bench.training.short_batch},
          {"short_seqlen", bench.training.short_seqlen},
          {"backend", bench.backend},
          {"dtype", bench.dtype},
          {"selection", bench.selection},
          {"threads", bench.num_threads()},
          {"repeats", bench.repeats},
          {"results", results},
          {"machine", machine_facts()}};
}

/// Refuses backends and dtypes that a step of this model is not served in.
void check_supported(const TrainBench& bench) {
  if (bench.backend != "cpu")
    throw io::InputError("--backend " + bench.backend +
                         ": msa bench train measures the CPU; the GPU: python -m openmsa.bench --sections training");
  if (bench.dtype != "fp32") throw io::InputError("--dtype " + bench.dtype + ": training is served in fp32 only");
}

void run(const TrainBench& bench) {
  check_outputs({{"--json", bench.json}});
  check_supported(bench);
  if (bench.dense_layers >= bench.layers) throw io::InputError("--dense-layers: expected fewer than --layers");
  const lm::ThreadLimit limit(bench.threads);
  const std::vector<std::string> kinds = {"dense", "warmup", "sparse"};
  for (const std::string& kind : kinds) lm::require_training_memory(model_of(bench, kind), bench.training);
  const std::string text = random_text(bench);
  Progress progress("bench train", std::ssize(kinds));
  std::vector<StepTimes> all;
  for (const std::string& kind : kinds) {
    progress.update(std::ssize(all), kind + " step");
    check_step(bench, kind, text);
    all.push_back(measure(bench, kind, text));
  }
  progress.finish();
  print(bench, all);
  if (!bench.json.empty()) io::write_json(bench.json, to_json(bench, all));
}

}  // namespace

void add_bench_train(CLI::App& bench) {
  auto options = std::make_shared<TrainBench>();
  options->dtype = "fp32";
  CLI::App* command = bench.add_subcommand("train", "Time of a training step and of its parts, sparse beside dense");
  command->footer(
      "Defaults are the model and the batch of make demo. The index branch learns with every selection.\n"
      "Loss and gradients of a small step are checked against the reference backend first.\n"
      "products: the projections' matrix products; forward, backward and KL loss: the attention's operations.");
  const auto add = [&](const char* name, auto& value, const char* text, std::int64_t least, std::int64_t most) {
    using T = std::remove_reference_t<decltype(value)>;
    command->add_option(name, value, text)
        ->check(between(static_cast<T>(least), static_cast<T>(most)))
        ->capture_default_str();
  };
  lm::ModelConfig& model = options->model;
  lm::TrainingOptions& training = options->training;
  add("--layers", options->layers, "Decoder layers", 1, 4096);
  add("--dense-layers", options->dense_layers, "Leading layers that stay dense", 0, 4096);
  add("--hidden", model.hidden_size, "Channels of the residual stream", 8, 1 << 16);
  add("--heads-q", model.num_heads_q, "Query heads", 1, 4096);
  add("--heads-kv", model.num_heads_kv, "KV heads", 1, 4096);
  add("--head-dim", model.head_dim, "Channels per head", 8, 256);
  add("--intermediate", model.dense_intermediate_size, "Channels inside the MLP", 1, 1 << 20);
  add("--index-dim", model.index_dim, "Channels of the index branch", 8, 256);
  add("--block-size", model.block_size, "Keys per kv_block", 8, 256);
  add("--topk", model.topk, "kv_blocks kept per query and KV head", 1, 64);
  add("--batch", training.batch, "Sequences per step", 1, 4096);
  add("--seqlen", training.seqlen, "Tokens per sequence", 2, 1 << 20);
  add("--short-batch", training.short_batch, "Short sequences per step beside them", 0, 4096);
  add("--short-seqlen", training.short_seqlen, "Tokens per short sequence", 2, 1 << 20);
  options->add_threads(*command, "0: one per core");
  options->add_backend(*command, "cpu; cuda is refused: it has no backward pass");
  options->add_dtype(*command, "fp32; bf16 and fp16 are refused: the trainer works in fp32");
  command
      ->add_option("--selection", options->selection,
                   "Of the sparse step: index (the model's own), random or clustered")
      ->check(CLI::IsMember({"index", "random", "clustered"}))
      ->capture_default_str();
  options->add_repeats(*command, "Measured steps of each kind");
  options->add_seed(*command, "Of the weights and the batches");
  options->add_json(*command);
  command->callback([options] {
    options->training.seed = options->seed;
    run(*options);
  });
}

}  // namespace openmsa::cli
