// msa generate: continues a prompt.
#include "lm/use/generate.h"

#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "io/error.h"
#include "io/json_file.h"
#include "lm/training/corpus.h"
#include "msa/command.h"
#include "msa/note.h"
#include "msa/number.h"
#include "msa/outputs.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace openmsa::cli {
namespace {

struct Prompt {
  std::string text;
  std::string file;      // of a held-out prompt
  std::string expected;  // what that file goes on with
};

struct GenerateCommand {
  std::string model;
  std::string prompt_text;
  std::string prompt_file;
  bool held_out = false;
  std::vector<std::string> text;
  std::size_t prompt_bytes = 1024;
  std::string json;
  lm::GenerationOptions generation;

  void run() const {
    check_outputs({{"--json", json}});
    const lm::Model loaded = lm::load_model(model);
    const auto tokenizer = tokenizer::load_tokenizer(model, print_note);
    lm::GenerationOptions options = generation;
    options.end_tokens = lm::load_end_tokens(model);
    const Prompt prompt = make_prompt();
    const std::vector<std::int32_t> tokens = tokenizer->encode_prompt(prompt.text);
    tokenizer::Utf8Stream stream;
    const lm::Generation result = lm::generate(
        loaded, tokens, options, [&](std::int32_t token) { print(stream.push(tokenizer->decode(token))); });
    print(stream.finish() + "\n");
    const std::string continuation = tokenizer->decode(std::span(result.tokens));
    if (!json.empty()) io::write_json(json, figures(prompt, tokens.size(), continuation, result));
  }

 private:
  Prompt make_prompt() const {
    if (held_out) return held_out_prompt();
    return {prompt_file.empty() ? prompt_text : io::read_text(prompt_file), "", ""};
  }

  /// The beginning of one of the files that are long enough.
  Prompt held_out_prompt() const {
    const lm::Text corpus = text.empty() ? lm::load_text(lm::default_text_paths(), lm::CorpusPart::kHeldOut)
                                         : lm::load_text({text.begin(), text.end()}, lm::CorpusPart::kHeldOut);
    const auto wanted = prompt_bytes + static_cast<std::size_t>(generation.max_new_tokens);
    std::vector<const lm::TextFile*> candidates;
    for (const lm::TextFile& file : corpus.files) {
      if (file.end - file.begin >= wanted) candidates.push_back(&file);
    }
    if (candidates.empty()) throw io::InputError("no held-out file has " + std::to_string(wanted) + " bytes");
    const lm::TextFile& file = *candidates[lm::Random(generation.seed).below(candidates.size())];
    return {corpus.bytes.substr(file.begin, prompt_bytes), file.name,
            corpus.bytes.substr(file.begin + prompt_bytes, static_cast<std::size_t>(generation.max_new_tokens))};
  }

  static void print(const std::string& bytes) {
    if (std::fwrite(bytes.data(), 1, bytes.size(), stdout) < bytes.size() || std::fflush(stdout) != 0) {
      throw std::runtime_error("cannot write to standard output");
    }
  }

  static nlohmann::ordered_json figures(const Prompt& prompt, std::size_t prompt_tokens,
                                        const std::string& continuation, const lm::Generation& result) {
    const auto tokens = static_cast<double>(result.tokens.size());
    nlohmann::ordered_json figures = {{"prompt", prompt.text},
                                      {"continuation", continuation},
                                      {"prompt_tokens", prompt_tokens},
                                      {"new_tokens", result.tokens.size()},
                                      {"prefill_seconds", result.prefill_seconds},
                                      {"tokens_per_second", tokens / result.decode_seconds}};
    if (!prompt.file.empty()) {
      figures["file"] = prompt.file;
      figures["expected"] = prompt.expected;
    }
    return figures;
  }
};

}  // namespace

void add_generate(CLI::App& app) {
  auto options = std::make_shared<GenerateCommand>();
  lm::GenerationOptions& generation = options->generation;
  CLI::App* command = app.add_subcommand("generate", "Continue a prompt");
  command->footer(
      "Examples:\n"
      "  msa generate --model sparse --prompt '#include <' --temperature 0.8 --top-p 0.95\n"
      "  msa generate --model sparse --held-out --prompt-bytes 2048 --json continuation.json");
  command
      ->add_option("--model", options->model,
                   "Folder with config.json and weights; tokenizer.json, or tokens are bytes")
      ->required()
      ->type_name("DIR");
  auto* source = command->add_option_group("prompt", "Where the prompt comes from");
  source->add_option("--prompt", options->prompt_text, "The prompt itself")->type_name("TEXT");
  source->add_option("--prompt-file", options->prompt_file, "A file's contents")->type_name("FILE");
  auto* held_out = source->add_flag("--held-out", options->held_out, "The beginning of a held-out file");
  source->require_option(1);
  command->add_option("--text", options->text, "Where held-out files are [/usr/include and Python's library]")
      ->needs(held_out)
      ->type_name("PATH");
  command->add_option("--prompt-bytes", options->prompt_bytes, "Bytes of a held-out prompt [1024]")
      ->needs(held_out)
      ->check(between(1, 1 << 24));
  command
      ->add_option("--max-new-tokens", generation.max_new_tokens,
                   "Tokens to generate, fewer where the model ends the text")
      ->check(between(1, 1 << 24))
      ->capture_default_str();
  command->add_option("--temperature", generation.sampling.temperature, "0: always the likeliest token")
      ->check(between(0.0, 100.0))
      ->capture_default_str();
  command->add_option("--top-p", generation.sampling.top_p, "Draw from the likeliest tokens of this total probability")
      ->check(between(1e-6, 1.0))
      ->capture_default_str();
  command->add_option("--seed", generation.seed, "Of the draw")->capture_default_str();
  command->add_option("--chunk", generation.chunk, "Prompt tokens per prefill pass")
      ->check(between(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--threads", generation.num_threads, "0: one per core")
      ->check(between(0, 4096))
      ->capture_default_str();
  command->add_option("--json", options->json, "Write prompt, continuation and speed as JSON")->type_name("FILE");
  command->callback([options] { options->run(); });
}

}  // namespace openmsa::cli
