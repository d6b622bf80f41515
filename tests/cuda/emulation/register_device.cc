// Registers the emulated GPU for the bodies that all backends share.
#include "cuda/support/device_call.h"
#include "support/shapes.h"

namespace openmsa::test {
namespace {

class Emulated : public Device {
 public:
  std::string obstacle() const override { return ""; }

  std::vector<Backend> backends() const override {
    return {{OPENMSA_BACKEND_CUDA, OPENMSA_BFLOAT16, 64}, {OPENMSA_BACKEND_CUDA, OPENMSA_BFLOAT16, 128}};
  }

  /// Prompts, chunks and decode steps; each size of heads, group, kv_block and list once.
  std::vector<NamedShape> attention_shapes() const override {
    LayerShape shapes[] = {
        {.num_heads_q = 2, .num_heads_kv = 1, .head_dim = 64, .index_dim = 64, .block_size = 64, .topk = 3},
        {.num_heads_q = 16, .num_heads_kv = 1, .head_dim = 128, .index_dim = 128, .block_size = 128, .topk = 2},
        {.num_heads_q = 8, .head_dim = 64, .index_dim = 64, .block_size = 64, .topk = 17, .page_size = 16},
        {.num_heads_q = 2, .head_dim = 128, .index_dim = 64, .block_size = 64, .topk = 2, .num_init_blocks = 1},
    };
    std::vector<NamedShape> result;
    for (LayerShape& shape : shapes) {
      shape.dtype = result.size() % 2 == 0 ? OPENMSA_BFLOAT16 : OPENMSA_FLOAT16;
      shape.seqlens_q = {70, 1, 0, 2, 33};
      shape.seqlens_k = {70, 300, 20, 0, 197};
      shape.padding_q = 3;
      result.push_back(named("", shape));
    }
    return result;
  }

  std::vector<NamedShape> selection_shapes() const override {
    std::vector<NamedShape> result = attention_shapes();
    for (const Scales scales : {Scales::kOne, Scales::kPerToken}) {
      LayerShape shape = result[2].shape;
      shape.index_dtype = OPENMSA_FLOAT8_E4M3;
      shape.scales = scales;
      result.push_back(named("", shape));
    }
    return result;
  }

  void run(const Layer& layer, openmsa_op op, TensorMap& outputs, const Rebind& rebind) const override {
    run_on_device(layer, op, outputs, rebind);
  }
};

const Emulated kEmulated;
const bool kIsRegistered = register_device(kEmulated);

}  // namespace
}  // namespace openmsa::test
