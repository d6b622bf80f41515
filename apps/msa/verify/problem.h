// A small layer of random numbers in host memory, with all that the operations read and write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <openmsa/openmsa.hpp>
#include <random>
#include <string>
#include <vector>

namespace openmsa::cli {

/// What the plan of a problem is about; its sequences are either prompts and chunks behind a prefix, or decode and
/// speculation.
struct VerifyShape {
  std::int32_t num_heads_kv, group_size, head_dim, index_dim, block_size, topk, num_init_blocks, num_local_blocks,
      page_size;
  bool is_decode;
};

/// "2 KV heads of 64, 4 query heads each, ..."
std::string describe(const VerifyShape& shape);

class VerifyProblem {
 public:
  /// `has_fp8_keys`: k, v and index keys in e4m3 with a scale per token; for paged shapes.
  VerifyProblem(const VerifyShape& shape, openmsa_dtype dtype, bool has_fp8_keys, std::uint64_t seed);

  const Config& config() const { return config_; }

  /// Operations that a plan of this kind has, in an order in which each reads what earlier ones gave.
  std::vector<openmsa_op> operations() const;

  /// The call of the reference, whose results later operations read.
  Tensors expected(openmsa_op op) const { return call(op, data_); }
  /// The same call into results of a backend's own.
  Tensors got(openmsa_op op) const { return call(op, got_); }

  const openmsa_tensor& data(openmsa_tensor Tensors::*member) const { return data_.*member; }

  /// kv_blocks that a query row sees.
  std::int64_t visible_blocks(std::int64_t row) const;

 private:
  struct Sequence {
    std::int64_t queries, keys;
  };

  openmsa_tensor allocate(openmsa_dtype dtype, std::initializer_list<std::int64_t> shape);
  openmsa_tensor integers(const std::vector<std::int32_t>& values, std::initializer_list<std::int64_t> shape);
  openmsa_tensor random(std::initializer_list<std::int64_t> shape);
  void add_lengths();
  void add_pages();
  void add_inputs();
  void add_results(Tensors& to, openmsa_dtype dtype);
  Tensors call(openmsa_op op, const Tensors& results) const;

  Config config_;
  std::vector<Sequence> sequences_;
  std::int64_t total_q_ = 0, total_k_ = 0, num_pages_ = 0, max_blocks_ = 0;
  std::mt19937_64 generator_;
  std::list<std::vector<std::byte>> memory_;
  openmsa_tensor keys_as_queries_{};  // prefix sums of the keys: openmsa_append_kv stores all of them
  Tensors data_ = openmsa::tensors();
  Tensors got_ = openmsa::tensors();
};

}  // namespace openmsa::cli
