// msa: one layer of MiniMax Sparse Attention on files, a language model that uses it, and measurements of both.
// Exit status: 0; 2 for bad input, with one line on stderr; 1 for any other failure.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <iostream>
#include <openmsa/openmsa.hpp>
#include <string>

#include "io/error.h"
#include "io/mapped_file.h"
#include "msa/command.h"
#include "msa/number.h"

namespace {

constexpr int kFailure = 1;
constexpr int kBadInput = 2;

/// The beginning and the end of a message that quotes too much, cut between characters.
std::string shortened(const std::string& message) {
  constexpr std::size_t kHead = 1200, kTail = 400;
  if (message.size() <= kHead + kTail) return message;
  const auto continues = [&](std::size_t i) { return (static_cast<unsigned char>(message[i]) & 0xc0) == 0x80; };
  std::size_t head = kHead, tail = message.size() - kTail;
  while (head > 0 && continues(head)) --head;
  while (tail < message.size() && continues(tail)) ++tail;
  return message.substr(0, head) + " ... " + message.substr(tail);
}

/// Messages may quote file contents; whatever those hold, one line is printed.
int report(std::string message, int status) {
  message = shortened(message);
  std::replace_if(
      message.begin(), message.end(), [](unsigned char c) { return c < ' ' || c == 0x7f; }, ' ');
  std::fprintf(stderr, "msa: %s\n", message.c_str());
  return status;
}

/// What is printed may still wait to be written, or have failed long ago.
int finish_output(int status) {
  std::cout.flush();
  const bool written = std::cout.good() && std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
  return written ? status : report("cannot write to standard output", kFailure);
}

/// CLI11 would only say that a command is missing.
void refuse_unknown_command(const CLI::App& app, int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  const auto has_name = [&](const CLI::App* command) { return command->check_name(name); };
  if (name.empty() || name.front() == '-' || !app.get_subcommands(has_name).empty()) return;
  throw openmsa::io::InputError("no command '" + name + "'; msa --help lists them");
}

int parse_and_run(CLI::App& app, int argc, char** argv) {
  try {
    refuse_unknown_command(app, argc, argv);
    app.parse(argc, argv);
    return finish_output(0);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return finish_output(app.exit(error));  // --help, --version
    return report(error.what(), kBadInput);
  } catch (const openmsa::io::InputError& error) {
    return report(error.what(), kBadInput);
  } catch (const openmsa::Error& error) {
    const bool caller = error.status() == OPENMSA_INVALID_ARGUMENT || error.status() == OPENMSA_UNSUPPORTED;
    return report(error.what(), caller ? kBadInput : kFailure);
  } catch (const std::exception& error) {
    return report(error.what(), kFailure);
  }
}

}  // namespace

int main(int argc, char** argv) {
  openmsa::io::exit_when_mapped_files_shrink("msa");
  CLI::App app{"MiniMax Sparse Attention: one layer, a language model, measurements", "msa"};
  app.set_version_flag("--version", std::string("msa ") + openmsa_version());
  app.require_subcommand(1);
  app.footer(
      "Examples:\n"
      "  msa attend --input layer.safetensors --output result.safetensors --topk 16\n"
      "  msa train --output model --text /usr/include && msa eval --model model\n"
      "  msa bench decode --num-heads-q 64 --num-heads-kv 4 --head-dim 128 --dtype bf16\n"
      "msa COMMAND --help lists the options of a command.");
  openmsa::cli::add_attend(app);
  openmsa::cli::add_train(app);
  openmsa::cli::add_eval(app);
  openmsa::cli::add_generate(app);
  openmsa::cli::add_bench(app);
  openmsa::cli::add_report(app);
  openmsa::cli::add_verify(app);
  openmsa::cli::add_info(app);
  openmsa::cli::read_plain_numbers(app);
  return parse_and_run(app, argc, argv);
}
