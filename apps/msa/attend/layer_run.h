// One attention layer on the tensors of a file: the stages that its tensors and options ask for, timed one by one.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <list>
#include <nlohmann/json.hpp>
#include <openmsa/openmsa.hpp>
#include <optional>
#include <string>
#include <vector>

#include "msa/attend/layer_input.h"
#include "msa/device/device.h"
#include "msa/options.h"
#include "msa/progress.h"

namespace openmsa::cli {

/// Optional values are refused where nothing would use them.
struct LayerOptions {
  std::optional<std::int32_t> block_size;
  std::optional<std::int32_t> topk;
  std::optional<std::int32_t> num_init_blocks;
  std::optional<std::int32_t> num_local_blocks;
  double softmax_scale = 0;
  bool dense = false;
  bool backward = false;
  BackendOptions backend;
};

class LayerRun {
 public:
  /// io::InputError when input and options contradict each other.
  LayerRun(LayerInput input, const LayerOptions& options);

  void forward();   // o, lse and, unless dense or given, topk_indices
  void backward();  // d_q, d_k, d_v; with an index branch also kl_loss, d_index_q, d_index_k
  void write(const std::string& path) const;
  nlohmann::ordered_json figures() const;

 private:
  struct Result {
    std::string name;
    openmsa_tensor tensor;
    Workspace memory;
  };

  bool is_selecting() const { return !options_.dense && !present(input_.tensors().topk_indices); }
  bool has_index_branch() const { return present(data_.index_q) || present(data_.index_k); }
  void check_conflicts() const;
  Config config() const;
  int num_stages() const;
  openmsa_tensor make(std::string name, openmsa_dtype dtype, std::vector<std::int64_t> shape);
  openmsa_tensor make_like(std::string name, const openmsa_tensor& tensor);
  void run(openmsa_op op, std::initializer_list<TensorMember> members);
  double call(openmsa_op op, const Tensors& tensors);

  LayerInput input_;
  LayerOptions options_;
  Tensors data_;  // inputs and, as they are made, results
  Config config_;
  Plan plan_;
  Progress progress_;
  std::unique_ptr<Device> device_;  // where the CUDA backend works; none for the others
  Workspace workspace_;
  std::list<Result> results_;
  nlohmann::ordered_json milliseconds_ = nlohmann::ordered_json::object();
};

}  // namespace openmsa::cli
