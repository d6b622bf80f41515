// A call as the backends see it: tensors that src/api has checked, and where each sequence's rows lie.
#pragma once

#include <openmsa/openmsa.h>

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "core/plan.h"

namespace openmsa::core {

/// Whether a scale is one number for all keys.
inline bool is_one_scale(const openmsa_tensor& scale) { return scale.rank == 1 && scale.shape[0] == 1; }

inline bool present(const openmsa_tensor& tensor) { return tensor.data != nullptr || tensor.rank != 0; }

/// Address of element (i, j, k, l); trailing indices may be left out.
inline std::byte* address(const openmsa_tensor& tensor, std::int64_t i, std::int64_t j = 0, std::int64_t k = 0,
                          std::int64_t l = 0) {
  const std::int64_t offset =
      i * tensor.strides[0] + j * tensor.strides[1] + k * tensor.strides[2] + l * tensor.strides[3];
  return static_cast<std::byte*>(tensor.data) + offset * static_cast<std::int64_t>(openmsa_dtype_bytes(tensor.dtype));
}

/// Element (i, j, k, l) as a T.
template <class T>
T& element(const openmsa_tensor& tensor, std::int64_t i, std::int64_t j = 0, std::int64_t k = 0, std::int64_t l = 0) {
  return *reinterpret_cast<T*>(address(tensor, i, j, k, l));
}

/// Reads or writes one element of a float tensor of any dtype, rounding once.
inline double load(const openmsa_tensor& tensor, std::int64_t i, std::int64_t j = 0, std::int64_t k = 0,
                   std::int64_t l = 0) {
  return visit_dtype(tensor.dtype, [&]<class T>(T) -> double { return to_float(element<T>(tensor, i, j, k, l)); });
}

template <class Compute>
void store(const openmsa_tensor& tensor, Compute value, std::int64_t i, std::int64_t j = 0, std::int64_t k = 0,
           std::int64_t l = 0) {
  visit_dtype(tensor.dtype, [&]<class T>(T) { element<T>(tensor, i, j, k, l) = round_to<T>(value); });
}

/// One sequence of the batch: rows [q_begin, q_begin + seqlen_q) of the query tensors, seqlen_k keys.
struct Sequence {
  std::int64_t q_begin;
  std::int64_t seqlen_q;
  std::int64_t k_begin;  // contiguous keys: first row of k, v, index_k
  std::int64_t seqlen_k;
  const std::int32_t* pages;  // paged keys: this sequence's row of block_table ...
  std::int64_t pages_stride;  // ... and the distance of its entries
  std::int64_t pages_per_block = 1;
  std::int64_t shard_count = 1;

  /// Position of query t; negative: it sees nothing.
  std::int64_t position(std::int64_t t) const { return seqlen_k - seqlen_q + t; }
  /// Entry `entry` of the row.
  std::int64_t table(std::int64_t entry) const { return pages[entry * pages_stride]; }
  /// Where page `logical` of the sequence lies; it is in the shard.
  std::int64_t page(std::int64_t logical) const {
    if (shard_count == 1) return table(logical);
    const std::int64_t block = logical / pages_per_block;
    return table(block / shard_count * pages_per_block + logical % pages_per_block);
  }
};

/// Rows of one sequence and head in k, v or index_k, contiguous or paged, with their scales.
struct KeyRows {
  openmsa_dtype dtype;
  std::byte* data;  // contiguous: token 0; paged: token 0 of page 0
  std::int64_t token_bytes;
  std::int64_t page_bytes;
  std::int64_t page_size;  // 0: contiguous
  Sequence sequence;
  float* scales;                  // of the token at `data`; nullptr: every scale is 1
  std::int64_t scales_stride;     // from a scale to the next, across pages too; 0: one for all
  std::int64_t scaled_pages = 0;  // pages of a kv_block, whose scale is that of the first; 0: a scale per token

  std::byte* token(std::int64_t j) const {
    if (page_size == 0) return data + j * token_bytes;
    return data + sequence.page(j / page_size) * page_bytes + j % page_size * token_bytes;
  }
  /// Whether each kv_block has a scale of its own.
  bool has_block_scales() const { return scaled_pages != 0 && scales_stride != 0; }
  /// The scale of token j; only where there are scales.
  float& scale(std::int64_t j) const {
    if (scales_stride == 0) return *scales;  // needs no page number
    if (page_size == 0) return scales[j * scales_stride];
    const std::int64_t logical = j / page_size;
    if (scaled_pages != 0) return scales[sequence.page(logical / scaled_pages * scaled_pages) * scales_stride];
    return scales[(sequence.page(logical) * page_size + j % page_size) * scales_stride];
  }
  /// Number of tokens from j on, at most `count`, that lie token_bytes apart.
  std::int64_t run(std::int64_t j, std::int64_t count) const {
    const std::int64_t rest = page_size - j % (page_size == 0 ? 1 : page_size);
    return page_size == 0 || count < rest ? count : rest;
  }
};

struct Problem {
  const Plan& plan;
  const openmsa_tensors& tensors;
  std::int64_t batch;
  std::int64_t total_q;  // rows of the query tensors, those past the last sequence included

  Sequence sequence(std::int64_t b) const;
  /// Query rows that belong to a sequence; rows from here to total_q are padding.
  std::int64_t used_q() const {
    if (batch == 0) return 0;
    const Sequence last = sequence(batch - 1);
    return last.q_begin + last.seqlen_q;
  }

  /// w of a query row in the KL loss: its kl_weights or, without these, 1/(N H_kv) for the mean over the N used rows.
  double kl_weight(std::int64_t row) const {
    if (present(tensors.kl_weights)) return load(tensors.kl_weights, row);
    return 1 / (static_cast<double>(used_q()) * plan.config.num_heads_kv);
  }

  KeyRows k(const Sequence& sequence, std::int64_t head) const {
    return key_rows(plan.is_paged() ? tensors.k_cache : tensors.k, tensors.k_scale, sequence, head);
  }
  KeyRows v(const Sequence& sequence, std::int64_t head) const {
    return key_rows(plan.is_paged() ? tensors.v_cache : tensors.v, tensors.v_scale, sequence, head);
  }
  KeyRows index_k(const Sequence& sequence) const {
    const openmsa_tensor& keys = plan.is_paged() ? tensors.index_k_cache : tensors.index_k;
    KeyRows result = key_rows(keys, tensors.index_k_scale, sequence, 0);
    if (plan.has_block_scales()) result.scaled_pages = plan.config.block_size / plan.config.page_size;
    return result;
  }

 private:
  KeyRows key_rows(const openmsa_tensor& tensor, const openmsa_tensor& scale, const Sequence& sequence,
                   std::int64_t head) const;
};

/// The tensors of the KL loss in a call of msa_attention_backward: its d_q and d_k are those of attention, not the
/// teacher's.
inline openmsa_tensors without_teacher(openmsa_tensors tensors) {
  tensors.d_q = tensors.d_k = {};
  return tensors;
}

inline Sequence Problem::sequence(std::int64_t b) const {
  Sequence result{0, total_q, 0, 0, nullptr, 0};
  if (present(tensors.cu_seqlens_q)) {
    result.q_begin = element<std::int32_t>(tensors.cu_seqlens_q, b);
    result.seqlen_q = element<std::int32_t>(tensors.cu_seqlens_q, b + 1) - result.q_begin;
  }
  if (present(tensors.seqlens_k)) {
    result.seqlen_k = element<std::int32_t>(tensors.seqlens_k, b);
  } else if (present(tensors.cu_seqlens_k)) {
    result.k_begin = element<std::int32_t>(tensors.cu_seqlens_k, b);
    result.seqlen_k = element<std::int32_t>(tensors.cu_seqlens_k, b + 1) - result.k_begin;
  } else {
    result.seqlen_k = (present(tensors.k) ? tensors.k : tensors.index_k).shape[0];
  }
  if (present(tensors.block_table)) {
    static constexpr std::int32_t kNoPage = -1;  // stands for a table without entries: no sequence has keys
    const bool is_empty = tensors.block_table.data == nullptr;
    result.pages = is_empty ? &kNoPage : &element<std::int32_t>(tensors.block_table, b);
    result.pages_stride = tensors.block_table.strides[1];
    result.pages_per_block = plan.config.block_size / plan.config.page_size;
    result.shard_count = plan.config.shard_count;
  }
  return result;
}

inline KeyRows Problem::key_rows(const openmsa_tensor& tensor, const openmsa_tensor& scale, const Sequence& sequence,
                                 std::int64_t head) const {
  const auto bytes = static_cast<std::int64_t>(openmsa_dtype_bytes(tensor.dtype));
  const bool is_paged = plan.is_paged();
  const std::int64_t head_stride = tensor.rank == (is_paged ? 4 : 3) ? tensor.strides[is_paged ? 2 : 1] : 0;
  const std::int64_t first = head * head_stride + (is_paged ? 0 : sequence.k_begin * tensor.strides[0]);
  auto* const data = static_cast<std::byte*>(tensor.data);
  std::byte* const rows = data == nullptr ? nullptr : data + first * bytes;  // no keys: there may be no memory either
  KeyRows result{tensor.dtype, rows, tensor.strides[0] * bytes, 0, 0, sequence, static_cast<float*>(scale.data), 0};
  if (is_paged) {
    result.token_bytes = tensor.strides[1] * bytes;
    result.page_bytes = tensor.strides[0] * bytes;
    result.page_size = plan.config.page_size;
  }
  if (scale.data == nullptr || is_one_scale(scale)) return result;
  const std::int64_t scale_head_stride = scale.rank == 2 ? scale.strides[0] : 0;
  result.scales_stride = scale.strides[scale.rank - 1];
  result.scales += head * scale_head_stride + (is_paged ? 0 : sequence.k_begin * result.scales_stride);
  return result;
}

}  // namespace openmsa::core
