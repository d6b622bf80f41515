// msa eval: how well a model predicts held-out text, and how well it selects.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "io/error.h"
#include "io/json_file.h"
#include "lm/use/evaluate.h"
#include "lm/use/selection_map.h"
#include "msa/command.h"
#include "msa/note.h"
#include "msa/number.h"
#include "msa/outputs.h"
#include "msa/progress.h"

namespace openmsa::cli {
namespace {

constexpr std::int64_t kPercent = 100;

struct EvalCommand {
  std::string model;
  std::vector<std::string> text;
  std::string attention;
  std::string index_dtype = "fp32";
  std::string json;
  std::string selection;
  lm::EvaluationOptions evaluation;

  void run() {
    check_outputs({{"--json", json}, {"--selection", selection}});
    const lm::Model loaded = lm::load_model(model);
    const auto tokenizer = tokenizer::load_tokenizer(model, print_note);
    if (attention == "msa" && !loaded.config.has_sparse_layers()) {
      throw io::InputError("--attention msa: the model in " + model + " has no sparse layers");
    }
    evaluation.dense = attention == "dense";
    evaluation.fp8_index = index_dtype == "e4m3";
    if (evaluation.fp8_index && (evaluation.dense || !loaded.config.has_sparse_layers())) {
      throw io::InputError("--index-dtype e4m3: expected layers that attend sparsely, got dense ones alone");
    }
    const lm::Text held_out = text.empty() ? lm::load_text(lm::default_text_paths(), lm::CorpusPart::kHeldOut)
                                           : lm::load_text({text.begin(), text.end()}, lm::CorpusPart::kHeldOut);
    if (!selection.empty()) io::write_json(selection, selection_of(loaded, *tokenizer, held_out));

    Progress progress("evaluating", kPercent);
    const lm::Evaluation result =
        lm::evaluate(loaded, *tokenizer, held_out, evaluation,
                     [&](std::int64_t done, std::int64_t total) { progress.update(kPercent * done / total); });
    progress.finish();
    print(result);
    if (!json.empty()) io::write_json(json, figures(result));
  }

 private:
  nlohmann::ordered_json selection_of(const lm::Model& loaded, const tokenizer::Tokenizer& tokenizer,
                                      const lm::Text& held_out) const {
    const std::size_t length = std::min(held_out.bytes.size(), static_cast<std::size_t>(evaluation.seqlen));
    return lm::selection_map(loaded, tokenizer, std::string_view(held_out.bytes).substr(0, length),
                             evaluation.num_threads);
  }

  static nlohmann::ordered_json figures(const lm::Evaluation& result) {
    nlohmann::ordered_json figures = {{"bits_per_byte", result.bits_per_byte},
                                      {"bytes", result.bytes},
                                      {"tokens", result.tokens},
                                      {"files", result.files},
                                      {"seconds", result.seconds}};
    if (result.kl_loss) figures["kl_loss"] = *result.kl_loss;
    if (result.recall) {
      figures["block_recall"] = result.recall->block;
      figures["score_recall"] = result.recall->score;
    }
    if (result.fp8_index_recall) {
      figures["block_recall_e4m3"] = result.fp8_index_recall->block;
      figures["score_recall_e4m3"] = result.fp8_index_recall->score;
    }
    return figures;
  }

  static void print(const lm::Evaluation& result) {
    std::printf("%.4f bits per byte over %lld bytes of %lld held-out files\n", result.bits_per_byte,
                static_cast<long long>(result.bytes), static_cast<long long>(result.files));
    if (!result.recall) return;
    std::printf("L_KL %.4f, block recall %.3f, score recall %.3f\n", *result.kl_loss, result.recall->block,
                result.recall->score);
    if (!result.fp8_index_recall) return;
    std::printf("with index keys in e4m3: block recall %.3f, score recall %.3f\n", result.fp8_index_recall->block,
                result.fp8_index_recall->score);
  }
};

}  // namespace

void add_eval(CLI::App& app) {
  auto options = std::make_shared<EvalCommand>();
  lm::EvaluationOptions& evaluation = options->evaluation;
  CLI::App* command = app.add_subcommand("eval", "Measure a model on held-out text in bits per byte");
  command->footer(
      "Reads the files that msa train held out of the same --text.\n"
      "Example:\n  msa eval --model sparse --json eval.json --selection selection.json");
  command
      ->add_option("--model", options->model,
                   "Folder with config.json and weights; tokenizer.json, or tokens are bytes")
      ->required()
      ->type_name("DIR");
  command->add_option("--text", options->text, "Files and folders [/usr/include and Python's library]")
      ->type_name("PATH");
  command->add_option("--attention", options->attention, "dense or msa [what the model was trained with]")
      ->check(CLI::IsMember({"dense", "msa"}));
  command
      ->add_option("--index-dtype", options->index_dtype,
                   "e4m3: measure the selection with index keys in fp8 too, one scale per token")
      ->check(CLI::IsMember({"fp32", "e4m3"}))
      ->capture_default_str();
  command->add_option("--seqlen", evaluation.seqlen, "Bytes per window")
      ->check(between(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--batch", evaluation.batch, "Windows at once")->check(between(1, 4096))->capture_default_str();
  command->add_option("--max-bytes", evaluation.max_bytes, "Evenly spaced windows of at most so many bytes")
      ->check(between(std::int64_t{1}, std::int64_t{1} << 40))
      ->capture_default_str();
  command->add_option("--threads", evaluation.num_threads, "0: one per core")
      ->check(between(0, 4096))
      ->capture_default_str();
  command->add_option("--json", options->json, "Write the figures as JSON")->type_name("FILE");
  command->add_option("--selection", options->selection, "Write the kv_blocks selected in the first held-out window")
      ->type_name("FILE");
  command->callback([options] { options->run(); });
}

}  // namespace openmsa::cli
