// msa attend: one attention layer, forward and backward, from a safetensors file to a safetensors file.
#include "msa/command.h"

#include <memory>
#include <openmsa/openmsa.hpp>
#include <string>

#include "io/json_file.h"
#include "msa/attend/layer_run.h"
#include "msa/outputs.h"

namespace openmsa::cli {
namespace {

constexpr const char* kFooter =
    "The input holds q, k, v, index_q, index_k, and optionally cu_seqlens_q, cu_seqlens_k; or, for a paged cache, q,\n"
    "index_q, k_cache, v_cache, index_k_cache, block_table, seqlens_k and optionally cu_seqlens_q. With topk_indices "
    "in\n"
    "the input nothing is selected; index_q and index_k then only serve --backward. --backward reads d_o; its KL loss\n"
    "runs over the selection, with --dense over the whole history. Other tensors in the file are left alone.\n"
    "Examples:\n"
    "  msa attend --input layer.safetensors --output result.safetensors --block-size 64 --topk 8\n"
    "  msa attend --input layer.safetensors --output exact.safetensors --dense --backend reference";

struct AttendCommand {
  LayerOptions layer;
  std::string input;
  std::string output;
  std::string json;

  void run() const {
    check_outputs({{"--output", output}, {"--json", json}});
    LayerRun run(LayerInput(input), layer);
    run.forward();
    if (layer.backward) run.backward();
    run.write(output);
    if (!json.empty()) io::write_json(json, run.figures());
  }
};

}  // namespace

void add_attend(CLI::App& app) {
  auto options = std::make_shared<AttendCommand>();
  LayerOptions& layer = options->layer;
  CLI::App* command = app.add_subcommand("attend", "Run one attention layer on the tensors of a safetensors file");
  command->footer(kFooter);
  command->add_option("--input", options->input, "Tensors of the layer")->required()->type_name("FILE");
  command->add_option("--output", options->output, "Receives o, lse, topk_indices and gradients, whole or not at all")
      ->required()
      ->type_name("FILE");
  auto* dense = command->add_flag("--dense", layer.dense, "Attend to every visible key: no selection");
  command->add_option("--block-size", layer.block_size, "Keys per kv_block [128]")->excludes(dense);
  command->add_option("--topk", layer.topk, "kv_blocks kept per query and KV head [16]")->excludes(dense);
  command->add_option("--num-init-blocks", layer.num_init_blocks, "First kv_blocks, always chosen [0]")
      ->excludes(dense);
  command->add_option("--num-local-blocks", layer.num_local_blocks, "Last visible kv_blocks, always chosen [1]")
      ->excludes(dense);
  command->add_option("--softmax-scale", layer.softmax_scale, "Factor of q.k; 0: 1/sqrt(head_dim)")
      ->capture_default_str();
  command->add_flag("--backward", layer.backward, "Also the gradients for d_o, and the KL loss with its gradients");
  layer.backend.add_to(*command);
  command->add_option("--json", options->json, "Write shapes and milliseconds per stage as JSON")->type_name("FILE");
  command->callback([options] { options->run(); });
}

}  // namespace openmsa::cli
